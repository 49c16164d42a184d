"""Look at a model once before anything is measured: what its blocks and last modules put out.

Most models take prompts as one batch, and their blocks put out (prompt, token, width). Some pack
them into one stream of (token, width), in which prompts may see one another. The arrangement is
found by running two prompts that differ in their last token.

    findings = examine(Forward(anatomy, with_logits=False), sample)
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sr_monitor.errors import (
    InputError,
    NothingFitsError,
    PeerError,
    first_line,
    is_out_of_memory,
)
from sr_monitor.model.anatomy import Anatomy
from sr_monitor.model.forward import Arrangement, Forward
from sr_monitor.model.hooks import first_tensor
from sr_monitor.model.spread import whole


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a running model shows of its residual stream."""

    forward: Forward
    is_packed: bool
    """Whether prompts come as one stream (token, width), one after another."""
    width: int
    dtype: torch.dtype
    precision: torch.dtype
    """The coarsest type the stream goes through: its own, the weights', or autocast's."""
    final: nn.Module | None
    """The module that puts out the final vector; None where only the unembedding reads it."""
    final_output: Any


@dataclass
class _Look:
    """What the modules put out in one forward: blocks, and what ended after the last block."""

    blocks: dict[int, Any] = field(default_factory=dict)
    later: list[tuple[nn.Module, Any]] = field(default_factory=list)
    autocast: torch.dtype | None = None


class _Unfit(InputError):
    """No stream comes out of the prompts as they are arranged; another arrangement may give one."""


def examine(forward: Forward, sample: Int[Tensor, "1 token"]) -> Findings:
    """Run `sample` and find the stream, in the first arrangement of prompts that gives one.

    Where ranks run in step, a first error is final: it may be one rank's alone.
    """
    other = sample.clone()
    other[:, -1] = torch.where(other[:, -1] > 0, other[:, -1] - 1, other[:, -1] + 1)
    pair = torch.cat([sample, other])
    errors: list[Exception] = []
    in_step = forward.before_call is not None
    try:
        for arrangement in get_args(Arrangement):
            try:
                return _find(replace(forward, arrangement=arrangement), pair)
            except _Unfit as error:
                errors.append(error)
            except Exception as error:
                if is_out_of_memory(error):  # two prompts are the least there is
                    raise NothingFitsError(first_line(error)) from error
                is_final = isinstance(error, InputError | PeerError)
                if is_final or (in_step and not errors):
                    raise
                errors.append(error)
        raise errors[0]
    finally:
        errors.clear()  # each holds this frame, which holds it


def tolerance(dtype: torch.dtype) -> float:
    """Return how far two ways to one vector may differ, relative to its scale, in `dtype`."""
    return max(1e-4, 16 * torch.finfo(dtype).eps)


def _find(forward: Forward, pair: Int[Tensor, "2 token"]) -> Findings:
    anatomy = forward.anatomy
    name = type(anatomy.core).__name__
    looks, stream = _run(forward, pair)
    last = looks[-1]
    output = last.blocks[len(anatomy.blocks) - 1]
    hidden = whole(first_tensor(output))
    precision = (
        _coarsest(anatomy.blocks, hidden.dtype, last.autocast)
        if forward.arithmetic is None
        else forward.arithmetic.rounded or hidden.dtype
    )
    if hidden.ndim == 2 and forward.arrangement == "batch":
        _, alone = _run(replace(forward, arrangement="row"), pair)
        if (gap := _gap(stream, alone)) > tolerance(precision):
            raise _Unfit(
                f"{name} packs prompts into one stream in which they see one another: alone, they "
                f"give another one, by {gap:.2g} of its length"
            )
    if (gap := _gap(*stream[:, :-1])) > tolerance(precision):
        if (again := _gap(stream, _run(forward, pair)[1])) > tolerance(precision):
            raise InputError(
                f"{name} is random: the same prompts gave another stream, by {again:.2g} of its "
                "length; turn off what draws in its forward, in eval mode too"
            )
        raise InputError(
            f"{name} is not causal: with another last token, its earlier tokens' stream moved by "
            f"{gap:.2g} of its length; measure a decoder-only (causal) model"
        )
    final, unembedding = anatomy.final, anatomy.unembedding
    if final is None:
        final, unembedding = _find_final(anatomy, last.later, hidden.shape[-1])
    outputs: dict[nn.Module | None, Any] = dict(last.later)
    length = 0 if isinstance(output, Tensor) else len(output)
    return Findings(
        forward=replace(forward, tuple_length=length, unembedding=unembedding),
        is_packed=hidden.ndim == 2,
        width=hidden.shape[-1],
        dtype=hidden.dtype,
        precision=precision,
        final=final,
        final_output=outputs.get(final, output),
    )


