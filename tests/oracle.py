"""The slow, obvious measurement: one plain forward pass per prompt and point, nothing shared.

x(alpha) = (1 - alpha) a + alpha b,    d(alpha) = || F_A(x(alpha)) - F_A(a) ||

distance = oracle_paths(specimen, a, b, layer=1, num_steps=5, output="final_norm")
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tests.zoo import Specimen

Output = Literal["final_norm", "resid_final", "logits"]


def oracle_paths(
    specimen: Specimen,
    prompts_a: Int[Tensor, "pair token"],
    prompts_b: Int[Tensor, "pair token"],
    *,
    layer: int,
    num_steps: int,
    output: Output = "final_norm",
) -> Float[Tensor, "pair step"]:
    """d(alpha) of every pair, in A's context."""
    rows = []
    for prompt_a, prompt_b in zip(prompts_a, prompts_b, strict=True):
        a, clean = run(specimen, prompt_a, layer, output)
        b, _ = run(specimen, prompt_b, layer, output)
        row = []
        for step in range(num_steps):
            alpha = step / (num_steps - 1)
            x = (1 - alpha) * a + alpha * b
            _, replaced = run(specimen, prompt_a, layer, output, x)
            row.append(_distance(replaced, clean))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def oracle_slices(
    specimen: Specimen,
    corners: tuple[
        Int[Tensor, "triple token"], Int[Tensor, "triple token"], Int[Tensor, "triple token"]
    ],
    *,
    layer: int,
    resolution: int,
    span: tuple[float, float] = (-0.25, 1.25),
    output: Output = "final_norm",
) -> tuple[Float[Tensor, "triple corner row column"], Float[Tensor, " triple"]]:
    """The distance maps of every triple, each corner in its own context, and the feet t."""
    low, high = span
    coordinates = [low + (high - low) * i / (resolution - 1) for i in range(resolution)]
    maps, feet = [], []
    for triple in range(len(corners[0])):
        prompts = [corner[triple] for corner in corners]
        a, b, c = (run(specimen, prompt, layer, output)[0] for prompt in prompts)
        t = torch.dot(c - a, b - a) / torch.dot(b - a, b - a)
        second = c - (a + t * (b - a))
        for prompt in prompts:
            _, clean = run(specimen, prompt, layer, output)
            for y in coordinates:
                for x in coordinates:
                    point = a + x * (b - a) + y * second
                    _, replaced = run(specimen, prompt, layer, output, point)
                    maps.append(_distance(replaced, clean))
        feet.append(t)
    shape = (len(corners[0]), 3, resolution, resolution)
    return torch.stack(maps).reshape(shape), torch.stack(feet)


@torch.no_grad()
def run(
    specimen: Specimen,
    prompt: Int[Tensor, " token"],
    layer: int,
    output: Output,
    replacement: Float[Tensor, " width"] | None = None,
) -> tuple[Float[Tensor, " width"], Float[Tensor, " out"]]:
    """One forward pass of one prompt: the activation found at `layer`, and the output F.

    With a `replacement`, it takes the place of that activation.
    """
    found: list[Tensor] = []
    outputs: list[Tensor] = []

    def visit(stream: Tensor) -> Tensor | None:
        assert stream.dim() == 3
        assert stream.shape[0] == 1
        found.append(stream[0, -1].clone())
        if replacement is None:
            return None
        stream = stream.clone()
        stream[0, -1] = replacement
        return stream

    def read(stream: Tensor) -> None:
        outputs.append(stream[0, -1].clone())

    with _hooks(_write(specimen, layer, visit), *_read(specimen, output, read)):
        result = specimen.model(prompt[None], **specimen.call)
    if output == "logits":
        logits = getattr(result, "logits", result)
        read(logits[0] if isinstance(logits, tuple) else logits)
    assert len(found) == len(outputs) == 1
    return found[0], outputs[0]


def _write(
    specimen: Specimen, layer: int, visit: Callable[[Tensor], Tensor | None]
) -> RemovableHandle:
    """Hook the output of the `layer`-th block, or the input of the first for layer 0."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        stream = visit(args[0])
        return None if stream is None else (stream, *args[1:])

    def after(_: nn.Module, _args: object, result: Any) -> Any:
        is_tuple = isinstance(result, tuple)
        stream = visit(result[0] if is_tuple else result)
        if stream is None:
            return None
        return (stream, *result[1:]) if is_tuple else stream

    if layer == 0:
        return specimen.stack[0].register_forward_pre_hook(before)
    return specimen.stack[layer - 1].register_forward_hook(after)


def _read(
    specimen: Specimen, output: Output, read: Callable[[Tensor], None]
) -> list[RemovableHandle]:
    """Hook what the unembedding reads, or what the last block returns."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        read(args[0])

    def after(_: nn.Module, _args: object, result: Any) -> None:
        read(result[0] if isinstance(result, tuple) else result)

    if output == "final_norm":
        unembedding = specimen.model.get_submodule(specimen.unembedding)
        return [unembedding.register_forward_pre_hook(before)]
    if output == "resid_final":
        return [specimen.stack[-1].register_forward_hook(after)]
    return []


@contextmanager
def _hooks(*handles: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _distance(output: Float[Tensor, " out"], clean: Float[Tensor, " out"]) -> Float[Tensor, ""]:
    distance: Tensor = torch.linalg.vector_norm(output.float() - clean.float())
    return distance
