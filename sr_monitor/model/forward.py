"""Call a model with no more work than is needed, and in step with other ranks.

result = Forward(anatomy, with_logits=True)(prompts)
"""

import inspect
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.model.anatomy import Anatomy
from sr_monitor.model.arithmetic import Arithmetic
from sr_monitor.model.hooks import failing_last, standing_aside
from sr_monitor.model.wrappers import inside_fsdp1

Arrangement = Literal["batch", "row", "sequence"]
"""How prompts are passed: all of them (prompt, token), or one at a time, (1, token) or (token,)."""

Call: TypeAlias = Callable[[nn.Module, Tensor], Any]
"""Calls a model on token ids (prompt, token), or on one prompt at a time."""


@dataclass(frozen=True)
class Forward:
    """A model to be called on prompts, and what is known of it so far."""

    anatomy: Anatomy
    with_logits: bool
    """Whether the model's logits are wanted, or only what they are made from."""
    before_call: Callable[[], None] | None = None
    """Called before each forward, where ranks have to run equally many of them."""
    arithmetic: Arithmetic | None = None
    """The float32 arithmetic in force; None keeps the model's own precision."""
    call: Call | None = None
    """How to call the model, where the user has said so."""
    arrangement: Arrangement = "batch"
    tuple_length: int = 0
    """The length of the tuple that blocks put out; 0 where they put out the stream itself."""
    unembedding: nn.Module | None = None
    """The map to the vocabulary, where it is a module that is known."""

    def __call__(
        self, prompts: Int[Tensor, "prompt token"], /, *, cache: Any = None, **shared: Tensor
    ) -> Any:
        """Run the model once; only Hugging Face models are told of a `cache`, and who shares."""
        if self.before_call is not None:
            self.before_call()
        # (1, token) -> (token,)
        token_ids = prompts.squeeze(0) if self.arrangement == "sequence" else prompts
        asked = self.with_logits or self._can_keep_none
        with ExitStack() as stack:
            if self.before_call is not None:
                # Bring a forward that fails to its end, as other ranks wait inside the model. FSDP1
                # exchanges in a wrapper's forward, around that of the block.
                blocks = [inside_fsdp1(block) for block in self.anatomy.blocks]
                stack.enter_context(failing_last(blocks, self.tuple_length))
            if self.unembedding is not None and not asked:
                stack.enter_context(standing_aside([self.unembedding]))
            if self.call is not None:
                return self.call(self.anatomy.root, token_ids)
            if not self.anatomy.is_hugging_face:
                stack.enter_context(nullcontext() if cache is None else cache.in_use())
                return self.anatomy.root(token_ids)
            kept = {} if cache is None else {"past_key_values": cache}
            switches = self._switches(use_cache=cache is not None)
            return self.anatomy.root(input_ids=token_ids, **kept, **shared, **switches)

    @property
    def _can_keep_none(self) -> bool:
        """Whether a Hugging Face model can be asked for no logits; DTensors cannot be empty."""
        return "logits_to_keep" in self.anatomy.arguments and not self.anatomy.mates

    def _switches(self, *, use_cache: bool) -> dict[str, Any]:
        """Return the arguments by which a Hugging Face model does no more than is needed."""
        switches: dict[str, Any] = {
            "use_cache": use_cache,
            # Experts' balance is computed from them with a mask that has no shared rows.
            "output_router_logits": False,
        }
        if not self.with_logits and self._can_keep_none:
            switches["logits_to_keep"] = torch.zeros(0, dtype=torch.long)
        return {name: switches[name] for name in switches.keys() & self.anatomy.arguments}


def check_takes_token_ids(anatomy: Anatomy) -> None:
    """Refuse a model whose forward needs more than token ids."""
    parameters = inspect.signature(anatomy.core.forward).parameters.values()
    rest = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is Parameter.empty and p.kind not in rest]
    if len(needed) > 1:
        name = type(anatomy.core).__name__
        raise InputError(
            f"{name}.forward needs more than token ids: {', '.join(needed)}; pass call=, a "
            "function of the model and token ids, such as lambda model, ids: model(ids, ...)"
        )