def _run(
    forward: Forward, pair: Int[Tensor, "2 token"]
) -> tuple[list[_Look], Float[Tensor, "2 position width"]]:
    looks, streams = [], []
    for prompts in [pair] if forward.arrangement == "batch" else [pair[:1], pair[1:]]:
        look = _look(forward, prompts)
        _check_blocks(forward.anatomy, look, prompts)
        hidden = whole(first_tensor(look.blocks[len(look.blocks) - 1]))
        # packed (prompt·token, width) -> (prompt, token, width)
        streams.append(hidden if hidden.ndim == 3 else hidden.view(*prompts.shape, -1))
        looks.append(look)
    return looks, torch.cat(streams)


def _look(forward: Forward, prompts: Int[Tensor, "prompt token"]) -> _Look:
    """Run one forward with a hook on every module that is not inside a block."""
    look, anatomy = _Look(), forward.anatomy
    number = {block: index for index, block in enumerate(anatomy.blocks)}
    inside = {module for block in number for module in block.modules()}
    device = anatomy.device.type

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if module in number:
            look.blocks[number[module]] = output
            if torch.is_autocast_enabled(device):  # around the measurement, or inside the forward
                look.autocast = torch.get_autocast_dtype(device)
        elif len(look.blocks) == len(number):
            look.later.append((module, output))

    with ExitStack() as stack:
        for module in anatomy.core.modules():
            if module in number or module not in inside:
                stack.callback(module.register_forward_hook(note).remove)
        forward(prompts)
    return look


def _check_blocks(anatomy: Anatomy, look: _Look, prompts: Int[Tensor, "prompt token"]) -> None:
    name = type(anatomy.core).__name__
    if len(look.blocks) < len(anatomy.blocks):
        raise InputError(
            f"only {len(look.blocks)} of {len(anatomy.blocks)} blocks of {name} were seen to run "
            "on plain text: it skips some, or runs compiled or exported code that ignores hooks; "
            "pass a text model, as the module it was made from"
        )
    for index, output in look.blocks.items():
        hidden = first_tensor(output)
        parts = output if isinstance(output, tuple | list) else [hidden]
        shapes = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in parts]
        if not _is_stream(hidden, prompts) or shapes.count(tuple(hidden.shape)) > 1:
            raise _Unfit(
                f"block {index + 1} of {name} puts out {', '.join(map(str, shapes))}, not one "
                "tensor of (prompt, token, width): there is no one activation to replace; this "
                "architecture cannot be measured"
            )
        if hidden.ndim == 3 and hidden.shape[1] < prompts.shape[1] and len(anatomy.mates) > 1:
            raise InputError(
                f"block {index + 1} of {name} puts out {hidden.shape[1]} of {prompts.shape[1]} "
                "tokens as a plain tensor: it is sequence parallel, and how its ranks divide the "
                "tokens is not known; have its blocks put out DTensors (use_local_output=False), "
                "or measure saved checkpoints instead"
            )


def _is_stream(hidden: Any, prompts: Int[Tensor, "prompt token"]) -> bool:
    """Whether this is (prompt, token, width) or (prompt·token, width)."""
    if not isinstance(hidden, Tensor):
        return False
    # Some models put tokens of their own before the prompt's, so a batch may be longer.
    return (hidden.ndim, *hidden.shape[:1]) in ((3, len(prompts)), (2, prompts.numel()))


def _gap(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> float:
    """Return how far two tensors are apart, as a share of the length of one."""
    return float((one.float() - other.float()).norm() / one.float().norm())


def _coarsest(
    blocks: Sequence[nn.Module], dtype: torch.dtype, autocast: torch.dtype | None
) -> torch.dtype:
    weights = (weight for block in blocks for weight in block.parameters())
    # Weights of one byte are packed, and unpacked for the arithmetic.
    types = {w.dtype for w in weights if w.is_floating_point() and w.itemsize > 1}
    types |= {dtype} if autocast is None else {dtype, autocast}
    return max(types, key=lambda kind: torch.finfo(kind).eps)


def _find_final(
    anatomy: Anatomy, later: Sequence[tuple[nn.Module, Any]], width: int
) -> tuple[nn.Module | None, nn.Module | None]:
    """Return the last module that puts out the stream's width, and the map that reads it."""
    maps = [module for module, _ in later if _maps_to_vocabulary(module, anatomy)]
    if maps and not anatomy.is_hugging_face:
        return None, maps[-1]
    final, unembedding = anatomy.blocks[-1], anatomy.unembedding
    for module, output in later:
        hidden = first_tensor(output)
        if module is anatomy.core or not isinstance(hidden, Tensor) or hidden.numel() == 0:
            continue  # numel() == 0: the unembedding of no position at all
        if hidden.shape[-1] == width and not _maps_to_vocabulary(module, anatomy):
            final, unembedding = module, None
        elif unembedding is None and isinstance(module, nn.Linear):
            unembedding = module
    return final, unembedding


def _maps_to_vocabulary(module: nn.Module, anatomy: Anatomy) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == anatomy.vocabulary
