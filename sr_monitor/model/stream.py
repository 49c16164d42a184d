"""The residual stream of a model, cut at one layer: read it, and continue from given activations.

`layer` counts blocks: 0 is the embedding output, k the stream after the k-th block. Only the last
position is ever cut; F(x) is the last position's output when its activation at `layer` is x.
Two ways give the same F: `continue_plain` runs whole prompts with one activation replaced, the
definition; `continue_cached` runs only the last position on the earlier tokens' keys and values,
which under causal attention no x can change.

    stream = Stream(dissect(model), layer=1, output="final_norm", sample=prompts[:1])
    outputs = stream.continue_plain(prompts, stream.read(prompts))
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.model.anatomy import Anatomy, check_layer
from sr_monitor.model.hooks import (
    capturing,
    editing,
    failing_last,
    first_tensor,
    standing_aside,
)
from sr_monitor.model.wrappers import inside_fsdp1

Output = Literal["final_norm", "resid_final", "logits"]

_PLAIN_CACHE_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer"}


class Stream:
    """A model's residual stream, cut after block `layer` at the last position.

    Every method expects the model in eval mode without gradients (see `undisturbed`), and leaves
    no hook behind.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        layer: int,
        output: Output,
        sample: Int[Tensor, "1 token"],
        before_call: Callable[[], None] | None = None,
    ) -> None:
        """Runs `sample` once to learn what the blocks put out, and refuses what cannot be cut.

        `before_call` is called before each forward of the model.
        """
        self._before_call = before_call
        self.layer = layer
        self.output = output
        self.anatomy = anatomy
        self.num_blocks = len(anatomy.blocks)
        if len(set(anatomy.blocks)) < self.num_blocks:
            raise InputError(
                f"{type(anatomy.core).__name__} uses the same module as more than one block: a "
                "layer cannot be told by it; this architecture cannot be measured"
            )
        check_layer(anatomy, layer)
        self._unembedding = anatomy.unembedding
        self._weight_types = _floating_types(anatomy.blocks)
        self._tuple_length = 0
        self._autocast: torch.dtype | None = None
        self.dtype = torch.float32
        self.width = 0
        self._examine(sample)
        self._check_output()

    # ---- what is asked of it -------------------------------------------------------------------

    def read(self, prompts: Int[Tensor, "prompt token"]) -> Float[Tensor, "prompt d_model"]:
        """The clean activations at `layer`, last position; later blocks stand aside."""
        seen: list[Tensor] = []

        def note(hidden: Tensor) -> None:
            seen.append(hidden[:, -1].clone())

        with self._edited(note), self._aside(slice(self.layer, None)):
            self._call(prompts, use_cache=False)
        return seen[0]

    def continue_plain(
        self, prompts: Int[Tensor, "row token"], activations: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row d_output"]:
        """F by definition: each whole prompt, with its last activation at `layer` replaced."""

        def put_last(hidden: Tensor) -> Tensor:
            hidden = hidden.clone()
            hidden[:, -1] = activations.to(hidden)
            return hidden

        with self._edited(put_last), self._captured() as captured:
            self._call(prompts, use_cache=False)
        return captured[-1][:, -1]

    def prefill(self, prompts: Int[Tensor, "context token"]) -> Any:
        """The keys and values of each prompt's earlier tokens; None where no such cache exists.

        Models without attention caches of the plain kind (Mamba, linear attention, modules that
        are no Hugging Face models) have none, and go the plain way.
        """
        cache = self._new_cache()
        if cache is not None:
            self._call(prompts[:, :-1], use_cache=True, past_key_values=cache)
        return cache

    def continue_cached(
        self,
        cache: Any,
        prompts: Int[Tensor, "row token"],
        activations: Float[Tensor, "row point d_model"],
    ) -> Float[Tensor, "row point d_output"]:
        """F of many points a row, each as the last position of the row's prompt.

        Several points share a row as tokens at one position, under a mask that shows each of them
        the earlier tokens and itself.
        """
        num_rows, num_points, _ = activations.shape
        num_earlier = prompts.shape[1] - 1

        def put_all(hidden: Tensor) -> Tensor:
            return activations.to(hidden)

        shared = {}
        if num_points > 1:
            position = torch.full((num_rows, num_points), num_earlier, device=prompts.device)
            shared = {
                "position_ids": position,
                "attention_mask": self._shared_mask(num_earlier, num_points, prompts.device).expand(
                    num_rows, -1, -1, -1
                ),
            }
        last_tokens = prompts[:, -1:].expand(-1, num_points)
        with (
            self._edited(put_all),
            self._aside(slice(self.layer)),
            self._captured() as captured,
        ):
            self._call(last_tokens, use_cache=True, past_key_values=cache, **shared)
        return captured[-1]

    def can_share_rows(self, cache: Any, num_earlier: int) -> bool:
        """Whether several points may stand in one row: masks and positions are taken as given."""
        config = self.anatomy.config
        return (
            {"position_ids", "attention_mask"} <= self.anatomy.arguments
            and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
            and not getattr(config, "alibi", False)
            and all(
                layer.keys.shape[-2] == num_earlier
                for layer in cache.layers
                if layer.is_initialized
            )
        )

    @property
    def precision(self) -> torch.dtype:
        """The coarsest type the stream goes through: its own, the weights', or autocast's."""
        types = [self.dtype, *self._weight_types]
        if self._autocast is not None:  # around the measurement, or inside the model's forward
            types.append(self._autocast)
        return max(types, key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def bytes_per_token(self) -> int:
        """About what a token takes while it runs: one block's work, and keys and values of all.

        Keys and values count twice, once kept and once in the rows that grow from them; the
        inside of a block is reckoned four times as wide as the stream.
        """
        floats = self.width * (32 + 4 * self.num_blocks)
        if self.output == "logits":
            floats += 3 * (self.anatomy.vocabulary or 0)
        return floats * self.dtype.itemsize

    # ---- how the model is run ------------------------------------------------------------------

    def _call(self, token_ids: Tensor, *, use_cache: bool, **cached: Any) -> None:
        anatomy = self.anatomy
        if self._before_call is not None:
            self._before_call()
        if not anatomy.is_hugging_face:
            with self._in_step(), self._without_unembedding():
                anatomy.root(token_ids)
            return
        if "use_cache" in anatomy.arguments:
            cached["use_cache"] = use_cache
        if self.output != "logits" and "logits_to_keep" in anatomy.arguments:
            cached["logits_to_keep"] = torch.zeros(0, dtype=torch.long)
        if "output_router_logits" in anatomy.arguments:
            # The balance of experts is reckoned from them with a mask that has no shared rows.
            cached["output_router_logits"] = False
        with self._in_step(), self._without_unembedding():
            anatomy.root(input_ids=token_ids, **cached)

    def _in_step(self) -> AbstractContextManager[None]:
        """Where others wait inside the model, a forward that fails is brought to its end."""
        if self._before_call is None:
            return nullcontext()
        # FSDP1 exchanges in a wrapper's forward, around that of the block.
        blocks = [inside_fsdp1(block) for block in self.anatomy.blocks]
        return failing_last(blocks, self._tuple_length)

    def _without_unembedding(self) -> AbstractContextManager[None]:
        """Spares the map to the vocabulary where the model cannot be asked to leave it out."""
        asked = self.output == "logits" or "logits_to_keep" in self.anatomy.arguments
        if self._unembedding is None or asked:
            return nullcontext()
        return standing_aside([self._unembedding])

    def _new_cache(self) -> Any:
        anatomy = self.anatomy
        if not (anatomy.is_hugging_face and "past_key_values" in anatomy.arguments):
            return None
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=anatomy.config)
        kinds = {type(layer).__name__ for layer in cache.layers}
        return cache if kinds <= _PLAIN_CACHE_LAYERS else None

    def _shared_mask(
        self, num_earlier: int, num_points: int, device: torch.device
    ) -> Float[Tensor, "1 1 point key"]:
        # A float mask, because eager attention adds it and would add a bool one as 0 and 1.
        others = torch.full((num_points, num_points), float("-inf"), device=device)
        others = others.to(self.precision)
        others.fill_diagonal_(0.0)
        earlier = others.new_zeros(num_points, num_earlier)
        return torch.cat([earlier, others], dim=1)[None, None]

    def _edited(self, edit: Callable[[Tensor], Tensor | None]) -> AbstractContextManager[None]:
        """Passes the stream at `layer` through `edit`."""
        if self.layer < self.num_blocks:
            return editing(self.anatomy.blocks[self.layer], edit, before=True)
        return editing(self.anatomy.blocks[-1], edit, before=False)

    def _captured(self) -> AbstractContextManager[list[Tensor]]:
        """Collects F; entered after an edit, so that it sees what the edit made."""
        if self.output == "logits":
            return capturing(self.anatomy.root, _logits)
        if self.output == "resid_final":
            return capturing(self.anatomy.blocks[-1], first_tensor)
        if self.anatomy.final is None:
            assert self._unembedding is not None
            return capturing(self._unembedding, first_tensor, before=True)
        return capturing(self.anatomy.final, first_tensor)

    def _aside(self, blocks: slice) -> AbstractContextManager[None]:
        """Lets some blocks hand the stream through unchanged."""
        return standing_aside(self.anatomy.blocks[blocks], self._tuple_length)

    # ---- the one look at the model before anything is measured ---------------------------------

    def _examine(self, sample: Int[Tensor, "1 token"]) -> None:
        """Learns the blocks' outputs, finds the final vector, checks the stream and causality."""
        other = sample.clone()
        other[:, -1] = torch.where(other[:, -1] > 0, other[:, -1] - 1, other[:, -1] + 1)
        outputs: dict[int, Any] = {}
        later: list[tuple[nn.Module, Any]] = []
        number = {block: index for index, block in enumerate(self.anatomy.blocks)}
        inside = {module for block in number for module in block.modules()}

        def note(module: nn.Module, _: Any, output: Any) -> None:
            if module in number:
                outputs[number[module]] = output
                if torch.is_autocast_enabled(self.anatomy.device.type):
                    self._autocast = torch.get_autocast_dtype(self.anatomy.device.type)
            elif len(outputs) == self.num_blocks:
                later.append((module, first_tensor(output)))

        watched = [m for m in self.anatomy.core.modules() if m in number or m not in inside]
        with ExitStack() as stack:
            for module in watched:
                stack.callback(module.register_forward_hook(note).remove)
            self._call(torch.cat([sample, other]), use_cache=False)
        self._check_blocks(outputs)
        if self.anatomy.final is None:
            self._find_final(later)

    def _check_output(self) -> None:
        if self.output == "logits" and self.anatomy.is_hugging_face and self._unembedding is None:
            raise InputError(
                f"output='logits': {type(self.anatomy.core).__name__} has no unembedding; pass the "
                "model with its head (AutoModelForCausalLM), or output='final_norm'"
            )

    def _check_blocks(self, outputs: dict[int, Any]) -> None:
        name = type(self.anatomy.core).__name__
        if len(outputs) < self.num_blocks:
            raise InputError(
                f"only {len(outputs)} of {self.num_blocks} blocks of {name} were seen to run on "
                "plain text: it leaves some out (cross-attention without an image, say), or runs "
                "compiled or exported code that ignores hooks; pass a text model, as the module it "
                "was made from"
            )
        for index, output in outputs.items():
            hidden = first_tensor(output)
            if not isinstance(hidden, Tensor) or hidden.ndim != 3 or len(hidden) != 2:
                shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
                raise InputError(
                    f"block {index + 1} of {name} puts out {shape}, not (prompt, token, width): "
                    "its residual stream is not one vector a token, so there is no one activation "
                    "to replace; this architecture cannot be measured"
                )
            beside = [] if isinstance(output, Tensor) else list(output)[1:]
            if any(isinstance(x, Tensor) and x.shape == hidden.shape for x in beside):
                raise InputError(
                    f"block {index + 1} of {name} puts out two tensors of the stream's shape "
                    f"{tuple(hidden.shape)}: its residual stream comes in parts, so there is no "
                    "one activation to replace; this architecture cannot be measured"
                )
            self._tuple_length = 0 if isinstance(output, Tensor) else len(output)
        hidden = first_tensor(outputs[self.num_blocks - 1])
        self.dtype, self.width = hidden.dtype, hidden.shape[-1]
        earlier, changed = hidden[:, :-1].float()
        gap = (earlier - changed).norm() / earlier.norm()
        if gap > tolerance(self.precision):
            raise InputError(
                f"{name} is not causal: with another last token, its earlier tokens' stream moved "
                f"by {gap:.2g} of its length; measure a decoder-only (causal) model"
            )

    def _find_final(self, later: list[tuple[nn.Module, Any]]) -> None:
        """The last vector of the stream's width after the blocks; what follows it unembeds."""
        final: nn.Module = self.anatomy.blocks[-1]
        maps = [module for module, _ in later if _maps_to_vocabulary(module, self.anatomy)]
        if maps and not self.anatomy.is_hugging_face:
            self._unembedding = maps[-1]
            return
        later = [entry for entry in later if entry[0] is not self.anatomy.core]
        for module, output in later:
            if not isinstance(output, Tensor) or output.numel() == 0:
                continue  # the unembedding of no position at all
            if output.shape[-1] == self.width and not _maps_to_vocabulary(module, self.anatomy):
                final, self._unembedding = module, None
            elif self._unembedding is None and isinstance(module, nn.Linear):
                self._unembedding = module
        self.anatomy = replace(self.anatomy, final=final)


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways to the same vector may differ, relative to its scale, in `dtype`."""
    return max(1e-4, 16 * torch.finfo(dtype).eps)


def _floating_types(blocks: Sequence[nn.Module]) -> set[torch.dtype]:
    """The types that blocks reckon in; weights of one byte are packed, and unpacked for it."""
    weights = (weight for block in blocks for weight in block.parameters())
    return {w.dtype for w in weights if w.is_floating_point() and w.itemsize > 1}


def rows_of(cache: Any, rows: slice | Int[Tensor, " row"]) -> Any:
    """A cache of some of the rows of `cache`, which stays as it is."""
    # Cache layers rebind their tensors when they grow, so a shallow copy of each is enough.
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in chosen.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
    return chosen


def _logits(result: Any) -> Any:
    named = result.get("logits") if isinstance(result, dict) else getattr(result, "logits", None)
    return first_tensor(result) if named is None else named


def _maps_to_vocabulary(module: nn.Module, anatomy: Anatomy) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == anatomy.vocabulary
