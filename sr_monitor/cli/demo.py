"""`sr-monitor demo`: a small OLMo is trained here, and its stable regions are watched as they form.

The text is what any Python brings along (its help topics, and the docstrings of its standard
library), the tokenizer is trained on it first, and nothing is downloaded. A framework's own
trainer trains it, with our callback. The same machine gives the same numbers every time, whatever
else it does.

    outcome = run_demo(Path("runs/demo"), DemoPlan(), "transformers", bar)
    outcome.rows()
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from sr_monitor.model.loading import quiet, require_transformers
from sr_monitor.probes.drawing import draw_curves, draw_film, save_figure
from sr_monitor.probes.statistics import summarise
from sr_monitor.prompts.corpora import Tokenizer, encode
from sr_monitor.prompts.python_corpus import docstrings, python_prompts, python_texts
from sr_monitor.results.record import Record, list_records
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.measurement import Bar

Framework = Literal["transformers", "lightning"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoPlan:
    """What is trained, and when it is measured."""

    steps: tuple[int, ...] = (0, 25, 50, 75, 100, 140, 180, 240)
    """The steps at which the model is measured; the last ends the training."""
    batch_size: int = 32
    """Windows in a batch."""
    window: int = 64
    """Tokens in a window."""
    learning_rate: float = 3e-3
    """Reached after a tenth of the steps, then held."""
    vocab_size: int = 1024
    """Entries of the tokenizer that is trained."""
    hidden_size: int = 192
    """Width of the stream; a head takes 32 of it."""
    num_layers: int = 6
    """Decoder blocks."""
    seed: int = 0
    """Of the weights, the batches and the prompts."""
    config: MonitorConfig = field(default_factory=lambda: MonitorConfig(num_slices=3))
    """What is measured each time; as many pairs as `sr-monitor measure` takes, so both agree."""

    @property
    def num_steps(self) -> int:
        """How long the training is."""
        return max(self.steps)

    @property
    def warm_up(self) -> int:
        """Updates until the learning rate is reached: a tenth of all."""
        return max(1, self.num_steps // 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the demo has left."""

    records: Sequence[Record]
    """The measurements, by step."""
    losses: Mapping[int, float]
    """The loss of each step."""

    def rows(self) -> list[tuple[str, ...]]:
        """The lines of the table."""
        return [self._row(record) for record in self.records]

    def _row(self, record: Record) -> tuple[str, ...]:
        slope = summarise(record.paths.max_slope, record.paths.kept)
        loss = f"{self.losses[record.step]:.2f}" if record.step in self.losses else ""
        quartiles = f"{slope.q25:.3f} to {slope.q75:.3f}"
        return (f"{record.step}", loss, f"{slope.median:.3f}", quartiles)


def run_demo(folder: Path, plan: DemoPlan, framework: Framework, bar: Bar) -> Outcome:
    """Trains and watches; leaves the model, the records, and a film of each slice in `folder`."""
    transformers = require_transformers("the demo")
    train: Callable[..., Mapping[int, float]]
    train = importlib.import_module(f"sr_monitor_{framework}.demo").train
    texts = [*python_texts(), *docstrings()]
    with quiet(transformers), _one_thread(), torch.random.fork_rng(devices=[]):
        tokenizer = _train_tokenizer(texts, plan.vocab_size)
        prompts = python_prompts(tokenizer, num_prompts=plan.config.num_prompts, seed=plan.seed)
        model = _new_model(plan)
        torch.manual_seed(plan.seed)
        losses = train(
            model, _windows(tokenizer, texts, plan), plan, prompts, folder, bar("training")
        )
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    records = [Record.load(path) for path in list_records(folder)]
    _draw(folder, records)
    return Outcome(records=records, losses=losses)


def _windows(
    tokenizer: Tokenizer, texts: Sequence[str], plan: DemoPlan
) -> Int[Tensor, "window token"]:
    """The corpus in pieces of equal length."""
    corpus = torch.tensor(encode(tokenizer, "\n".join(texts)))
    return corpus[: len(corpus) // plan.window * plan.window].view(-1, plan.window)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, and then as many as before.

    The matrices are so small that a second thread hardly helps, and where other programs want the
    cores too it hurts; and with one thread the numbers do not depend on how many there are.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer of these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer)


def _new_model(plan: DemoPlan) -> Any:
    """An untrained OLMo; the global random numbers stay where they are."""
    from transformers import OlmoConfig, OlmoForCausalLM

    config = OlmoConfig(
        vocab_size=plan.vocab_size,
        hidden_size=plan.hidden_size,
        intermediate_size=4 * plan.hidden_size,
        num_hidden_layers=plan.num_layers,
        num_attention_heads=plan.hidden_size // 32,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return OlmoForCausalLM(config)


def _draw(folder: Path, records: Sequence[Record]) -> None:
    """Films of the slices, and the curves of all steps in one picture."""
    titles = [f"step {record.step}" for record in records]
    paths = [record.paths for record in records]
    earlier = list(zip(titles[:-1], paths[:-1], strict=True))
    save_figure(draw_curves(paths[-1], title=titles[-1], earlier=earlier), folder / "curves.png")
    frames = [
        (title, record.slices)
        for title, record in zip(titles, records, strict=True)
        if record.slices is not None
    ]
    for index in range(len(frames[0][1].foot) if frames else 0):
        save_figure(draw_film(frames, index), folder / f"film-{index}.png")
