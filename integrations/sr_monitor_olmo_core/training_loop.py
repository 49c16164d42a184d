# pyright: reportMissingImports=false
"""What an OLMo-core trainer trains, reads from and logs to.

model = find_model(trainer.train_module)
loader = Rows(trainer.data_loader, options)
"""

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from olmo_core.data import NumpyDataLoaderBase
from olmo_core.data.composable import ComposableDataLoader
from olmo_core.io import is_url
from olmo_core.train.callbacks import EvaluatorCallback, WandBCallback
from torch import nn

from sr_monitor import InputError
from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.wandb import WandbWriter
from sr_monitor.model.wrappers import class_names
from sr_monitor.probes.keys import STEP
from sr_monitor.prompts.corpora import special_ids
from sr_monitor.watch.config import WatchOptions

_WINDOWS_PER_PROMPT = 4  # that are read for each one that is drawn


def find_model(train_module: Any) -> nn.Module:
    """Return the model; refuse one of which a rank has only some blocks or some positions."""
    name = type(train_module).__name__
    is_pipeline = "TransformerPipelineTrainModule" in class_names(train_module)
    if is_pipeline or getattr(train_module, "pp_enabled", False):
        raise _refusal(name, "trains with pipeline parallelism: no rank holds all blocks")
    if getattr(train_module, "cp_enabled", False):
        raise _refusal(name, "trains with context parallelism: no rank sees a whole prompt")
    model = getattr(train_module, "model", None)
    if not isinstance(model, nn.Module):
        raise _refusal(name, "has no `model` that is a torch module")
    return model


def _refusal(name: str, problem: str) -> InputError:
    return InputError(
        f"StableRegionCallback(): {name} {problem}; take the callback out and measure saved "
        "checkpoints instead: sr-monitor replay"
    )


def as_in_training(train_module: Any) -> AbstractContextManager[None]:
    """Return the context that the train module calls its model in: autocast, where it is asked."""
    context: AbstractContextManager[None] = getattr(
        train_module, "_model_forward_context", nullcontext
    )()
    return context


def local_folder(trainer: Any) -> str:
    """Return the save folder, or the working folder where checkpoints go to a URL."""
    return str(trainer.work_dir if is_url(trainer.save_folder) else trainer.save_folder)


def is_evaluated(trainer: Any) -> bool:
    """Whether the trainer evaluates at this step: no event of a callback says so."""
    evaluators = (c for c in trainer.callbacks.values() if isinstance(c, EvaluatorCallback))
    step = trainer.global_step
    return not trainer.no_evals and any(
        (each.eval_interval and step % each.eval_interval == 0) or step in (each.fixed_steps or ())
        for each in evaluators
    )


class Rows:
    """OLMo-core's own data loader, as one whose data set can be read without consequences.

    Its data sets open their files anew for each row, so rows are read beside the loader, which
    stays where it is. Of a loader of another kind, batches have to show what it reads.
    """

    def __init__(self, data_loader: Any, options: WatchOptions) -> None:
        """Read nothing yet."""
        self._loader, self._options = data_loader, options

    @property
    def dataset(self) -> list[dict[str, torch.Tensor]] | None:
        """Rows at seeded places, until each prompt has enough tokens; None if there are none."""
        try:
            return list(self._read())
        except Exception:  # not prepared, not within reach: the first batches will do, or tell
            return None

    def _read(self) -> Iterator[dict[str, torch.Tensor]]:
        sources = _sources(self._loader)
        ends = list(accumulate(len(source) for source in sources))
        share = _WINDOWS_PER_PROMPT * self._options.num_tokens
        missing = share * self._options.num_prompts
        for index in random.Random(self._options.seed).sample(range(ends[-1]), ends[-1]):
            which = bisect_right(ends, index)
            row = without_special(sources[which][index - ends[which]], self._loader)
            missing -= min(len(row["input_ids"]), share)
            yield row
            if missing <= 0:
                return


def _sources(loader: Any) -> Sequence[Any]:
    """Return the data sets of a loader of OLMo-core's own kinds; none of any other."""
    if isinstance(loader, NumpyDataLoaderBase):
        return [loader.dataset]
    return loader.sources if isinstance(loader, ComposableDataLoader) else []


def without_special(row: Mapping[str, Any], loader: Any) -> dict[str, torch.Tensor]:
    """Return the ids of a row or a batch, with -1 in the places of BOS, EOS and padding."""
    ids = torch.as_tensor(row["input_ids"])
    known = getattr(loader, "tokenizer", getattr(loader, "dataset", None))
    special = torch.tensor(sorted(special_ids(known)), dtype=ids.dtype, device=ids.device)
    return {"input_ids": ids.masked_fill(torch.isin(ids, special), -1)}


class InStep(WandbWriter):
    """Writes pictures to the trainer's own run of Weights & Biases, each at its step.

    Numbers get there as metrics of the trainer. It logs by step, later and from a thread, and a run
    drops what comes after a later step: so what is drawn waits until its step is logged.
    """

    def __init__(self, run: Any) -> None:
        """Write to the run of OLMo-core's callback."""
        super().__init__(run)
        self._waiting: list[tuple[int, dict[str, Any]]] = []

    def scalar(self, name: str, value: float, step: int) -> None:
        """Leave numbers to the trainer."""

    def send(self, step: int) -> None:
        """Log what was drawn at this step or before."""
        while self._waiting and self._waiting[0][0] <= step:
            _, row = self._waiting.pop(0)
            self._run.log(row, step=step)

    def close(self) -> None:
        """Log the rest: the trainer has logged all steps."""
        self.flush()
        for step, row in self._waiting:
            self._run.log(row, step=step)

    def _send(self, row: dict[str, Any], step: int) -> None:
        """Let what was drawn wait for its step."""
        self._waiting.append((step, {**row, STEP: step}))


def send(writers: Iterable[Writer], step: int) -> None:
    """Have writers log what waited for this step."""
    for writer in writers:
        if isinstance(writer, InStep):
            writer.send(step)


def writers_of(trainer: Any) -> list[Writer]:
    """Return the runs of Weights & Biases that OLMo-core has started."""
    found = (c for c in trainer.callbacks.values() if isinstance(c, WandBCallback))
    return [InStep(each.run) for each in found if each.enabled and each.run is not None]
