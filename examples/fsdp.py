"""Watch stable regions form in a model whose weights are sharded over processes (FSDP2).

Every process makes every call; they share the pairs of prompts, and the first one writes.

torchrun --nproc-per-node 2 examples/fsdp.py
tensorboard --logdir runs/fsdp
"""

import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import OlmoConfig, OlmoForCausalLM

from sr_monitor import Monitor, MonitorConfig, PromptSet, TensorBoardWriter, every

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/fsdp"

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank = dist.get_rank()
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)

torch.manual_seed(0)
text = torch.randint(0, 256, (257, 64))  # put your tokens here
model = OlmoForCausalLM(
    OlmoConfig(
        vocab_size=256, hidden_size=64, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
).to(device)  # fmt: skip
for block in model.model.layers:
    fully_shard(block)
fully_shard(model)

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
monitor = Monitor(
    PromptSet.from_token_ids(text[:65, :10]),
    MonitorConfig(num_pairs=64, num_slices=1, slice_resolution=21),
    writers=[TensorBoardWriter(folder)] if rank == 0 else [],
    schedule=every(10),
    log_dir=folder,
)
monitor.step(model, 0)  # before the first update
for step in range(1, 21):
    batch = text[torch.randint(len(text), (8,))[rank::2]].to(device)
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    record = monitor.step(model, step)  # after the update: here the weights are sharded and new
    if record is not None and rank == 0:
        print(f"step {step}: maximum slope {record.scalars['stable_regions/max_slope/median']:.3f}")
monitor.close()
dist.barrier()  # the first process may still be drawing
time.sleep(1)  # and gloo's threads let go of it: where Python ends before, they abort the process
dist.destroy_process_group()
