# pyright: reportMissingImports=false
"""The callback for OLMo-core: hands its events to a `sr_monitor` watcher.

It measures the step that training begins at, each step of the schedule right after the update of
the optimizer, and the last step. What a resumed run needs lies in the trainer's checkpoint.

    config.with_callback("stable_regions", StableRegionCallback(every=1000))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, ClassVar

from sr_monitor import InputError
from sr_monitor.options import explains
from sr_monitor.probes.keys import of_run
from sr_monitor.watch.config import WatchOptions
from sr_monitor.watch.watcher import Training, Watcher

try:
    from olmo_core.train.callbacks import Callback
except ImportError as error:
    raise InputError(
        "sr_monitor_olmo_core: ai2-olmo-core is not installed; run: pip install "
        "'sr-monitor[olmo-core]'"
    ) from error

from sr_monitor_olmo_core import training_loop

# A field for each option: OLMo-core saves, restores and overrides callbacks by their fields.
_WithOptions: Any = make_dataclass(
    "_WithOptions",
    [
        (each.name, Any, field(default=each.default, kw_only=each.kw_only))
        for each in fields(WatchOptions)
    ],
    bases=(Callback,),
    eq=False,
)


class _OnError(str):
    """The option `on_error`; OLMo-core calls it, as its event for a failed training is named so."""

    end: Callable[[], None]

    def __call__(self, exc: BaseException) -> None:
        """Show what there is before Weights & Biases ends its run; other ranks may be gone."""
        self.end()


@dataclass(eq=False)
class StableRegionCallback(_WithOptions):  # type: ignore[misc]
    """Watches how stable regions form in the model that OLMo-core's `Trainer` trains.

    The step is `trainer.global_step`, the number of updates.
    """

    # Before Weights & Biases (3), which ends its run when it is closed.
    priority: ClassVar[int] = 4

    def __post_init__(self) -> None:
        """Refuse wrong options at once; do nothing until the training begins."""
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        self.watcher = Watcher(WatchOptions(**options))
        self.on_error = _OnError(options["on_error"])
        self.on_error.end = self.watcher.end

    def __deepcopy__(self, memo: object) -> "StableRegionCallback":
        """Share what the options hold, such as an open writer.

        OLMo-core copies the callbacks that are there whenever another one is added.
        """
        return type(self)(**{each.name: getattr(self, each.name) for each in fields(self)})

    def post_attach(self) -> None:
        """Forget an earlier training, and take options that were set since."""
        self.watcher.end()
        self.__post_init__()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the states until the training begins."""
        self.watcher.states = dict(state_dict)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; the trainer asks for it only when it saves."""
        states: dict[str, Any] = {}
        self.watcher.add_state(states)
        self.watcher.wanted |= self.watcher.options.with_save
        return states

    def pre_epoch(self) -> None:
        """Prepare everything, and measure the model as it is before the first update.

        Not in `pre_train`, which is also called where checkpoints are only evaluated.
        """
        if not self.watcher.has_begun:
            _begin(self.watcher, self.trainer, self.step)

    def pre_step(self, batch: Mapping[str, Any]) -> None:
        """Begin here where only a batch shows what the model is trained on."""
        if self.watcher.is_waiting:
            _begin(self.watcher, self.trainer, self.step - 1, batch)

    def post_step(self) -> None:
        """Measure if it is time to."""
        also = self.watcher.options.with_eval and training_loop.is_evaluated(self.trainer)
        _measure(self.watcher, self.trainer, self.step, also=also)

    def post_train(self) -> None:
        """Measure the last step; one that is canceled may have little time left."""
        if not self.trainer.is_canceled:
            _measure(self.watcher, self.trainer, self.step, last=True)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show in Weights & Biases what was drawn up to this step."""
        if self.watcher.monitor is not None:
            with self.watcher.guard.catching("logging to Weights & Biases"):
                training_loop.send(self.watcher.monitor.writers, step)

    def close(self) -> None:
        """Draw the last pictures, and close the writers."""
        self.watcher.end()


explains(WatchOptions)(StableRegionCallback.__init__)


def _begin(
    watcher: Watcher[WatchOptions],
    trainer: Any,
    step: int,
    batch: Mapping[str, Any] | None = None,
) -> None:
    def describe() -> Training:
        return Training(
            model=training_loop.find_model(trainer.train_module),
            step=step,
            run=trainer,
            log_dir=training_loop.local_folder(trainer),
            find_writers=lambda: training_loop.writers_of(trainer),
            writes_own=True,
            find_state=lambda name: watcher.states.get(name),
            loaders=[training_loop.Rows(trainer.data_loader, watcher.options)],
        )

    parts = None if batch is None else [training_loop.without_special(batch, trainer.data_loader)]
    if watcher.begin(describe, parts):
        _measure(watcher, trainer, step)


def _measure(
    watcher: Watcher[WatchOptions],
    trainer: Any,
    step: int,
    *,
    also: bool = False,
    last: bool = False,
) -> None:
    if watcher.training is None:
        return
    with training_loop.as_in_training(trainer.train_module):
        tokens = trainer.global_train_tokens_seen
        model = watcher.training.model
        record = watcher.at_step(model, step, tokens=tokens, also=also, last=last)
    if record is not None and watcher.monitor is not None and step == trainer.global_step:
        # Every rank, or the ranks' metrics would differ.
        run = watcher.monitor.store.name
        for name, value in record.scalars.items():
            trainer.record_metric(of_run(name, run), value)
