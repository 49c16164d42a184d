"""A zoo of tiny random language models, one per way of building a residual stream.

Every specimen says by hand where its blocks and its unembedding are, and which engines must work.

    specimen = build("llama")
    specimen.model(specimen.prompts(4, 7))
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
import transformers as hf
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB = 61
WIDTH = 32
WINDOW = 4
"""A sliding window shorter than the tests' prompts."""
STEP_THRESHOLD = 0.33
"""Where the step network jumps: at alpha 0.665 on the way from an even token to an odd one."""

FULL, SLIDING = "full_attention", "sliding_attention"
_DECAYS = ("A_log", "dt_bias", "dt_proj.bias", ".D")
"""Parameters of recurrent blocks that hold rates: their own initialisation is kept."""


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """One built model, in eval mode and float32, and hand-written facts that the oracle needs."""

    model: nn.Module
    blocks: str
    """The path of the container of blocks."""
    unembedding: str = "lm_head"
    """The path of the linear layer that reads the output."""
    vocab: int = VOCAB
    call: dict[str, Any] = field(default_factory=dict)
    takes_sequence: bool = False
    """Whether the model takes token ids (token,), not (prompt, token)."""

    @property
    def stack(self) -> Any:
        return self.model.get_submodule(self.blocks)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.stack.children())

    @property
    def num_layers(self) -> int:
        return len(self.stack)

    def run(self, prompt: Int[Tensor, " token"]) -> Any:
        return self.model(prompt if self.takes_sequence else prompt[None], **self.call)

    def prompts(self, num: int, length: int, seed: int = 0) -> Int[Tensor, "prompt token"]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.vocab, (num, length), generator=generator)


@dataclass(frozen=True)
class Species:
    """How to build a model, where its parts are, and what must work on it."""

    make: Callable[[], nn.Module]
    blocks: str = "model.layers"
    unembedding: str = "lm_head"
    rows: bool = True
    """Whether engine "rows" works: a cache exists whose rows can be repeated."""
    shared: bool = True
    """Whether engine "shared" works: attention is full and free of ALiBi."""
    gain: float | None = 1.75
    """How strongly to stir the parameters; None for networks built by hand."""
    takes_sequence: bool = False


def build(name: str, *, seed: int = 0, attention: str | None = None) -> Specimen:
    """Build the species of that name, the same one for the same seed.

    `attention` forces an attention implementation on a Hugging Face model.
    """
    species = SPECIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = species.make().eval()
    if species.gain is not None:
        _stir(model, torch.Generator().manual_seed(seed), species.gain)
    if attention is not None:
        model.set_attn_implementation(attention)
    return Specimen(
        model=model,
        blocks=species.blocks,
        unembedding=species.unembedding,
        call={"use_cache": False} if isinstance(model, hf.PreTrainedModel) else {},
        takes_sequence=species.takes_sequence,
    )


def _stir(model: nn.Module, generator: torch.Generator, gain: float) -> None:
    """Redraw all parameters so that no norm, bias or projection is left at its neutral value.

    Matrices get a standard deviation of `gain` over the root of their fan-in, which makes attention
    peaked and gates saturated; vectors keep their value and get noise of 0.2 on top.
    """
    for name, parameter in model.named_parameters():
        if not name.endswith(_DECAYS):
            noise = torch.randn(parameter.shape, generator=generator)
            is_vector = parameter.dim() < 2
            scaled = 0.2 * noise if is_vector else noise * gain / math.sqrt(parameter.shape[-1])
            parameter.data = parameter.data + scaled if is_vector else scaled


