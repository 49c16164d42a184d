"""What the checks share: models on the device, and how far apart two measurements are.

specimen = on_device("llama", torch.bfloat16)
gap(measure(specimen, engine="rows"), measure(specimen, engine="plain"))
"""

from dataclasses import replace
from typing import Any

import torch
import transformers as hf

from sr_monitor.probes.paths import Paths
from tests import zoo

DEVICE = torch.device("cuda", 0)
TOLERANCE = 1e-5


def on_device(
    name: str, dtype: torch.dtype = torch.float32, *, attention: str | None = None
) -> zoo.Specimen:
    """Build a model of the zoo on the GPU."""
    specimen = zoo.build(name, attention=attention)
    return replace(specimen, model=specimen.model.to(DEVICE, dtype))


def llama(width: int, **options: Any) -> Any:
    """Build a model of four blocks that is wide enough for the kernels of real ones."""
    config: dict[str, Any] = {
        "vocab_size": zoo.VOCAB,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        **options,
    }
    torch.manual_seed(0)
    with DEVICE:
        model: Any = hf.LlamaForCausalLM(hf.LlamaConfig(**config))
    return model.eval()


def prompts(count: int, length: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pairs of prompts, each the next one's neighbour."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(zoo.VOCAB, (count + 1, length), generator=generator)
    return ids[:-1], ids[1:]


def gap(one: Paths, other: Paths) -> float:
    """Return the largest difference of two distances, as a share of the pair's d(1)."""
    return float(((one.distance - other.distance).abs() / other.end_distance[:, None]).max())
