"""One measurement's preparation, the same for paths and slices: check, guard, cut, choose.

Everything a caller can get wrong about the model or the prompts is refused here.

    with open_session(model, (prompts_a, prompts_b), options) as session:
        a, b = session.activations()
        session.engine.distances(...)
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from sr_monitor.errors import InputError, check_kind
from sr_monitor.model.anatomy import Anatomy, dissect
from sr_monitor.model.engine import Engine, EngineName, choose_engine
from sr_monitor.model.memory import TokenBudget, in_chunks
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.model.stream import Output, Stream
from sr_monitor.model.undisturbed import undisturbed
from sr_monitor.model.wrappers import is_sharded, without_autocast_patch
from sr_monitor.options import Options, option

Precision = Literal["run", "float32"]

# How a model is built shows on a few tokens.
_SAMPLE_TOKENS = 8

_turns: WeakKeyDictionary[nn.Module, AbstractContextManager[Any]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class SessionOptions(Options):
    """How a model is cut and run, whatever is measured in it."""

    layer: int = option(
        1, "Where the stream is cut: 0 is the embedding output, k after the k-th block.", least=0
    )
    output: Output = option(
        "final_norm",
        "What F is: final_norm is the vector the unembedding reads, resid_final the one before "
        "the final norm, logits what comes out of the unembedding.",
    )
    precision: Precision = option(
        "run",
        "run is the precision in force; float32 is full precision, without autocast and TF32, "
        "where the weights are float32.",
    )
    engine: EngineName = option(
        "auto",
        "How points are run: auto takes the fastest way that agrees with the plain one; shared, "
        "rows and plain force one.",
        effect="nothing",
    )
    layer_path: str | None = option(
        None, "The path of the list of decoder blocks, where it is not found by itself."
    )
    max_tokens: int | None = option(
        None,
        "How many tokens one forward may take; by default chosen from the device.",
        least=1,
        effect="nothing",
    )

    def __post_init__(self) -> None:
        """Refuse what no model can be measured with."""
        super().__post_init__()
        fix = "pass the name of a list of modules in the model, such as 'model.layers'"
        check_kind("layer_path", self.layer_path, str | None, fix)


@dataclass(frozen=True)
class Session:
    """A model under guard, cut and ready, and this process's share of the prompts on its device."""

    engine: Engine
    prompts: tuple[Int[Tensor, "item token"], ...]
    count: int
    """How many items there are, on all processes together."""
    ranks: RankGroup
    in_step: bool
    """Whether every process has to run equally many forwards."""

    def gather(self, mine: Shaped[Tensor, "mine ..."]) -> Shaped[Tensor, "item ..."]:
        """Everybody's results, on the CPU."""
        return self.ranks.gather(mine, self.count)

    def activations(self) -> tuple[Float[Tensor, "item d_model"], ...]:
        """Every prompt's activation at the layer, in float32; a repeated prompt is run once."""
        unique, where = torch.cat(self.prompts), torch.arange(sum(map(len, self.prompts)))
        if not self.in_step:
            unique, where = torch.unique(unique, dim=0, return_inverse=True)
        pieces: dict[int, Tensor] = {}

        def read(chunk: slice) -> None:
            pieces[chunk.start] = self.engine.stream.read(unique[chunk]).float()

        in_chunks(len(unique), tokens_each=unique.shape[1], budget=self.engine.budget, work=read)
        return torch.cat(list(pieces.values()))[where].chunk(len(self.prompts))


@contextmanager
def open_session(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, "item token"]],
    options: SessionOptions,
    ranks: RankGroup = ALONE,
) -> Iterator[Session]:
    """Guards `model`, checks everything that was asked for, and picks the way to measure."""
    check_kind("model", model, nn.Module, "pass the model itself, not its name")
    anatomy = dissect(model, options.layer_path)
    _check_prompts(prompts, anatomy)
    in_step = ranks.size > 1 and is_sharded(model)
    placed = tuple(item.to(anatomy.device, torch.long) for item in prompts)
    with (
        _turn(anatomy),
        ranks.failing_together(),
        undisturbed(model),
        _precision(anatomy, options.precision),
    ):
        stream = Stream(
            anatomy,
            layer=options.layer,
            output=options.output,
            sample=placed[0][:1, :_SAMPLE_TOKENS],
            before_call=ranks.sync_errors if in_step else None,
        )
        _check_precision(stream, options.precision)
        budget = _budget(stream, options.max_tokens, ranks, in_step)
        engine = choose_engine(
            stream,
            placed[0],
            placed[1],
            wanted=options.engine,
            budget=budget,
            ranks=ranks if in_step else ALONE,
        )
        names = get_args(EngineName)
        engine.name = names[ranks.broadcast_number(names.index(engine.name))]
        count = len(placed[0])
        mine = ranks.share(count).to(anatomy.device)
        share = placed if ranks.size == 1 else tuple(item[mine] for item in placed)
        yield Session(engine, share, count, ranks, in_step)


