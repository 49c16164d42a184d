# pyright: reportMissingImports=false
"""Tiny trainings with OLMo-core's real `Trainer`, and everything about them that can be compared.

plain = train(tmp_path / "plain")
watched = train(tmp_path / "watched", watch())
assert watched.differences(plain) == []
"""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from tests import training
from tests.training import Run, facts_of, failing_at, seed_everything
from tests.zoo import VOCAB

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies complain of one another
    from olmo_core.data import NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig
    from olmo_core.distributed.utils import get_world_size
    from olmo_core.nn.transformer import TransformerConfig
    from olmo_core.optim import AdamWConfig
    from olmo_core.train import Duration, LoadStrategy, TrainerConfig
    from olmo_core.train.callbacks import Callback, CheckpointerCallback
    from olmo_core.train.train_module import TransformerTrainModuleConfig
    from sr_monitor_olmo_core import StableRegionCallback

LENGTH, ROWS = 12, 4
"""Tokens in a row, and rows in a batch."""
TOKENIZER = TokenizerConfig(vocab_size=VOCAB, eos_token_id=0, pad_token_id=0)


def watch(**options: Any) -> StableRegionCallback:
    """A callback that measures little."""
    return StableRegionCallback(**(training.SMALL | options))


def build(seed: int = 0, vocabulary: int = VOCAB, **options: Any) -> Any:
    """A tiny OLMo 2, always the same one for the same seed."""
    small: dict[str, Any] = {"n_layers": 3, "n_heads": 4, "hidden_size_multiple_of": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TransformerConfig.olmo2_14M(vocabulary, **small | options).build(init_device="cpu")
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=1.75 / weight.shape[-1] ** 0.5)
    return model


def corpus(folder: Path, num_rows: int) -> Path:
    """A file of random token ids, always the same."""
    ids = torch.stack([row["input_ids"] for row in training.rows(num_rows, LENGTH)])
    path = folder / "tokens.npy"
    folder.mkdir(parents=True, exist_ok=True)
    # OLMo-core takes the smallest type that holds the vocabulary.
    path.write_bytes(ids.numpy().astype(np.uint8).tobytes())
    return path


def loader(folder: Path, num_rows: int = 32, **options: Any) -> Any:
    """OLMo-core's own loader of a file of token ids."""
    dataset = NumpyFSLDatasetConfig(
        paths=[str(corpus(folder / "data", num_rows))],
        sequence_length=LENGTH,
        tokenizer=TOKENIZER,
        work_dir=str(folder / "data"),
    ).build()
    config = NumpyDataLoaderConfig(global_batch_size=ROWS * LENGTH, seed=0)
    return config.build(dataset, **options)


class _Losses(Callback):  # type: ignore[misc]
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        if "train/CE loss" in metrics:
            self.losses.append(metrics["train/CE loss"])


def prepare(
    folder: Path,
    *callbacks: Callback,
    model: Any = None,
    max_steps: int = 4,
    save_steps: int | None = None,
    data: Callable[..., Any] = loader,
    module: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A trainer of four steps from fixed random states; everything is kept in `folder`.

    `module` holds options of the train module, `options` are the trainer's.
    """
    seed_everything()
    usual: dict[str, Any] = {
        "rank_microbatch_size": ROWS * LENGTH // get_world_size(),
        "max_sequence_length": LENGTH,
        "optim": AdamWConfig(lr=1e-2),
        "max_grad_norm": 1.0,
    }
    model = build() if model is None else model.train()
    weights = copy.deepcopy(model.state_dict())
    trained = TransformerTrainModuleConfig(**usual | (module or {})).build(model)
    if hasattr(trained, "model"):  # it has drawn new weights
        whole = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(trained.model, weights, options=whole)
    saver = CheckpointerCallback(
        save_interval=save_steps or 10**9, save_async=False, pre_train_checkpoint=False
    )
    saver.enabled = save_steps is not None
    config = TrainerConfig(
        save_folder=str(folder),
        save_overwrite=True,
        load_strategy=LoadStrategy.never,
        max_duration=Duration.steps(max_steps),
        callbacks={"checkpointer": saver, "losses": _Losses()},
        **options,
    )
    for number, callback in enumerate(callbacks):
        config.add_callback(f"added-{number}", callback)
    return config.build(trained, data(folder, dp_process_group=trained.dp_process_group))


def train(
    folder: Path,
    *callbacks: Callback,
    resume: Path | None = None,
    fail_at: int | None = None,
    **options: Any,
) -> Run:
    """Trains with such a trainer."""
    trainer = prepare(folder, *callbacks, **options)
    if resume is not None:
        trainer.load_checkpoint(str(resume))
    module = trainer.train_module
    # Before the first step, the trainer tries one forward and backward.
    with failing_at(module.model, fail_at and fail_at + 1):
        trainer.fit()
    facts = facts_of(module.model, module.optim, trainer.callbacks["losses"].losses)
    return Run(folder=folder, model=module.model, facts=facts, trainer=trainer)
