"""What memory a checkpoint takes beside its model while it is loaded.

with tempfile.TemporaryDirectory() as folder:
    print(peak_beside_the_model(save(Path(folder), num_blocks=8, shards="safetensors")))
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import transformers

from sr_monitor.replay.discover import find_checkpoints
from sr_monitor.replay.models import ModelKeeper
from sr_monitor.replay.options import ReplayOptions
from tests.benchmarks.archive import peak_megabytes
from tests.trained import save_folder, save_shards

SHARD_MEGABYTES = 20
_SIZES: Any = {"vocab_size": 4096, "hidden_size": 768, "intermediate_size": 2048}


def save(folder: Path, num_blocks: int, shards: Literal["safetensors", "dcp"]) -> Path:
    """Save a Llama of this many blocks, in files of 20 MB or as one file with a table."""
    config = transformers.LlamaConfig(**_SIZES, num_hidden_layers=num_blocks)
    model = transformers.LlamaForCausalLM(config)
    folder = folder / "checkpoint-1"
    if shards == "safetensors":
        return save_folder(model, folder, max_shard_size=f"{SHARD_MEGABYTES}MB")
    config.save_pretrained(folder)
    save_shards({"model": model.state_dict()}, folder / "pytorch_model_fsdp_0")
    return folder


def peak_beside_the_model(folder: Path) -> tuple[float, float]:
    """Return the megabytes of the model, and the most memory beside it, imports aside."""
    script = f"from tests.benchmarks.loading import _load; _load({str(folder)!r})"
    found = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    model, beside = json.loads(found.stdout.splitlines()[-1])
    return model, beside


def _load(folder: str) -> None:
    keeper, (checkpoint,) = ModelKeeper(ReplayOptions(device="cpu")), find_checkpoints(folder)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=0, vocab_size=8))
    before = peak_megabytes()
    model = keeper.load(checkpoint)
    peak = peak_megabytes() - before
    size = sum(weight.nbytes for weight in model.parameters()) / 2**20
    sys.stdout.write(json.dumps([size, peak - size]))
