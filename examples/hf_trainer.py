"""Watch stable regions form while the Hugging Face Trainer trains: one line more than without.

python examples/hf_trainer.py
tensorboard --logdir runs/hf_trainer
"""

import sys

import torch
from sr_monitor_transformers import StableRegionCallback
from transformers import OlmoConfig, OlmoForCausalLM, Trainer, TrainingArguments

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/hf_trainer"

torch.manual_seed(0)
text = torch.randint(0, 256, (256, 64))  # put your tokenized data set here
model = OlmoForCausalLM(
    OlmoConfig(
        vocab_size=256, hidden_size=64, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
)  # fmt: skip

trainer = Trainer(
    model,
    TrainingArguments(folder, max_steps=20, per_device_train_batch_size=8, use_cpu=True),
    train_dataset=[{"input_ids": row, "labels": row} for row in text],
    callbacks=[StableRegionCallback(every=10)],  # <- the one line
)
trainer.train()
