"""A zoo of tiny random language models, one per way of building a residual stream.

Every specimen says by hand where its blocks and its unembedding are and which engines must work on
it, so that nothing here depends on how `sr_monitor` finds them.

    specimen = build("llama")
    specimen.model(specimen.prompts(4, 7))
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

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
    """One built model and the hand-written facts that the oracle needs about it."""

    model: nn.Module
    """In eval mode, float32, its parameters stirred away from degenerate initialisations."""
    vocab: int
    """Number of token ids the model knows."""
    blocks: str
    """Dotted path of the list of blocks."""
    unembedding: str
    """Dotted path of the linear layer that reads the output."""
    call: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a plain forward pass."""

    @property
    def stack(self) -> nn.ModuleList | nn.Sequential:
        """The blocks themselves."""
        stack = self.model.get_submodule(self.blocks)
        assert isinstance(stack, nn.ModuleList | nn.Sequential)
        return stack

    @property
    def num_layers(self) -> int:
        """Number of blocks: the last layer that can be measured."""
        return len(self.stack)

    def prompts(self, num: int, length: int, seed: int = 0) -> Int[Tensor, "prompt token"]:
        """Random prompts over the whole vocabulary."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.vocab, (num, length), generator=generator)


@dataclass(frozen=True, kw_only=True)
class Species:
    """How to build a model, where its parts are, and what must work on it."""

    make: Callable[[], nn.Module]
    """Builds the model, with the global RNG already seeded."""
    blocks: str = "model.layers"
    """Dotted path of the list of blocks."""
    unembedding: str = "lm_head"
    """Dotted path of the linear layer that reads the output."""
    rows: bool = True
    """Whether a cache exists whose rows can be repeated, so that engine "rows" must work."""
    shared: bool = True
    """Whether attention is full and free of ALiBi, so that engine "shared" must work."""
    gain: float | None = 1.75
    """How strongly to `stir` the parameters; None for networks built by hand."""


def stir(model: nn.Module, generator: torch.Generator, gain: float) -> None:
    """Redraw all parameters so that no norm, bias or projection is left at its neutral value.

    Matrices get a standard deviation of `gain` over the root of their fan-in, which makes attention
    peaked and gates saturated; vectors keep their value and get noise of 0.2 on top.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_DECAYS):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * gain / math.sqrt(parameter.shape[-1]))


def build(name: str, *, seed: int = 0, attention: str | None = None) -> Specimen:
    """Build the species of that name, the same one for the same seed.

    `attention` forces an attention implementation on a Hugging Face model.
    """
    species = SPECIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = species.make().eval()
    if species.gain is not None:
        stir(model, torch.Generator().manual_seed(seed), species.gain)
    is_hub_model = isinstance(model, hf.PreTrainedModel)
    if attention is not None:
        assert isinstance(model, hf.PreTrainedModel)
        model.set_attn_implementation(attention)
    return Specimen(
        model=model,
        vocab=VOCAB,
        blocks=species.blocks,
        unembedding=species.unembedding,
        call={"use_cache": False} if is_hub_model else {},
    )


# Models of other people -------------------------------------------------------------------------


def _hub(kind: str, config_kind: str | None = None, **config: Any) -> Callable[[], nn.Module]:
    """Builds `transformers.<kind>` from a configuration of 32 dimensions and 61 tokens."""

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


# A module as in nanoGPT: no config, no cache, two outputs, the head reads one position -----------


