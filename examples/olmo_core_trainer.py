# pyright: reportMissingImports=false
"""Watch stable regions form while OLMo-core trains: one line more than without.

python examples/olmo_core_trainer.py
tensorboard --logdir runs/olmo_core
"""

import sys
from pathlib import Path

import torch
from olmo_core.data import NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import AdamWConfig
from olmo_core.train import Duration, TrainerConfig
from olmo_core.train.callbacks import CheckpointerCallback
from olmo_core.train.train_module import TransformerTrainModuleConfig
from sr_monitor_olmo_core import StableRegionCallback

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/olmo_core")

torch.manual_seed(0)
folder.mkdir(parents=True, exist_ok=True)
tokens = folder / "tokens.npy"  # put your tokenized data here
tokens.write_bytes(torch.randint(1, 256, (256 * 64,), dtype=torch.uint8).numpy().tobytes())
dataset = NumpyFSLDatasetConfig(
    paths=[str(tokens)],
    sequence_length=64,
    tokenizer=TokenizerConfig(vocab_size=256, eos_token_id=0, pad_token_id=0),
    work_dir=str(folder),
).build()

config = TrainerConfig(
    save_folder=str(folder),
    save_overwrite=True,
    max_duration=Duration.steps(20),
    callbacks={"checkpointer": CheckpointerCallback(save_interval=20, save_async=False)},
).with_callback("stable_regions", StableRegionCallback(every=10))  # <- the one line

trainer = config.build(
    TransformerTrainModuleConfig(
        rank_microbatch_size=8 * 64, max_sequence_length=64, optim=AdamWConfig(lr=1e-3)
    ).build(TransformerConfig.olmo2_14M(vocab_size=256).build(init_device="cpu")),
    NumpyDataLoaderConfig(global_batch_size=8 * 64, seed=0).build(dataset),
)
if __name__ == "__main__":
    trainer.fit()