def _turn(anatomy: Anatomy) -> AbstractContextManager[Any]:
    """Held while a model is measured: hooks of two threads would see one another's forwards."""
    # By its first block, which all wrappers of a model share.
    return _turns.setdefault(anatomy.blocks[0], RLock())


def _budget(stream: Stream, max_tokens: int | None, ranks: RankGroup, in_step: bool) -> TokenBudget:
    """The same on every process, so that all cut their shares into as many chunks."""
    device = stream.anatomy.device
    budget = (
        TokenBudget.for_device(device, bytes_per_token=stream.bytes_per_token)
        if max_tokens is None
        else TokenBudget.of(max_tokens)
    )
    return TokenBudget(ranks.minimum(budget.tokens), fixed=in_step)


@contextmanager
def _precision(anatomy: Anatomy, wanted: Precision) -> Iterator[None]:
    """The run's own precision, or full precision: no autocast, no TF32."""
    if wanted == "run":
        yield
        return
    matmul = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(without_autocast_patch(anatomy.root))
        stack.enter_context(torch.autocast(anatomy.device.type, enabled=False))
        stack.callback(torch.set_float32_matmul_precision, matmul)
        torch.set_float32_matmul_precision("highest")
        yield


def _check_precision(stream: Stream, wanted: Precision) -> None:
    if wanted == "float32" and stream.precision != torch.float32:
        raise InputError(
            f"precision='float32': the weights or the sharding run {stream.precision}; pass "
            "precision='run', or keep the weights in float32"
        )


def _check_prompts(prompts: Sequence[Tensor], anatomy: Anatomy) -> None:
    for item in prompts:
        check_kind("prompts", item, Tensor, "pass token ids, a LongTensor (item, token)")
    shapes = ", ".join(str(tuple(item.shape)) for item in prompts)
    if any(item.ndim != 2 or item.shape != prompts[0].shape for item in prompts):
        raise InputError(
            f"prompts of shapes {shapes}: all must have the same shape (item, token); cut them to "
            "one length and pass as many of one as of the other"
        )
    if any(item.is_floating_point() or item.is_complex() for item in prompts):
        types = ", ".join(str(item.dtype) for item in prompts)
        raise InputError(f"prompts of types {types}: pass token ids, LongTensors (item, token)")
    count, num_tokens = prompts[0].shape
    if count == 0:
        raise InputError(f"prompts of shapes {shapes}: there is no prompt in them; pass at least 1")
    if num_tokens < 2:
        raise InputError(
            f"prompts of {num_tokens} token: a path runs in the context of earlier tokens; pass "
            "prompts of at least 2 tokens"
        )
    _check_range(prompts, anatomy, num_tokens)


def _check_range(prompts: Sequence[Tensor], anatomy: Anatomy, num_tokens: int) -> None:
    name = type(anatomy.core).__name__
    if anatomy.max_tokens is not None and num_tokens > anatomy.max_tokens:
        raise InputError(
            f"prompts of {num_tokens} tokens: {name} has positions for {anatomy.max_tokens}; "
            "pass shorter prompts"
        )
    lowest = min(int(item.min()) for item in prompts)
    highest = max(int(item.max()) for item in prompts)
    if lowest < 0 or (anatomy.vocabulary is not None and highest >= anatomy.vocabulary):
        raise InputError(
            f"prompts hold token ids from {lowest} to {highest}: {name} knows 0 to "
            f"{(anatomy.vocabulary or 0) - 1}; tokenise them with the model's own tokenizer"
        )
