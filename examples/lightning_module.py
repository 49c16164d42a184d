"""Watch stable regions form while Lightning trains: one line more than without.

python examples/lightning_module.py
tensorboard --logdir runs/lightning_module
"""

import sys
from typing import Any

import lightning as L
import torch
from sr_monitor_lightning import StableRegionCallback
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import OlmoConfig, OlmoForCausalLM

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/lightning_module"


class LanguageModel(L.LightningModule):
    """Any module that holds a Hugging Face model, or one with a list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.model = OlmoForCausalLM(
            OlmoConfig(
                vocab_size=256, hidden_size=64, intermediate_size=256, num_hidden_layers=4,
                num_attention_heads=4, bos_token_id=None, eos_token_id=None, pad_token_id=None,
            )
        )  # fmt: skip

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Next-token prediction."""
        loss: Tensor = self.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """The usual one."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


L.seed_everything(0)
text = [{"input_ids": row} for row in torch.randint(0, 256, (256, 64))]  # put your data here

trainer = L.Trainer(
    default_root_dir=folder,
    max_steps=20,
    accelerator="cpu",
    callbacks=[StableRegionCallback(every=10)],  # <- the one line
)
trainer.fit(LanguageModel(), DataLoader(text, batch_size=8, shuffle=True))