class _NanoAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.c_attn(x).view(batch, length, 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return out


class _NanoBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = _NanoAttention()
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(WIDTH, 64), "gelu": nn.GELU(), "c_proj": nn.Linear(64, WIDTH)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        hidden = self.mlp["gelu"](self.mlp["c_fc"](self.ln_2(x)))
        out: Tensor = x + self.mlp["c_proj"](hidden)
        return out


class NanoGPT(nn.Module):
    """A transformer of the kind people write for themselves: `logits, loss = model(idx)`."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCAB, WIDTH),
                "wpe": nn.Embedding(64, WIDTH),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList(_NanoBlock() for _ in range(3)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight  # type: ignore[assignment]

    def forward(
        self, idx: Tensor, targets: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch token vocab"], Tensor | None]:
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.transformer["wte"](idx) + self.transformer["wpe"](positions)
        x = self.transformer["drop"](x)
        blocks = self.transformer["h"]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            x = block(x)
        x = self.transformer["ln_f"](x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# A module as in Karpathy's lecture: blocks in an `nn.Sequential`, and a list of heads in each ----


class _LectureHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(WIDTH, width, bias=False)
        self.query = nn.Linear(WIDTH, width, bias=False)
        self.value = nn.Linear(WIDTH, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class _LectureAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_LectureHead(WIDTH // 4) for _ in range(4))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(torch.cat([head(x) for head in self.heads], dim=-1))
        return out


class _LectureBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sa = _LectureAttention()
        self.ffwd = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, WIDTH))
        self.ln1 = nn.LayerNorm(WIDTH)
        self.ln2 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sa(self.ln1(x))
        out: Tensor = x + self.ffwd(self.ln2(x))
        return out


class LectureGPT(nn.Module):
    """The transformer that many learn from."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(VOCAB, WIDTH)
        self.position_embedding_table = nn.Embedding(64, WIDTH)
        self.blocks = nn.Sequential(*(_LectureBlock() for _ in range(3)))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCAB)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch token vocab"], Tensor | None]:
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.token_embedding_table(idx) + self.position_embedding_table(positions)
        logits = self.lm_head(self.ln_f(self.blocks(x)))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# A module as in litgpt: rotary tables as buffers, blocks called with several arguments -----------


class _LitBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1 = nn.RMSNorm(WIDTH)
        self.attn = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm_2 = nn.RMSNorm(WIDTH)
        self.fc_1 = nn.Linear(WIDTH, 48, bias=False)
        self.fc_2 = nn.Linear(WIDTH, 48, bias=False)
        self.down = nn.Linear(48, WIDTH, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None
    ) -> Float[Tensor, "batch token width"]:
        batch, length, _ = x.shape
        heads = self.attn(self.norm_1(x)).view(batch, length, 3, 4, WIDTH // 4)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, length, WIDTH))
        normed = self.norm_2(x)
        out: Tensor = x + self.down(F.silu(self.fc_1(normed)) * self.fc_2(normed))
        return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


@dataclass
class LitConfig:
    """The configuration of a litgpt model, which no Hugging Face name fits."""

    n_layer: int = 3
    n_embd: int = WIDTH
    padded_vocab_size: int = VOCAB
    block_size: int = 64


class LitGPT(nn.Module):
    """A litgpt-like transformer: RMS norms, rotary buffers, `forward(idx) -> logits`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: LitConfig) -> None:
        super().__init__()
        self.config = config
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.padded_vocab_size, config.n_embd),
                "h": nn.ModuleList(_LitBlock() for _ in range(config.n_layer)),
                "ln_f": nn.RMSNorm(config.n_embd),
            }
        )
        theta = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
        angles = torch.outer(torch.arange(config.block_size), theta).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(
        self, idx: Tensor, input_pos: Tensor | None = None
    ) -> Float[Tensor, "batch token vocab"]:
        if input_pos is not None:
            raise TypeError("You need to call `gpt.set_kv_cache()`")
        length = idx.shape[1]
        x = self.transformer["wte"](idx)
        for block in self._blocks():
            x = block(x, self.cos[:length], self.sin[:length], None)
        logits: Tensor = self.lm_head(self.transformer["ln_f"](x))
        return logits

    def _blocks(self) -> Iterator[nn.Module]:
        blocks = self.transformer["h"]
        assert isinstance(blocks, nn.ModuleList)
        return iter(blocks)


# Networks whose slope is known -------------------------------------------------------------------


class _AddLinear(nn.Module):
    """x + W x, every position for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.map(x)
        return out


class _Step(nn.Module):
    """The last one: nothing below a threshold of the first coordinate, a constant above it."""

    def __init__(self, *, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        self.above = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_last:
            return x
        return (x[..., :1] > STEP_THRESHOLD).to(x.dtype) * self.above


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


def _linear_network() -> nn.Module:
    return HandMade([_AddLinear() for _ in range(3)])


def _step_network() -> nn.Module:
    """First coordinate -1 for even tokens and 1 for odd ones, looked at by the last block only."""
    model = HandMade([_Step(is_last=False), _Step(is_last=False), _Step(is_last=True)])
    with torch.no_grad():
        model.embedding.weight[0::2, 0] = -1.0
        model.embedding.weight[1::2, 0] = 1.0
    return model


# The table ---------------------------------------------------------------------------------------

_H, _L = "transformer.h", "model.layers"
_DEEP: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 3}
_BERT: dict[str, Any] = {"intermediate_size": 48, "num_attention_heads": 4}
_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
}
_OPT: dict[str, Any] = {**_DEEP, "ffn_dim": 48, "num_attention_heads": 4}
_FALCON: dict[str, Any] = {**_DEEP, "num_attention_heads": 4}
_GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8}
_QWEN3_NEXT: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", FULL, "linear_attention"],
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
_LLAMA_4: dict[str, Any] = {
    "intermediate_size_mlp": 48,
    "head_dim": 8,
    "num_local_experts": 2,
    "attention_chunk_size": WINDOW,
}
_XGLM: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "ffn_dim": 48,
    "num_layers": 3,
    "attention_heads": 4,
}
_GPT_NEO: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_layers": 4,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 2]],
    "window_size": WINDOW,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GEMMA_3N: dict[str, Any] = {
    "head_dim": 8,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "laurel_rank": 4,
    "activation_sparsity_pattern": [0.0] * 4,
}


