"""The slow, obvious measurement: one plain forward pass per prompt and point, nothing shared.

It cuts the stream another way than the library does: it puts functions in the place of the blocks'
own `forward`, and uses no hook.

    distance = oracle_paths(specimen, a, b, layer=1, num_steps=5, output="final_norm")
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tests.zoo import Specimen

Output = Literal["final_norm", "resid_final", "logits"]
Prompts = Int[Tensor, "item token"]
Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def oracle_paths(
    specimen: Specimen,
    prompts_a: Prompts,
    prompts_b: Prompts,
    *,
    layer: int,
    num_steps: int,
    output: Output = "final_norm",
) -> Float[Tensor, "pair step"]:
    rows = []
    for prompt_a, prompt_b in zip(prompts_a, prompts_b, strict=True):
        a, clean = run(specimen, prompt_a, layer, output)
        b, _ = run(specimen, prompt_b, layer, output)
        alphas = [step / (num_steps - 1) for step in range(num_steps)]
        points = [(1 - alpha) * a + alpha * b for alpha in alphas]
        rows.append(
            [_distance(run(specimen, prompt_a, layer, output, x)[1], clean) for x in points]
        )
    return torch.tensor(rows)


def oracle_slices(
    specimen: Specimen,
    corners: tuple[Prompts, Prompts, Prompts],
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
        points = [a + x * (b - a) + y * second for y in coordinates for x in coordinates]
        for prompt in prompts:
            _, clean = run(specimen, prompt, layer, output)
            maps += [_distance(run(specimen, prompt, layer, output, x)[1], clean) for x in points]
        feet.append(t)
    shape = (len(corners[0]), 3, resolution, resolution)
    return torch.tensor(maps).reshape(shape), torch.stack(feet)


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

    def visit(stream: Tensor) -> Tensor:
        found.append(last_of(stream).clone())
        if replacement is not None:
            stream = stream.clone()
            last_of(stream)[:] = replacement
        return stream

    def read(stream: Tensor) -> Tensor:
        outputs.append(last_of(stream).clone())
        return stream

    with ExitStack() as stack:
        if layer == 0:
            stack.enter_context(wrapped(specimen.layers[0], on_input(visit)))
        else:
            stack.enter_context(wrapped(specimen.layers[layer - 1], on_output(visit)))
        if output == "final_norm":
            unembedding = specimen.model.get_submodule(specimen.unembedding)
            stack.enter_context(wrapped(unembedding, on_input(read)))
        if output == "resid_final":
            stack.enter_context(wrapped(specimen.layers[-1], on_output(read)))
        result = specimen.run(prompt)
    if output == "logits":
        logits = getattr(result, "logits", result)
        read(logits[0] if isinstance(logits, tuple) else logits)
    assert len(found) == len(outputs) == 1
    return found[0], outputs[0]


def last_of(stream: Tensor) -> Tensor:
    # of (1, token, width) or of (token, width)
    assert stream.dim() == 2 or (stream.dim() == 3 and len(stream) == 1)
    return stream.view(-1, stream.shape[-1])[-1]


@contextmanager
def wrapped(module: nn.Module, wrapper: Wrapper) -> Iterator[None]:
    own = vars(module).get("forward")
    module.forward = wrapper(module.forward)
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def on_input(visit: Callable[[Tensor], Tensor]) -> Wrapper:
    return lambda forward: lambda x, *args, **kwargs: forward(visit(x), *args, **kwargs)


def on_output(visit: Callable[[Tensor], Tensor]) -> Wrapper:
    def wrapper(forward: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs)
            if isinstance(result, tuple):
                return (visit(result[0]), *result[1:])
            return visit(result)

        return around

    return wrapper


def _distance(output: Float[Tensor, " out"], clean: Float[Tensor, " out"]) -> float:
    return float(torch.linalg.vector_norm(output.float() - clean.float()))
