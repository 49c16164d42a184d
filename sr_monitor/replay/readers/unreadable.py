"""Checkpoints that have to be converted first: which command converts them."""

from pathlib import Path
from shlex import quote

from sr_monitor.replay.readers.base import CheckpointReader, register


@register
class PeftAdapter(CheckpointReader):
    """An adapter without its model."""

    def recognises(self, path: Path) -> bool:
        """Return whether the configuration of an adapter is there."""
        return (path / "adapter_config.json").is_file()

    def problem(self, path: Path) -> str:
        """Return how to merge it."""
        here, merged = f"{path}", f"{path}-merged"
        return f"{here!r} holds a PEFT adapter, not a whole model; merge it: python -c " + quote(
            f"from peft import AutoPeftModelForCausalLM as M; "
            f"M.from_pretrained({here!r}).merge_and_unload().save_pretrained({merged!r})"
        )


@register
class DeepSpeedShards(CheckpointReader):
    """The shards of a ZeRO optimizer, weights included."""

    def recognises(self, path: Path) -> bool:
        """Return whether the states of the ranks are in the folder, or in one that is in it."""
        return any(any(path.glob(f"{where}*model_states.pt")) for where in ("", "*/"))

    def problem(self, path: Path) -> str:
        """Return how to convert them."""
        script = path / "zero_to_fp32.py"
        run = quote(f"{script}") if script.is_file() else "-m deepspeed.utils.zero_to_fp32"
        return (
            f"{str(path)!r} holds DeepSpeed shards, which only DeepSpeed reads; convert them: "
            f"python {run} {quote(f'{path}')} {quote(f'{path}-merged')}"
        )
