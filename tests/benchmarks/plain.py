"""The plain way, as an offline script does it: whole prompts, one forward pass an alpha.

Independent of the library: a hook on the second block, logits and all, as in the authors' scripts.
"""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def plain_paths(
    model: Any, prompts_a: Tensor, prompts_b: Tensor, alphas: Tensor, *, logits: bool
) -> Tensor:
    """Distances d "pair step" at layer 1; `logits`: whether the unembedding is computed too."""
    keep = {} if logits else {"logits_to_keep": torch.zeros(0, dtype=torch.long)}
    blocks, decoder = model.model.layers, model.model
    seen: dict[str, Tensor] = {}

    def run(prompts: Tensor, activations: Tensor | None) -> tuple[Tensor, Tensor]:
        def replace(_: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0].clone()
            seen["read"] = hidden[:, -1].clone()
            if activations is not None:
                hidden[:, -1] = activations.to(hidden.dtype)
            return (hidden, *args[1:]), kwargs

        def note(_: Any, __: Any, output: Any) -> None:
            seen["final"] = output.last_hidden_state[:, -1].float()

        handles = [
            blocks[1].register_forward_pre_hook(replace, with_kwargs=True),
            decoder.register_forward_hook(note),
        ]
        try:
            model(input_ids=prompts, use_cache=False, **keep)
        finally:
            for handle in handles:
                handle.remove()
        return seen["read"].float(), seen["final"]

    a, clean = run(prompts_a, None)
    b, _ = run(prompts_b, None)
    rows = []
    for alpha in alphas.tolist():
        _, final = run(prompts_a, (1 - alpha) * a + alpha * b)
        rows.append((final - clean).norm(dim=-1))
    return torch.stack(rows, dim=1)
