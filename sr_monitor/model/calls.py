"""Record what a block's modules make of the last token, in one short forward.

with recorded(block) as recording:
    stream.continue_plain(prompt, activation)
recording.calls[-1].made                     # what the block puts out, all its modules before it
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr_monitor.model.hooks import first_tensor

NUM_TOKENS = 8
"""The length of the prompt that is run while calls are recorded."""


@dataclass(eq=False)
class Call:
    """One call of a module: the last token's vector before and after it, in double precision.

    Empty for what has no row for each token.
    """

    path: str
    """Within the block."""
    module: nn.Module
    given: Float[Tensor, " given"]
    made: Float[Tensor, " made"]

    @property
    def depth(self) -> int:
        """How many modules of the block it is inside of."""
        return self.path.count(".")

    @property
    def has_weights(self) -> bool:
        """Whether the module, or one inside it, has parameters."""
        return any(True for _ in self.module.parameters())

    def is_within(self, other: "Call") -> bool:
        """Whether its module is inside the other's, or the same."""
        return f"{self.path}.".startswith(f"{other.path}.")


@dataclass(eq=False)
class Recording:
    """The calls of a block in the order in which they end, its own the last."""

    calls: list[Call] = field(default_factory=list)
    stream: Tensor = field(default_factory=lambda: torch.empty(0))
    """All tokens, as the block takes them."""


@contextmanager
def recorded(block: nn.Module) -> Iterator[Recording]:
    """Record one forward of a block."""
    recording, open_calls = Recording(), list[Call]()
    paths = {module: path for path, module in block.named_modules()}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
        given = next(tensors, None)
        if module is block and given is not None:
            recording.stream = given.clone()
        open_calls.append(Call(paths[module], module, _last_token(given), _last_token(None)))

    def after(module: nn.Module, _: Any, output: Any) -> None:
        call = open_calls.pop()
        call.made = _last_token(first_tensor(output))
        recording.calls.append(call)

    with ExitStack() as stack:
        for module in paths:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield recording


def _last_token(hidden: Any) -> Float[Tensor, " width"]:
    """Copy the last row of (1, token, width) or (token, width)."""
    is_stream = isinstance(hidden, Tensor) and hidden.is_floating_point() and hidden.ndim > 1
    if not is_stream or hidden.numel() != NUM_TOKENS * hidden.shape[-1]:
        return torch.empty(0, dtype=torch.float64)
    # (1, token, width) -> (token, width)
    last: Tensor = hidden.reshape(NUM_TOKENS, -1)[-1]
    return last.detach().double().cpu()