def _hub(kind: str, config_kind: str | None = None, **config: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        family = kind.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        model = getattr(hf, kind)(getattr(hf, config_kind or f"{family}Config")(**config))
        assert isinstance(model, nn.Module)
        return model

    return make


def _gpt(kind: str, **config: Any) -> Callable[[], nn.Module]:
    return _hub(
        kind, vocab_size=VOCAB, n_embd=WIDTH, n_layer=3, n_head=4, bos_token_id=None,
        eos_token_id=None, **config,
    )  # fmt: skip


def _llama(
    kind: str, config_kind: str | None = None, *, num_hidden_layers: int = 3, **config: Any
) -> Callable[[], nn.Module]:
    return _hub(
        kind, config_kind, vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None,
        eos_token_id=None, pad_token_id=None, num_hidden_layers=num_hidden_layers, **config,
    )  # fmt: skip


def _windowed(kind: str, config_kind: str | None = None, **config: Any) -> Callable[[], nn.Module]:
    """Four blocks, every second one with a sliding window unless `layer_types` says otherwise."""
    types = config.pop("layer_types", [SLIDING, FULL] * 2)
    return _llama(
        kind, config_kind, num_hidden_layers=4, layer_types=types, sliding_window=WINDOW, **config
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH // 4)

    def forward(self, x: Tensor, mask: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # "... token head_width"
        if turn is not None:
            q, k = _rotate(q, *turn), _rotate(k, *turn)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf)
        out: Tensor = scores.softmax(-1) @ v
        return out


class _Block(nn.Module):
    """Attention of four heads, in a list of their own, and an MLP; x is "... token width"."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleList(_Head() for _ in range(4))
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, turn: tuple[Tensor, Tensor] | None = None
    ) -> Float[Tensor, "*batch token width"]:
        if mask is None:
            mask = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).tril()
        normed = self.norm_1(x)
        x = x + self.proj(torch.cat([head(normed, mask, turn) for head in self.heads], dim=-1))
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


class NanoGPT(nn.Module):
    """As nanoGPT: `logits, loss = model(idx)`, and without targets the head reads one position."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCAB, WIDTH),
                "wpe": nn.Embedding(64, WIDTH),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList(_Block() for _ in range(3)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight  # type: ignore[assignment]

    def forward(
        self, idx: Tensor, targets: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch token vocab"], Tensor | None]:
        part: Any = self.transformer
        x = part["drop"](part["wte"](idx) + part["wpe"](torch.arange(idx.shape[1])))
        for block in part["h"]:
            x = block(x)
        x = part["ln_f"](x)
        return _with_loss(self.lm_head(x[:, [-1], :] if targets is None else x), targets)


class LectureGPT(NanoGPT):
    """As in Karpathy's lecture: blocks in an `nn.Sequential`; here logits are (batch, vocab)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*self.transformer.pop("h").children())

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        part: Any = self.transformer
        x = part["wte"](idx) + part["wpe"](torch.arange(idx.shape[1]))
        x = part["ln_f"](self.blocks(x))
        return _with_loss(self.lm_head(x[:, -1] if targets is None else x), targets)


def _with_loss(logits: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if targets is None:
        return logits, None
    return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class LitGPT(NanoGPT):
    """As litgpt: a config of its own kind, rotary tables as buffers, blocks of several arguments.

    Its logits are soft-capped, as nanochat's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(n_layer=3, n_embd=WIDTH, padded_vocab_size=VOCAB)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        theta = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
        angles = torch.outer(torch.arange(64), theta).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, idx: Tensor) -> Tensor:  # type: ignore[override]
        part: Any = self.transformer
        x, length = part["wte"](idx), idx.shape[1]
        for block in part["h"]:
            x = block(x, None, (self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]))
        return 3 * torch.tanh(self.lm_head(part["ln_f"](x)) / 3)


class PackedGPT(nn.Module):
    """As torchtitan: blocks in an `nn.ModuleDict`, and a stream of (token, width).

    "packed" takes (prompt, token) and keeps the prompts apart by a mask; "row" knows one prompt
    only, and takes a batch for one, too; "sequence" takes (token,).
    """

    def __init__(self, takes: Literal["packed", "row", "sequence"]) -> None:
        super().__init__()
        self.takes = takes
        self.tok_embeddings = nn.Embedding(VOCAB, WIDTH)
        self.positions = nn.Embedding(64, WIDTH)
        self.layers = nn.ModuleDict({str(index): _Block() for index in range(3)})
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Float[Tensor, "token vocab"]:
        if (tokens.dim() == 1) != (self.takes == "sequence"):
            raise ValueError(f"token ids {tuple(tokens.shape)}")
        length = tokens.shape[1] if self.takes == "packed" else tokens.numel()
        place = torch.arange(tokens.numel())
        # "query key": earlier, and of the same prompt
        mask = (place[:, None] >= place) & (place[:, None] // length == place // length)
        x = self.tok_embeddings(tokens.flatten()) + self.positions(place % length)
        for layer in self.layers.values():
            x = layer(x, mask)
        logits: Tensor = self.output(self.norm(x))
        return logits


class MixingGPT(NanoGPT):
    """As nanochat: each block reads scaled streams of its own, with some of the first one in them.

    And as U-nets: what the first block puts out is added again before the last one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.tensor([[1.0, 0.3], [0.7, 0.5], [1.2, 0.4]]))

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        part: Any = self.transformer
        x = first = part["wte"](idx) + part["wpe"](torch.arange(idx.shape[1]))
        kept: list[Tensor] = []
        for block, (own, again) in zip(part["h"], self.scales, strict=True):
            x = own * x + again * first
            x = block(x + kept[0] if len(kept) == 2 else x)
            kept.append(x)
        return _with_loss(self.lm_head(part["ln_f"](x)), targets)


def _skipping_llama() -> nn.Module:
    """A Hugging Face decoder with such a skip, from behind its first block to before its last."""
    model: Any = _llama("LlamaForCausalLM")()
    kept: dict[str, Tensor] = {}
    _, second, last = model.model.layers
    second.register_forward_pre_hook(lambda _, args: kept.update(x=args[0]))
    last.register_forward_pre_hook(lambda _, args: (args[0] + kept["x"], *args[1:]))
    return model  # type: ignore[no-any-return]


class _AddLinear(nn.Linear):
    """x + W x, every position for itself."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


class _Step(nn.Module):
    """Nothing below a threshold of the first coordinate, 1 everywhere above it."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[..., :1] > STEP_THRESHOLD).to(x.dtype).expand_as(x)


class _Mean(nn.Module):
    """An attention that looks at all tokens so far alike, and writes to the last coordinate."""

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.arange(1, x.shape[-2] + 1)[:, None]
        made = torch.zeros_like(x)
        made[..., -1] = (x.cumsum(dim=-2) / counts)[..., -2]
        return made


class _Rectified(nn.Module):
    """Attention, and a feed-forward of gates x_0 - threshold that writes to the first coordinate.

    All else of a network of these blocks is linear, so its paths are known piece by piece.
    """

    def __init__(self, thresholds: list[float], factors: list[float]) -> None:
        super().__init__()
        self.attention = _Mean()
        up, down = nn.Linear(WIDTH, len(thresholds)), nn.Linear(len(thresholds), WIDTH)
        self.feed_forward = nn.Sequential(up, nn.ReLU(), down)
        with torch.no_grad():
            for parameter in self.feed_forward.parameters():
                parameter.zero_()
            up.weight[:, 0], up.bias[:] = 1.0, -torch.tensor(thresholds)
            down.weight[0] = torch.tensor(factors)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        made: Tensor = x + self.feed_forward(x)
        return made


class HandMade(nn.Module):
    """Embedding, blocks, unembedding, and nothing between them: no norm, no attention."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(blocks)
        self.unembedding = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, input_ids: Tensor) -> Float[Tensor, "batch token vocab"]:
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.unembedding(x)
        return logits


def _step_network() -> nn.Module:
    """First coordinate -1 for even tokens and 1 for odd ones, looked at by the last block only."""
    model = HandMade([nn.Identity(), nn.Identity(), _Step()])
    with torch.no_grad():
        model.embedding.weight[0::2, 0] = -1.0
        model.embedding.weight[1::2, 0] = 1.0
    return model


def _rectified_network() -> nn.Module:
    """First coordinate -1 for even tokens and 1 for odd ones, all others alike.

    Block 2 passes four gates between them and changes nothing; block 3 makes a jump of 8 from 0.33
    to 0.41; block 4 takes away the line up to 0.23, and leaves the one after it.
    """
    still = _Rectified([-0.87, -0.47, 0.05, 0.93], [0.0] * 4)
    jump = _Rectified([STEP_THRESHOLD, STEP_THRESHOLD + 0.08], [100.0, -100.0])
    flat = _Rectified([-1.05, 0.23], [-1.0, 1.0])
    model = HandMade([nn.Identity(), still, jump, flat])
    with torch.no_grad():
        model.embedding.weight[:] = 0.0
        model.embedding.weight[:, -2] = 1.0
        model.embedding.weight[0::2, 0] = -1.0
        model.embedding.weight[1::2, 0] = 1.0
    return model


_H = "transformer.h"


def _no_cache(make: Callable[[], nn.Module], blocks: str = "model.layers", **facts: Any) -> Species:
    return Species(make, blocks, rows=False, shared=False, **facts)


def _packed(takes: Literal["packed", "row", "sequence"]) -> Species:
    is_sequence = takes == "sequence"
    return _no_cache(
        lambda: PackedGPT(takes), "layers", unembedding="output", takes_sequence=is_sequence
    )


def _by_hand(make: Callable[[], nn.Module]) -> Species:
    return _no_cache(make, "blocks", unembedding="unembedding", gain=None)


# fmt: off
_DEEP: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 3}
_OPT: dict[str, Any] = {**_DEEP, "ffn_dim": 48, "num_attention_heads": 4}
_FALCON: dict[str, Any] = {**_DEEP, "num_attention_heads": 4}
_GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8}
_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}

