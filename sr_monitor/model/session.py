"""Open a model for a measurement: check the prompts, guard it, cut it, choose how to run points.

with open_session(model, (prompts_a, prompts_b), options) as session:
a, b = session.share(prompts_a, prompts_b).activations()
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from sr_monitor.errors import InputError, check_kind
from sr_monitor.model.anatomy import Anatomy, LayerPath, dissect
from sr_monitor.model.arithmetic import Arithmetic
from sr_monitor.model.engine import Engine, Way
from sr_monitor.model.forward import Call
from sr_monitor.model.memory import TokenBudget, in_chunks
from sr_monitor.model.precision import Precision, in_precision, tf32_products
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.model.selfcheck import EngineName, choose_engine
from sr_monitor.model.stream import Output, Stream
from sr_monitor.model.undisturbed import undisturbed
from sr_monitor.model.wrappers import is_sharded
from sr_monitor.options import Effect, Options, option

# A few tokens show how a model is built.
_SAMPLE_TOKENS = 8

# One lock for each model, known by its first block, which all its wrappers share.
_locks: WeakKeyDictionary[nn.Module, AbstractContextManager[Any]] = WeakKeyDictionary()


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
        "auto",
        "auto computes in float32, whatever the precision of the run and the type of the weights; "
        "float32 refuses where auto would fall back on run, the precision in force.",
    )
    engine: EngineName = option(
        "auto",
        "How points are run: auto takes the fastest way that agrees with the plain one; shared, "
        "rows and plain force one.",
        effect="nothing",
    )
    layer_path: LayerPath = option(
        None,
        "The path of the list of decoder blocks, or the blocks as a list of modules, where they "
        "are not found by themselves.",
    )
    call: Call | None = option(
        None,
        "How the model is called, where its forward takes more than token ids: a function of the "
        "model and token ids (prompt, token).",
        effect="nothing",
    )
    max_tokens: int | None = option(
        None,
        "How many tokens one forward may take; by default chosen from the device.",
        least=1,
        effect="nothing",
    )

    def __post_init__(self) -> None:
        """Check all options; what names the blocks has to be text, or the blocks themselves."""
        super().__post_init__()
        fix = "pass the name of a list of modules in the model, such as 'model.layers', or a list"
        check_kind("layer_path", self.layer_path, str | Sequence | None, fix)

    def recorded(self, *effects: Effect) -> dict[str, Any]:
        """Return the options with these effects; blocks given as modules are counted."""
        options = super().recorded(*effects)
        if not isinstance(options.get("layer_path"), str | None):
            options["layer_path"] = f"{len(options['layer_path'])} modules"
        return options


@dataclass(frozen=True)
class Session:
    """A model under guard, cut and ready to run points; see `open_session`."""

    engine: Engine
    ranks: RankGroup
    in_step: bool
    """Whether every rank has to run equally many forwards."""
    precision: Precision
    """What was asked for."""

    def tf32_products(self) -> AbstractContextManager[str]:
        """Let a GPU round factors to TF32, for pictures, unless float32 was asked for."""
        return tf32_products(self.precision, self.stream)

    @property
    def stream(self) -> Stream:
        """The model, cut at the layer."""
        return self.engine.stream

    def share(self, *prompts: Int[Tensor, "item token"]) -> "Share":
        """Check prompts, and return this rank's part of them."""
        anatomy = self.stream.anatomy
        check_prompts(prompts, anatomy)
        count = len(prompts[0])
        mine = self.ranks.share(count)
        part = prompts if self.ranks.size == 1 else tuple(item[mine] for item in prompts)
        return Share(self, tuple(item.to(anatomy.device, torch.long) for item in part), count)


@dataclass(frozen=True)
class Share:
    """This rank's part of some prompts, on the model's device."""

    session: Session
    prompts: tuple[Int[Tensor, "item token"], ...]
    count: int
    """How many items there are, on all ranks together."""

    def gather(self, mine: Shaped[Tensor, "mine ..."]) -> Shaped[Tensor, "item ..."]:
        """Return what all ranks found, on the CPU; an item may have several rows."""
        rows_each = len(mine) // len(self.prompts[0])
        return self.session.ranks.gather(mine, self.count * rows_each)

    def activations(self) -> tuple[Float[Tensor, "item d_model"], ...]:
        """Return each prompt's activation at the layer, in float32; run equal prompts once."""
        engine = self.session.engine
        unique, where = torch.cat(self.prompts), torch.arange(sum(map(len, self.prompts)))
        if not self.session.in_step:
            unique, where = torch.unique(unique, dim=0, return_inverse=True)
        pieces: dict[int, Tensor] = {}

        def read(chunk: slice) -> None:
            pieces[chunk.start] = engine.stream.read(unique[chunk]).float()

        in_chunks(len(unique), tokens_each=unique.shape[1], budget=engine.budget, work=read)
        return torch.cat(list(pieces.values()))[where].chunk(len(self.prompts))


@contextmanager
def open_session(
    model: nn.Module,
    examples: Sequence[Int[Tensor, "item token"]],
    options: SessionOptions,
    ranks: RankGroup = ALONE,
    way: Way | None = None,
) -> Iterator[Session]:
    """Guard `model`, cut it, and choose the way to run points, until the session ends.

    `examples` are some of the prompts that will be measured; the first two of each are compared in
    all ways. Each of the `ranks` makes this call. No way faster than `way`, which an earlier
    measurement of the same run took, is considered.
    """
    check_kind("model", model, nn.Module, "pass the model itself, not its name")
    anatomy = dissect(model, options.layer_path)
    check_prompts(examples, anatomy)
    ranks = ranks.in_teams(anatomy.mates)
    in_step = ranks.size > 1 and (is_sharded(model) or ranks.num_teams < ranks.size)
    a, b = (item[:2].to(anatomy.device, torch.long) for item in examples[:2])

    def cut(arithmetic: Arithmetic | None) -> Stream:
        return Stream(
            anatomy,
            layer=options.layer,
            output=options.output,
            sample=a[:1, :_SAMPLE_TOKENS],
            before_call=ranks.sync_errors if in_step else None,
            arithmetic=arithmetic,
            call=options.call,
        )

    with (
        # Without a lock, hooks of two threads would see each other's forwards.
        _locks.setdefault(anatomy.blocks[0], RLock()),
        ranks.failing_together(),
        undisturbed(model),
        in_precision(options.precision, anatomy, cut, ranks if in_step else ALONE) as stream,
    ):
        budget = TokenBudget.for_device(
            anatomy.device, bytes_per_token=stream.bytes_per_token, most=options.max_tokens
        )
        # One budget for all ranks, so that they cut their shares into equally many chunks.
        budget = TokenBudget(ranks.minimum(budget.tokens), fixed=in_step)
        engine = choose_engine(
            stream, a, b, wanted=options.engine, budget=budget, way=way, ranks=ranks
        )
        yield Session(engine, ranks, in_step, options.precision)


def check_prompts(prompts: Sequence[Tensor], anatomy: Anatomy) -> None:
    """Refuse prompts that cannot be measured in this model."""
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
    if count == 0 or num_tokens < 2:
        raise InputError(
            f"prompts of shapes {shapes}: a path runs in the context of earlier tokens; pass at "
            "least 1 prompt of at least 2 tokens"
        )
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
