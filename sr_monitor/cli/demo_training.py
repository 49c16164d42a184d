"""The demo's training: a small OLMo, watched while its stable regions form.

The text comes with any Python, its help topics, the tokenizer is trained on it first, and nothing
is downloaded. A framework's own trainer trains the
model, with our callback. One machine gives the same numbers every time.

    records, losses = run_demo(Path("runs/demo"), DemoPlan(), "transformers", bar)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from sr_monitor.display.writers.base import encode_png
from sr_monitor.files import write_whole
from sr_monitor.model.loading import quiet, require_transformers
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.measuring import Bar
from sr_monitor.probes.paths_pictures import draw_curves
from sr_monitor.probes.slices_pictures import draw_frame, join_frames
from sr_monitor.prompts.choose import PromptOptions, choose_prompts, help_topics
from sr_monitor.prompts.corpora import encode
from sr_monitor.results.record import Record, list_records
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.schedule import at

Framework = Literal["transformers", "lightning"]
Rows: TypeAlias = list[dict[str, Int[Tensor, " token"]]]
"""Windows of the text as a model takes them: input_ids and labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoPlan:
    """What is trained, and when it is measured."""

    steps: tuple[int, ...] = (0, 25, 50, 100, 200, 400, 800)
    """The steps to measure at; the last ends the training."""
    batch_size: int = 64
    window: int = 12
    """Tokens in each text of a batch; prompts have 10."""
    learning_rate: float = 8e-3
    weight_decay: float = 0.1
    warm_up: int = 50
    """Updates until the learning rate is reached; then it is held."""
    vocab_size: int = 256
    """With 256 a token is a byte."""
    hidden_size: int = 96
    """A multiple of 32, the size of a head."""
    num_layers: int = 4
    seed: int = 0
    """Of the weights, the batches and the prompts."""
    config: MonitorConfig = field(default_factory=lambda: MonitorConfig(num_slices=3))
    """The other defaults are those of `sr-monitor measure`, so that both print the same numbers."""

    @property
    def num_steps(self) -> int:
        """The length of the training."""
        return self.steps[-1]


def run_demo(
    folder: Path, plan: DemoPlan, framework: Framework, bar: Bar
) -> tuple[list[Record], dict[int, float]]:
    """Train and watch a model in `folder`; return its records, and the loss of each step."""
    transformers = require_transformers("the demo")
    adapter = import_module(f"sr_monitor_{framework}")
    trainer = import_module(f"sr_monitor_{framework}.demo")
    texts = help_topics()
    losses: dict[int, float] = {}
    progress = bar("training")

    def tell(step: int, loss: float) -> None:
        losses[step] = loss
        progress(step, plan.num_steps)

    torch.set_num_threads(1)  # the matrices are tiny, and the numbers depend on how many there are
    with quiet(transformers), torch.random.fork_rng(devices=[]):
        tokenizer, model = _make(plan, texts)
        options = PromptOptions(seed=plan.seed)
        prompts = choose_prompts(options, tokenizer, plan.config.num_prompts)
        callback = adapter.StableRegionCallback(
            prompts,
            schedule=at(plan.steps),
            log_dir=folder,
            on_error="raise",
            **vars(plan.config),
        )
        corpus = torch.tensor(encode(tokenizer, "\n".join(texts)))
        # (token,) becomes (window, token); what does not fill a window is left out.
        windows = corpus[: len(corpus) // plan.window * plan.window].view(-1, plan.window)
        rows: Rows = [{"input_ids": window, "labels": window} for window in windows]
        torch.manual_seed(plan.seed)
        trainer.train(model, rows, plan, callback, folder, tell)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    records = [Record.load(path) for path in list_records(folder)]
    _draw(folder, records)
    return records, losses


def _make(plan: DemoPlan, texts: Sequence[str]) -> tuple[Any, Any]:
    """Return a byte-level BPE tokenizer of these texts, and a new model."""
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    trained: Any = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, plan.vocab_size, min_frequency=0, show_progress=False)
    fast: Any = transformers.PreTrainedTokenizerFast
    torch.manual_seed(plan.seed)
    config = transformers.OlmoConfig(
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
    return fast(tokenizer_object=trained), transformers.OlmoForCausalLM(config)


def _draw(folder: Path, records: Sequence[Record]) -> None:
    """Draw a film of each slice, and the curves of all steps in one picture."""
    titles = [f"step {record.step}" for record in records]
    curves = list(zip(titles, (record.paths for record in records), strict=True))
    last = draw_curves(curves[-1][1], title=titles[-1], earlier=curves[:-1])
    write_whole(folder / "curves.png", encode_png(pixels(last)))
    slices = [record.slices for record in records if record.slices is not None]
    for index in range(len(slices[0].foot) if slices else 0):
        entries = zip(slices, titles, strict=True)
        frames = [pixels(draw_frame(each, index, title)) for each, title in entries]
        write_whole(folder / f"film-{index}.png", encode_png(join_frames(frames)))