_OWN: dict[str, Species] = {
    "nano_gpt": _no_cache(NanoGPT, _H),
    "lecture_gpt": _no_cache(LectureGPT, "blocks"),
    "lit_gpt": _no_cache(LitGPT, _H),
    "mixing_gpt": _no_cache(MixingGPT, _H),
    "packed_gpt": _packed("packed"),
    "row_gpt": _packed("row"),
    "sequence_gpt": _packed("sequence"),
}
SPECIES: dict[str, Species] = {
    "gpt2": Species(_gpt("GPT2LMHeadModel", n_positions=64), _H),
    "gpt_neox": Species(
        _llama("GPTNeoXForCausalLM", tie_word_embeddings=False),
        "gpt_neox.layers",
        # lm_head, or embed_out in older versions
        next(iter(hf.GPTNeoXForCausalLM._tied_weights_keys)).partition(".")[0],
    ),
    "gptj": Species(_gpt("GPTJForCausalLM", n_positions=64, rotary_dim=4), _H),
    "opt": Species(
        _hub("OPTForCausalLM", **_OPT, word_embed_proj_dim=WIDTH), "model.decoder.layers"
    ),
    # OPT-350m norms after each block, has no final norm, and projects to a narrower unembedding.
    # Each of its blocks draws the streams together, so it is stirred less to keep d(1) large.
    "opt_post_norm": Species(
        _hub("OPTForCausalLM", **_OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
        "model.decoder.layers", gain=1.4,
    ),
    "bloom": Species(
        _hub("BloomForCausalLM", vocab_size=VOCAB, hidden_size=WIDTH, n_layer=3, n_head=4),
        _H, shared=False,
    ),
    "mpt": Species(
        _hub("MptForCausalLM", vocab_size=VOCAB, d_model=WIDTH, n_layers=3, n_heads=4),
        "transformer.blocks", shared=False,
    ),
    "falcon_rope": Species(_hub("FalconForCausalLM", **_FALCON), _H),
    "falcon_alibi": Species(
        _hub("FalconForCausalLM", **_FALCON, alibi=True, parallel_attn=False, multi_query=False),
        _H, shared=False,
    ),
    "llama": Species(_llama("LlamaForCausalLM")),
    "mistral": Species(_llama("MistralForCausalLM", sliding_window=32)),
    "mistral_window": Species(_llama("MistralForCausalLM", sliding_window=WINDOW), shared=False),
    "gemma2_window": Species(_windowed("Gemma2ForCausalLM", **_GEMMA), shared=False),
    "gemma3_window": Species(
        _windowed("Gemma3ForCausalLM", "Gemma3TextConfig", **_GEMMA), shared=False
    ),
    # Scales its embedding, its residual branches and its logits.
    "granite": Species(_llama(
        "GraniteForCausalLM", embedding_multiplier=2.0, residual_multiplier=0.5, logits_scaling=4.0
    )),
    "cohere": Species(_llama("CohereForCausalLM", logit_scale=0.25)),
    "phi3": Species(_llama("Phi3ForCausalLM")),
    "olmo": Species(_llama("OlmoForCausalLM", clip_qkv=2.0)),
    "olmo2": Species(_llama("Olmo2ForCausalLM")),
    "olmo3_window": Species(
        _windowed("Olmo3ForCausalLM", layer_types=[SLIDING, SLIDING, SLIDING, FULL]), shared=False
    ),
    "olmoe": Species(_llama("OlmoeForCausalLM", **_MOE)),
    "mixtral": Species(_llama("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2)),
    "qwen2": Species(_llama("Qwen2ForCausalLM")),
    "qwen3": Species(_llama("Qwen3ForCausalLM", head_dim=8)),
    "smollm3": Species(_llama("SmolLM3ForCausalLM", num_hidden_layers=4, no_rope_layer_interval=2)),
    # Its `get_decoder` gives back the model with its head; attention is in chunks, not windows.
    "llama4_chunked": Species(_llama(
        "Llama4ForCausalLM", "Llama4TextConfig", intermediate_size_mlp=48, head_dim=8,
        num_local_experts=2, attention_chunk_size=WINDOW,
    ), shared=False),
    # Insists on a mask with one row a prompt, where others broadcast.
    "xglm": Species(_hub(
        "XGLMForCausalLM", vocab_size=VOCAB, d_model=WIDTH, ffn_dim=48, num_layers=3,
        attention_heads=4,
    )),
    "mamba": _no_cache(_hub("MambaForCausalLM", **_DEEP, state_size=8), "backbone.layers"),
    "qwen3_next": _no_cache(_llama(
        "Qwen3NextForCausalLM", num_hidden_layers=4, head_dim=8, linear_key_head_dim=8,
        layer_types=["linear_attention", "linear_attention", FULL, "linear_attention"],
        linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        moe_intermediate_size=24, shared_expert_intermediate_size=24, **_MOE,
    )),
    **_OWN,
    "gpt_neo_local": _no_cache(_hub(
        "GPTNeoForCausalLM", vocab_size=VOCAB, hidden_size=WIDTH, num_layers=4, num_heads=4,
        attention_types=[[["global", "local"], 2]], window_size=WINDOW, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None,
    ), _H),
    "skipping_llama": Species(_skipping_llama),
    "linear": _by_hand(lambda: HandMade([_AddLinear() for _ in range(3)])),
    "step": _by_hand(_step_network),
    "rectified": _by_hand(_rectified_network),
    "gemma3n": _no_cache(_windowed(
        "Gemma3nForCausalLM", "Gemma3nTextConfig", head_dim=8, vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8, num_kv_shared_layers=0, laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
    )),
    "t5": _no_cache(_hub(
        "T5ForConditionalGeneration", "T5Config", vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=48,
        num_layers=2,
    ), "decoder.block"),
    "bert": _no_cache(
        _hub("BertForMaskedLM", "BertConfig", **_FALCON, intermediate_size=48), "bert.encoder.layer"
    ),
}
# fmt: on

REFUSED = ("gemma3n", "t5", "bert")
"""Models whose stream cannot be cut at the last position."""

OWN = tuple(_OWN)
"""Models of no library, written as people write their own."""

HAND_MADE = ("linear", "step", "rectified")
"""Networks whose slopes are known without measuring."""

DISTRUSTED = ("gpt_neo_local", "skipping_llama")
"""Models with a sliding window that no cache shows, or a skip past blocks: a fast way is wrong."""

ARCHITECTURES = tuple(name for name in SPECIES if name not in REFUSED + HAND_MADE + DISTRUSTED)
"""Models that must be measured exactly at every layer."""

ALSO_EAGER = ("gpt2", "llama", "olmo2", "mistral_window", "gemma3_window")
"""Models measured under eager attention too; GPT-J, Bloom, MPT and Gemma 2 have nothing else."""
