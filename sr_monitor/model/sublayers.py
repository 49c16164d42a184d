"""Find the attention and the feed-forward of each block by what they do, whatever their names.

A block adds to the stream what its two parts put out, each maybe times a factor. Attention is the
one that changes when earlier tokens do; in a row, the first of them.

    find_sublayers(stream)[3].feed_forward       # a Tap, or None where block 3 has none
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sr_monitor.errors import MissingPartError
from sr_monitor.model.calls import NUM_TOKENS, Call, Recording, recorded
from sr_monitor.model.gates import Gates, find_gates_among
from sr_monitor.model.hooks import editing
from sr_monitor.model.outputs import Tap
from sr_monitor.model.stream import Stream

_SMALLEST_FACTOR = 0.01
"""Residual branches may be scaled; by less than this, a part was only fitted to rounding."""


@dataclass(frozen=True)
class Sublayers:
    """The parts of one block; None where it has none of the kind."""

    attention: Tap | None = None
    """What it adds to the stream from earlier tokens, linear attention included."""
    feed_forward: Tap | None = None
    """What it adds to the stream from each token alone, all experts together."""
    gates: Gates | None = None
    """Those of the feed-forward that every token passes: not those of routed experts."""


_found: WeakKeyDictionary[Stream, Mapping[int, Sublayers]] = WeakKeyDictionary()


def find_sublayers(stream: Stream) -> Mapping[int, Sublayers]:
    """Return the parts of each block after the cut, by its number.

    Runs two short forwards, once for each stream.
    """
    if stream not in _found:
        _found[stream] = _find_sublayers(stream)
    return _found[stream]


def _find_sublayers(stream: Stream) -> dict[int, Sublayers]:
    stream.anatomy.check_blocks_are_whole()
    blocks = dict(enumerate(stream.anatomy.blocks, start=1))
    blocks = {number: block for number, block in blocks.items() if number > stream.layer}
    device, vocabulary = stream.anatomy.device, stream.anatomy.vocabulary or NUM_TOKENS
    prompt = torch.arange(NUM_TOKENS, device=device)[None] % vocabulary
    cut = stream.read(prompt)

    def run(earlier: Mapping[int, Recording]) -> dict[int, Recording]:
        with ExitStack() as stack:
            for number, recording in earlier.items():
                instead = partial(_other_tokens, recording.stream)
                stack.enter_context(editing(blocks[number], instead, before=True))
            found = {each: stack.enter_context(recorded(block)) for each, block in blocks.items()}
            stream.continue_plain(prompt, cut)
        return found

    first = run({})
    second = run(first)
    eps = torch.finfo(stream.precision).eps
    return {number: _sublayers(first[number], second[number], eps) for number in blocks}


def find_gates(stream: Stream) -> dict[int, Gates]:
    """Return the gates of each block after the cut that has some; refuse a model without any."""
    found = {number: parts.gates for number, parts in find_sublayers(stream).items()}
    gates = {number: each for number, each in found.items() if each is not None}
    if not gates:
        raise MissingPartError(
            f"{type(stream.anatomy.core).__name__} has no feed-forward after layer={stream.layer} "
            "whose gates every token passes; routed experts have gates of their own"
        )
    return gates


def find_parts(stream: Stream) -> dict[str, Tap]:
    """Return attentions and feed-forwards after the cut as "attention 3", "feed_forward 3".

    Refuse a model without any.
    """
    found = find_sublayers(stream)
    kinds = {
        **{f"attention {number}": parts.attention for number, parts in found.items()},
        **{f"feed_forward {number}": parts.feed_forward for number, parts in found.items()},
    }
    taps = {name: tap for name, tap in kinds.items() if tap is not None}
    if not taps:
        raise MissingPartError(
            f"{type(stream.anatomy.core).__name__} has no block after layer={stream.layer} that "
            "adds an attention and a feed-forward to the stream"
        )
    return taps


def _other_tokens(hidden: Tensor, _: Tensor) -> Tensor:
    """Return a stream "... token width" with the same last token after other ones."""
    changed = hidden.roll(1, dims=-1)
    changed[..., -1, :] = hidden[..., -1, :]
    return changed


def _sublayers(first: Recording, second: Recording, eps: float) -> Sublayers:
    """Tell the parts from two forwards whose last tokens enter the block alike."""
    *calls, block = first.calls
    paths = [call.path for call in calls]
    calls = [call for call in calls if paths.count(call.path) == 1]
    changed = {call.path: call.made for call in second.calls}
    parts = _parts(block, calls, eps)
    mixing = [part for part in parts if _mixes(part, changed.get(part.path))]
    # What mixes tokens alone in its block, as a state space does, is attention if it says so.
    sure = len(parts) == 2 or any(map(_is_named, mixing))
    attention = mixing[0] if mixing and sure else None
    tap = None if attention is None else Tap(attention.module)
    others = [part for part in parts if part is not attention and (sure or part not in mixing)]
    if not others:
        return Sublayers(attention=tap)
    start = 0 if attention is None else calls.index(attention) + 1
    end = calls.index(others[0]) + 1
    inside = calls[start if start < end else 0 : end]
    return Sublayers(
        attention=tap,
        feed_forward=Tap(others[0].module),
        gates=find_gates_among(inside),
    )


def _parts(block: Call, calls: Sequence[Call], eps: float) -> list[Call]:
    """Return the outermost calls whose vectors, each times a factor, add up to the block's own."""
    if block.given.shape != block.made.shape or not len(block.made):
        return []
    total = block.made - block.given
    rounding = 4 * eps * float(block.given.norm() + block.made.norm())
    allowed = max(1e-4 * float(total.norm()), rounding)
    moving: list[Call] = []
    for call in sorted(calls, key=lambda call: call.depth):
        is_alike = call.made.shape == total.shape and bool(call.made.any())
        if is_alike and not any(torch.equal(call.made, other.made) for other in moving):
            moving.append(call)
    for chosen in (*combinations(moving, 2), *combinations(moving, 1), ()):
        if _adds_up(total, [call.made for call in chosen], allowed):
            return sorted([*chosen, *_still(calls, chosen)][:2], key=calls.index)
    return []


def _adds_up(total: Tensor, vectors: list[Tensor], allowed: float) -> bool:
    if not vectors:
        return float(total.norm()) <= allowed
    columns = torch.stack(vectors, dim=1)  # "width vector"
    factors = torch.linalg.lstsq(columns, total[:, None]).solution
    missing = float((total[:, None] - columns @ factors).norm())
    return missing <= allowed and bool((factors.abs() > _SMALLEST_FACTOR).all())


def _still(calls: Sequence[Call], moving: Sequence[Call]) -> list[Call]:
    """Return the outermost calls that add nothing yet: projections may start at zero."""
    found: list[Call] = []
    for call in sorted(calls, key=lambda call: call.depth):
        others = (*moving, *found)
        apart = not any(call.is_within(other) or other.is_within(call) for other in others)
        if apart and call.has_weights and len(call.made) and not call.made.any():
            found.append(call)
    return found


def _mixes(part: Call, changed: Tensor | None) -> bool:
    """Whether a part looks at earlier tokens: these were others when it made `changed`."""
    if changed is None or not part.made.any():
        return _is_named(part)
    return float((changed - part.made).norm()) > 1e-3 * float(part.made.norm())


def _is_named(part: Call) -> bool:
    return "att" in f"{part.path} {type(part.module).__name__}".lower()