def _no_cache(make: Callable[[], nn.Module], blocks: str, **facts: Any) -> Species:
    return Species(make=make, blocks=blocks, rows=False, shared=False, **facts)


def _by_hand(make: Callable[[], nn.Module]) -> Species:
    return _no_cache(make, "blocks", unembedding="unembedding", gain=None)


SPECIES: dict[str, Species] = {
    "gpt2": Species(make=_gpt("GPT2LMHeadModel", n_positions=64), blocks=_H),
    "gpt_neox": Species(
        make=_llama("GPTNeoXForCausalLM", tie_word_embeddings=False), blocks="gpt_neox.layers"
    ),
    "gptj": Species(make=_gpt("GPTJForCausalLM", n_positions=64, rotary_dim=4), blocks=_H),
    "opt": Species(
        make=_hub("OPTForCausalLM", **_OPT, word_embed_proj_dim=WIDTH),
        blocks="model.decoder.layers",
    ),
    # OPT-350m norms after each block, has no final norm, and projects to a narrower unembedding.
    # Each of its blocks draws the streams together, so it is stirred less to keep d(1) large.
    "opt_post_norm": Species(
        make=_hub("OPTForCausalLM", **_OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
        blocks="model.decoder.layers",
        gain=1.4,
    ),
    "bloom": Species(
        make=_hub("BloomForCausalLM", vocab_size=VOCAB, hidden_size=WIDTH, n_layer=3, n_head=4),
        blocks=_H,
        shared=False,
    ),
    "mpt": Species(
        make=_hub("MptForCausalLM", vocab_size=VOCAB, d_model=WIDTH, n_layers=3, n_heads=4),
        blocks="transformer.blocks",
        shared=False,
    ),
    "falcon_rope": Species(make=_hub("FalconForCausalLM", **_FALCON), blocks=_H),
    "falcon_alibi": Species(
        make=_hub(
            "FalconForCausalLM", **_FALCON, alibi=True, parallel_attn=False, multi_query=False
        ),
        blocks=_H,
        shared=False,
    ),
    "llama": Species(make=_llama("LlamaForCausalLM")),
    "mistral": Species(make=_llama("MistralForCausalLM", sliding_window=32)),
    "mistral_window": Species(
        make=_llama("MistralForCausalLM", sliding_window=WINDOW), shared=False
    ),
    "gemma2_window": Species(make=_windowed("Gemma2ForCausalLM", **_GEMMA), shared=False),
    "gemma3_window": Species(
        make=_windowed("Gemma3ForCausalLM", "Gemma3TextConfig", **_GEMMA), shared=False
    ),
    "phi3": Species(make=_llama("Phi3ForCausalLM")),
    "olmo": Species(make=_llama("OlmoForCausalLM", clip_qkv=2.0)),
    "olmo2": Species(make=_llama("Olmo2ForCausalLM")),
    "olmo3_window": Species(
        make=_windowed("Olmo3ForCausalLM", layer_types=[SLIDING, SLIDING, SLIDING, FULL]),
        shared=False,
    ),
    "olmoe": Species(make=_llama("OlmoeForCausalLM", num_experts=4, num_experts_per_tok=2)),
    "mixtral": Species(
        make=_llama("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2)
    ),
    "qwen2": Species(make=_llama("Qwen2ForCausalLM")),
    "qwen3": Species(make=_llama("Qwen3ForCausalLM", head_dim=8)),
    "smollm3": Species(
        make=_llama("SmolLM3ForCausalLM", num_hidden_layers=4, no_rope_layer_interval=2)
    ),
    # Its `get_decoder` gives back the model with its head; attention is in chunks, not windows.
    "llama4_chunked": _no_cache(_llama("Llama4ForCausalLM", "Llama4TextConfig", **_LLAMA_4), _L),
    # Insists on a mask with one row a prompt, where others broadcast.
    "xglm": Species(make=_hub("XGLMForCausalLM", **_XGLM), shared=False),
    "mamba": _no_cache(_hub("MambaForCausalLM", **_DEEP, state_size=8), "backbone.layers"),
    "qwen3_next": _no_cache(_llama("Qwen3NextForCausalLM", **_QWEN3_NEXT), _L),
    "nano_gpt": _no_cache(NanoGPT, _H),
    "lecture_gpt": _no_cache(LectureGPT, "blocks"),
    "lit_gpt": _no_cache(lambda: LitGPT(LitConfig()), _H),
    "gpt_neo_local": _no_cache(_hub("GPTNeoForCausalLM", **_GPT_NEO), _H),
    "linear": _by_hand(_linear_network),
    "step": _by_hand(_step_network),
    "gemma3n": _no_cache(_windowed("Gemma3nForCausalLM", "Gemma3nTextConfig", **_GEMMA_3N), _L),
    "t5": _no_cache(_hub("T5ForConditionalGeneration", "T5Config", **_T5), "decoder.block"),
    "bert": _no_cache(
        _hub("BertForMaskedLM", "BertConfig", **_DEEP, **_BERT), "bert.encoder.layer"
    ),
}

REFUSED = ("gemma3n", "t5", "bert")
"""Models whose stream cannot be cut at the last position."""

HAND_MADE = ("linear", "step")
"""Networks whose slopes are known without measuring."""

DISTRUSTED = ("gpt_neo_local",)
"""Models whose sliding window no cache shows: sharing rows is wrong, and only a check can tell."""

ARCHITECTURES = tuple(name for name in SPECIES if name not in REFUSED + HAND_MADE + DISTRUSTED)
"""Models that must be measured exactly at every layer."""

ALSO_EAGER = ("gpt2", "llama", "olmo2", "mistral_window", "gemma3_window")
"""Models measured under eager attention too; GPT-J, Bloom, MPT and Gemma 2 have nothing else."""
