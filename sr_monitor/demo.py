"""`sr-monitor demo`: a small OLMo is trained here, and its stable regions are watched as they form.

The text is what any Python brings along (its help topics, and the docstrings of its standard
library), the tokenizer is trained on it first, and nothing is downloaded. The same machine gives
the same numbers every time, whatever else it does.

    moments = run_demo(Path("runs/demo"), DemoPlan(), bar)
    [moment.row() for moment in moments]
"""

import ast
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sr_monitor.corpora import Tokenizer, encode
from sr_monitor.figures import draw_film, save_figure
from sr_monitor.loading import quiet, require_transformers
from sr_monitor.measurement import Bar, Measurement, Request, measure_model
from sr_monitor.prompts import PromptSet


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoPlan:
    """What is trained, and when it is measured."""

    steps: tuple[int, ...] = (0, 20, 40, 60, 100, 200)
    """The steps at which the model is measured; the last ends the training."""
    batch_size: int = 32
    """Windows in a batch."""
    window: int = 64
    """Tokens in a window."""
    learning_rate: float = 6e-3
    """Reached after a tenth of the steps, then held."""
    vocab_size: int = 1024
    """Entries of the tokenizer that is trained."""
    hidden_size: int = 128
    """Width of the stream; a head takes 32 of it."""
    num_layers: int = 4
    """Decoder blocks."""
    seed: int = 0
    """Of the weights, the batches and the prompts."""
    request: Request = field(default_factory=lambda: Request(num_slices=3))
    """What is measured each time; as many pairs as `sr-monitor measure` takes, so both agree."""

    @property
    def warm_up(self) -> int:
        """Updates until the learning rate is reached: a tenth of all."""
        return max(1, max(self.steps) // 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The model at one step of its training."""

    step: int
    """Updates so far."""
    loss: float
    """On the next batch."""
    measurement: Measurement
    """Its paths and slices."""

    def row(self) -> tuple[str, ...]:
        """The line of the table."""
        slope = self.measurement.slope
        return (
            f"{self.step}",
            f"{self.loss:.2f}",
            f"{slope.median:.3f}",
            f"{slope.q25:.3f} to {slope.q75:.3f}",
        )


def python_texts() -> list[str]:
    """The help topics that any Python brings along: about 460,000 characters of English."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


@cache
def docstrings() -> tuple[str, ...]:
    """The docstrings of the standard library's single-file modules."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found: list[str | None] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old string escapes in other people's code
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            nodes = ast.walk(ast.parse(path.read_bytes()))
            found += [ast.get_docstring(node) for node in nodes if isinstance(node, documented)]
    return tuple(text for text in found if text)


def python_prompts(tokenizer: Tokenizer, **options: Any) -> PromptSet:
    """Prompts cut from the help topics, for when there is no other text at hand."""
    source = "the help topics of Python"
    return PromptSet.from_texts(python_texts(), tokenizer, source=source, **options)


def run_demo(folder: Path, plan: DemoPlan, bar: Bar) -> list[Moment]:
    """Trains, measures, and leaves the model, each moment and a film of each slice in `folder`."""
    transformers = require_transformers("the demo")
    texts = [*python_texts(), *docstrings()]
    with quiet(transformers), _one_thread():
        tokenizer = _train_tokenizer(texts, plan.vocab_size)
        model = _new_model(plan)
        moments = list(_watch_training(model, tokenizer, texts, plan, bar))
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    for moment in moments:
        title = f"step {moment.step}"
        moment.measurement.write(folder / f"step-{moment.step:09d}", title=title, step=moment.step)
    _draw_films(folder, moments)
    return moments


def _watch_training(
    model: Any, tokenizer: Tokenizer, texts: Sequence[str], plan: DemoPlan, bar: Bar
) -> Iterator[Moment]:
    """Plain next-token training, stopped to measure at the plan's steps."""
    last = max(plan.steps)
    prompts = python_prompts(tokenizer, num_prompts=plan.request.num_prompts, seed=plan.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95))
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-2, 1, total_iters=plan.warm_up)
    for step, batch in enumerate(_batches(tokenizer, texts, plan)):
        bar("training")(step, last)
        loss = model(input_ids=batch, labels=batch).loss
        if step in plan.steps:
            measurement = measure_model(model, prompts, plan.request, bar)
            yield Moment(step=step, loss=loss.item(), measurement=measurement)
        if step == last:
            return
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        warm_up.step()


def _batches(
    tokenizer: Tokenizer, texts: Sequence[str], plan: DemoPlan
) -> Iterator[Int[Tensor, "batch token"]]:
    """Windows from all over the corpus, for ever."""
    corpus = torch.tensor(encode(tokenizer, "\n".join(texts)))
    generator = torch.Generator().manual_seed(plan.seed)
    shape = (plan.batch_size, 1)
    while True:
        starts = torch.randint(len(corpus) - plan.window, shape, generator=generator)
        yield corpus[starts + torch.arange(plan.window)]


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


def _draw_films(folder: Path, moments: Sequence[Moment]) -> None:
    frames = [
        (f"step {moment.step}", moment.measurement.slices)
        for moment in moments
        if moment.measurement.slices is not None
    ]
    for index in range(len(frames[0][1].foot) if frames else 0):
        save_figure(draw_film(frames, index), folder / f"film-{index}.png")
