"""The residual stream of a model, cut at one layer: read it, and continue from given activations.

F(x) is the last position's output when its activation at `layer` is x. Under causal attention no x
can change the earlier tokens' keys and values, so these can be kept.

    stream = Stream(dissect(model), layer=1, output="final_norm", sample=prompts[:1])
    outputs = stream.continue_plain(prompts, stream.read(prompts))
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from functools import wraps
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from sr_monitor.errors import InputError, MissingPartError
from sr_monitor.model.anatomy import Anatomy, check_layer
from sr_monitor.model.arithmetic import Arithmetic
from sr_monitor.model.cache import new_cache, shared_row
from sr_monitor.model.examination import examine
from sr_monitor.model.forward import Call, Forward, check_takes_token_ids
from sr_monitor.model.hooks import (
    capturing,
    editing,
    first_tensor,
    forward_replaced,
    standing_aside,
    with_first_tensor,
)
from sr_monitor.model.outputs import Outputs, Tap

Output = Literal["final_norm", "resid_final", "logits"]


_Rows = TypeVar("_Rows", Tensor, Outputs)


def _in_calls(run: Callable[..., _Rows]) -> Callable[..., _Rows]:
    """Run all rows in one call, or one by one where the model takes one prompt at a time."""

    @wraps(run)
    def in_calls(stream: "Stream", *inputs: Any) -> _Rows:
        if stream._forward.arrangement == "batch":
            return run(stream, *inputs)
        rows: list[Any] = [
            run(stream, *(each[row : row + 1] for each in inputs)) for row in range(len(inputs[0]))
        ]
        join: Any = Outputs.cat if isinstance(rows[0], Outputs) else torch.cat
        joined: _Rows = join(rows)
        return joined

    return in_calls


class Stream:
    """A model's residual stream, cut after block `layer` at the last position.

    Every method expects the model to be guarded (see `undisturbed`), and leaves no hook behind.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        layer: int,
        output: Output,
        sample: Int[Tensor, "1 token"],
        before_call: Callable[[], None] | None = None,
        arithmetic: Arithmetic | None = None,
        call: Call | None = None,
    ) -> None:
        """Run `sample` once to learn what the blocks put out, and refuse what cannot be cut.

        `before_call` is called before each forward of the model.
        """
        check_layer(anatomy, layer)
        self.anatomy = anatomy
        self.layer = layer
        self.output = output
        self._taps: Mapping[str, Tap] = {}
        if call is None and not anatomy.is_hugging_face:
            check_takes_token_ids(anatomy)
        forward = Forward(
            anatomy,
            output == "logits",
            before_call,
            arithmetic,
            call,
            unembedding=anatomy.unembedding,
        )
        self._findings = examine(forward, sample)
        self._forward = self._findings.forward
        if output == "logits":
            self._check_head("output='logits'")

    @property
    def precision(self) -> torch.dtype:
        """The coarsest type that anything is rounded to on the way to F."""
        arithmetic = self._forward.arithmetic
        return (arithmetic and arithmetic.rounded) or self._findings.precision

    @property
    def arithmetic(self) -> str:
        """The name of that type."""
        return str(self.precision).removeprefix("torch.")

    def at(self, layer: int) -> "Stream":
        """Return the same stream, cut at another layer."""
        check_layer(self.anatomy, layer)
        other = copy(self)
        other.layer = layer
        return other

    @_in_calls
    def read(self, prompts: Int[Tensor, "prompt token"]) -> Float[Tensor, "prompt d_model"]:
        """Return the clean activations at `layer`, last position; later blocks stand aside."""
        seen: list[Tensor] = []

        def note(hidden: Tensor) -> None:
            seen.append(last_tokens(hidden, len(prompts)).clone())

        with self._edited(note), self._aside(slice(self.layer, None)):
            self._forward(prompts)
        return seen[0]

    @contextmanager
    def tapping(self, taps: Mapping[str, Tap]) -> Iterator[None]:
        """Read these modules, too, wherever points are run inside the block."""
        before, self._taps = self._taps, taps
        try:
            yield
        finally:
            self._taps = before

    def continue_plain(
        self,
        prompts: Int[Tensor, "row token"],
        activations: Float[Tensor, "row d_model"],
        held: Mapping[str, Float[Tensor, "row width"]] | None = None,
    ) -> Outputs:
        """Return F by definition: run whole prompts, their last activation at `layer` replaced.

        What the taps named in `held` read is replaced by those values.
        """
        return self._continue_plain(prompts, Outputs(activations, held or {}))

    @_in_calls
    def _continue_plain(self, prompts: Int[Tensor, "row token"], given: Outputs) -> Outputs:
        def put(value: Tensor) -> Callable[[Tensor], Tensor]:
            def put_last(hidden: Tensor) -> Tensor:
                hidden = hidden.clone()
                last_tokens(hidden, len(prompts)).copy_(value)
                return hidden

            return put_last

        with self._edited(put(given.final)), ExitStack() as stack:
            self._hold(stack, {name: put(value) for name, value in given.taps.items()})
            captured, tapped = self._capture_all(
                stack, lambda all_: last_tokens(all_, len(prompts))
            )
            self._forward(prompts)
        return Outputs(last_tokens(captured[-1], len(prompts)), _latest(tapped))

    def prefill(self, prompts: Int[Tensor, "context token"]) -> Any:
        """Return the keys and values of each prompt's earlier tokens; None if there is no cache.

        Models without attention caches of the plain kind (Mamba, linear attention, modules that
        are no Hugging Face models) have none, and go the plain way.
        """
        own = self._findings.is_packed or self._forward.arrangement != "batch" or self._forward.call
        cache = None if own else new_cache(self.anatomy)
        if cache is not None:
            self._forward(prompts[:, :-1], cache=cache)
        return cache

    def continue_cached(
        self,
        cache: Any,
        prompts: Int[Tensor, "row token"],
        activations: Float[Tensor, "row point d_model"],
        held: Mapping[str, Float[Tensor, "row width"]] | None = None,
    ) -> Outputs:
        """Return F of many points a row, each as the last position of the row's prompt.

        Points of one row are tokens at one position, under a mask that shows each of them the
        earlier tokens and itself. `held` is as in `continue_plain`, one value for a row.
        """
        num_rows, num_points, _ = activations.shape
        num_earlier = prompts.shape[1] - 1
        shared: dict[str, Tensor] = {}
        if num_points > 1:
            shared = shared_row(
                num_rows, num_points, num_earlier, dtype=self.precision, device=prompts.device
            )
        # (row, 1) -> (row, point): the last token again for each point; only its place counts
        last = prompts[:, -1:].expand(-1, num_points)

        def put(value: Tensor) -> Callable[[Tensor], Tensor]:
            # (row, width) -> (row, point, width), or as flat as what it replaces
            spread = value[:, None].expand(-1, num_points, -1)
            # a copy: some blocks add to it in place
            return lambda hidden: spread.to(hidden).reshape(hidden.shape).clone()

        with (
            self._edited(lambda hidden: activations.to(hidden)),
            self._aside(slice(self.layer)),
            ExitStack() as stack,
        ):
            self._hold(stack, {name: put(value) for name, value in (held or {}).items()})
            # a tap may see (row·point, width)
            captured, tapped = self._capture_all(
                stack, lambda all_: all_.reshape(num_rows, num_points, all_.shape[-1])
            )
            self._forward(last, cache=cache, **shared)
        return Outputs(captured[-1], _latest(tapped))

    def unembed(self, outputs: Float[Tensor, "row d_output"]) -> Float[Tensor, "row vocab"]:
        """Return the next-token logits that the model makes of final vectors, as its forward does.

        The model is called with the vectors in place of its own, so that logits are scaled, capped
        and gathered as in training.
        """
        if self.output == "logits":
            return outputs
        self.check_unembeds()
        return self._unembed(outputs)

    def check_unembeds(self) -> None:
        """Raise `MissingPartError` where F gives no next-token logits."""
        if self.output == "resid_final":
            raise MissingPartError(
                "output='resid_final': next-token logits are made of the final norm's output; pass "
                "output='final_norm', or 'logits'"
            )
        self._check_head("next-token logits")

    @_in_calls
    def _unembed(self, outputs: Float[Tensor, "row d_output"]) -> Float[Tensor, "row vocab"]:
        forward = replace(self._forward, with_logits=True)
        tokens = torch.zeros(len(outputs), 1, dtype=torch.long, device=self.anatomy.device)
        with (
            self._aside(slice(None)),
            self._final_replaced(outputs),
            capturing(self.anatomy.root, _logits) as captured,
        ):
            forward(tokens)
        return last_tokens(captured[-1], len(outputs))

    @property
    def bytes_per_token(self) -> int:
        """Estimate the memory of one token: one block's work, and keys and values of all blocks.

        Keys and values count twice, once kept and once in the rows that grow from them; the inside
        of a block is taken to be four times as wide as the stream.
        """
        floats = self._findings.width * (32 + 4 * len(self.anatomy.blocks))
        if self.output == "logits":
            floats += 3 * (self.anatomy.vocabulary or 0)
        return floats * self._findings.dtype.itemsize

    def _final_replaced(
        self, outputs: Float[Tensor, "row d_output"]
    ) -> AbstractContextManager[None]:
        """Put one final vector a row in the place of the model's own."""
        final, example = self._findings.final, self._findings.final_output

        def shaped(hidden: Tensor) -> Tensor:
            # (row, d_output) -> (row, 1, d_output), or (row, d_output) where prompts are packed
            return outputs.to(hidden)[:, None] if hidden.ndim == 3 else outputs.to(hidden)

        if final is None:
            return editing(self._unembedding(), shaped, before=True)
        instead = with_first_tensor(example, shaped(first_tensor(example)))
        return forward_replaced(final, lambda *_, **__: instead)

    def _edited(self, edit: Callable[[Tensor], Tensor | None]) -> AbstractContextManager[None]:
        """Pass the stream at `layer` through `edit`: what block `layer` puts out."""
        if self.layer == 0:
            return editing(self.anatomy.blocks[0], edit, before=True)
        return editing(self.anatomy.blocks[self.layer - 1], edit, before=False)

    def _captured(self) -> AbstractContextManager[list[Tensor]]:
        """Collect F; entered after an edit, so that it sees what the edit made."""
        if self.output == "logits":
            return capturing(self.anatomy.root, _logits)
        if self.output == "resid_final":
            return capturing(self.anatomy.blocks[-1])
        if self._findings.final is None:
            return capturing(self._unembedding(), before=True)
        return capturing(self._findings.final)

    def _capture_all(
        self, stack: ExitStack, shape: Callable[[Tensor], Tensor]
    ) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Collect F and, copied in `shape`, what the taps see; for as long as `stack` lasts."""
        tapped: dict[str, list[Tensor]] = {name: [] for name in self._taps}
        for name, tap in self._taps.items():

            def note(hidden: Tensor, tap: Tap = tap, seen: list[Tensor] = tapped[name]) -> None:
                seen.append(tap.keep(shape(hidden)) if tap.keep else shape(hidden).clone())

            stack.enter_context(editing(tap.module, note, before=tap.before))
        return stack.enter_context(self._captured()), tapped

    def _hold(self, stack: ExitStack, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        for name, edit in edits.items():
            tap = self._taps[name]
            stack.enter_context(editing(tap.module, edit, before=tap.before))

    def _unembedding(self) -> nn.Module:
        """Return the module whose input is the only place where the final vector shows."""
        assert self._forward.unembedding is not None
        return self._forward.unembedding

    def _aside(self, blocks: slice) -> AbstractContextManager[None]:
        return standing_aside(self.anatomy.blocks[blocks], self._forward.tuple_length)

    def _check_head(self, wanted: str) -> None:
        head = self.anatomy.unembedding or self._forward.unembedding
        if self.anatomy.is_hugging_face and head is None:
            raise MissingPartError(
                f"{wanted}: {type(self.anatomy.core).__name__} has no unembedding; pass the model "
                "with its head (AutoModelForCausalLM), or output='final_norm'"
            )


def last_tokens(hidden: Shaped[Tensor, "..."], num_prompts: int) -> Shaped[Tensor, "prompt width"]:
    """View the last token's vector of each prompt, in a batch or in prompts packed in a row."""
    if hidden.ndim == 2 and len(hidden) % num_prompts == 0:
        # (prompt·token, width) -> (prompt, token, width)
        hidden = hidden.view(num_prompts, -1, hidden.shape[-1])
    if hidden.ndim != 3 or len(hidden) != num_prompts:
        raise InputError(
            f"{num_prompts} prompts gave vectors {tuple(hidden.shape)}, not (prompt, token, width) "
            "or (prompt·token, width): no last token can be told; pass another output="
        )
    return hidden[:, -1]


def _latest(tapped: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: seen[-1] for name, seen in tapped.items()}


def _logits(result: Any) -> Any:
    named = result.get("logits") if isinstance(result, dict) else getattr(result, "logits", None)
    return first_tensor(result) if named is None else named
