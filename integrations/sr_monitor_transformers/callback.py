"""The callback for the Hugging Face Trainer: hands its events to a `sr_monitor` watcher.

It measures the step that training begins at, each step of the schedule right after the update of
the optimizer, and the last step, before the best weights may take its place. What a resumed run
needs lies in `stable_regions.json` inside each checkpoint: the Trainer's own way to restore a
callback's state replaces the callback.

    Trainer(model, args, train_dataset=dataset, callbacks=[StableRegionCallback(every=500)])
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sr_monitor import InputError
from sr_monitor.files import write_whole
from sr_monitor.options import takes
from sr_monitor.watch.config import WatchOptions
from sr_monitor.watch.watcher import Training, Watcher, name_datasets

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise InputError(
        "sr_monitor_transformers: transformers is not installed; run: pip install "
        "'sr-monitor[transformers]'"
    ) from error

from sr_monitor_transformers import training_loop


class StableRegionCallback(TrainerCallback):
    """Watches how stable regions form in the model that a `Trainer` trains.

    Tokens are logged where the Trainer counts them (`include_num_input_tokens_seen`).
    """

    @takes(WatchOptions)
    def __init__(self, *args: Any, **options: Any) -> None:
        """Do nothing until the training begins."""
        self.watcher = Watcher(WatchOptions(*args, **options))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget an earlier training, whether it ended or was interrupted."""
        self.watcher.end()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare everything, and measure the model as it is before the first update.

        Not in `on_train_begin`, which a logger further down the list gets only after this callback.
        """
        if not self.watcher.has_begun:
            _begin(self.watcher, args, state, kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure if it is time to."""
        if not self.watcher.has_begun:  # the loops of some trainers know no epochs
            _begin(self.watcher, args, state, kwargs)
        _measure(self.watcher, state, kwargs["model"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure where it was asked to at evaluations."""
        if self.watcher.options.with_eval:
            _measure(self.watcher, state, kwargs["model"], also=True)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave in the checkpoint what a resumed run needs."""
        if self.watcher.options.with_save:
            _measure(self.watcher, state, kwargs["model"], also=True)
        monitor, folder = self.watcher.monitor, training_loop.checkpoint_of(args, state)
        if monitor is not None and state.is_world_process_zero and folder.is_dir():
            with self.watcher.guard.catching("saving the state of sr-monitor"):
                content = json.dumps(monitor.state_dict()).encode()
                write_whole(folder / f"{monitor.store.name}.json", content)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the last step, and draw the last pictures.

        `on_train_end` is too late: by then the best weights may have been loaded and the loggers
        are closed. The last event before is the log that holds the speed of the whole training.
        """
        if "train_steps_per_second" in kwargs.get("logs", ()):
            self.on_train_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do the same where a training ended without that log."""
        _measure(self.watcher, state, kwargs["model"], last=True)
        self.watcher.end()


def _begin(
    watcher: Watcher[WatchOptions],
    args: TrainingArguments,
    state: TrainerState,
    known: Mapping[str, Any],
) -> None:
    model, siblings = known["model"], training_loop.find_siblings()
    datasets = name_datasets(training_loop.find_eval_dataset())

    def describe() -> Training:
        return Training(
            model=model,
            step=state.global_step,
            run=state,
            log_dir=str(args.output_dir),
            find_writers=lambda: training_loop.writers_among(siblings),
            find_state=lambda name: training_loop.read_state(args, state, name),
            loaders=[known.get("train_dataloader")],
            datasets=datasets,
            tokenizer=known.get("processing_class"),
            # With `DataParallel`, each copy sees a part of the batch, and all would begin.
            is_last_chance=args.n_gpu > 1,
        )

    def begin(batch: Sequence[Any] | None) -> None:
        if watcher.begin(describe, batch):
            _measure(watcher, state, model)
        else:
            stop_waiting = training_loop.when_next_called(model, lambda batch: begin([batch]))
            watcher.until_end(stop_waiting)

    begin(None)


def _measure(
    watcher: Watcher[WatchOptions],
    state: TrainerState,
    model: nn.Module,
    *,
    also: bool = False,
    last: bool = False,
) -> None:
    tokens = int(state.num_input_tokens_seen) or None
    watcher.at_step(model, state.global_step, tokens=tokens, also=also, last=last)
