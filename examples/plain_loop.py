"""Watch stable regions form in a training loop of your own, of any model.

The model here is no Hugging Face model: a stack of blocks between an embedding and a linear map.
A monitor finds the blocks by itself; Fabric and accelerate users make the same calls.

python examples/plain_loop.py
tensorboard --logdir runs/plain_loop
"""

import sys

import torch
from torch import Tensor, nn

from sr_monitor import Monitor, MonitorConfig, PromptSet, TensorBoardWriter, every

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/plain_loop"


class Tiny(nn.Module):
    """A decoder-only transformer from torch's own parts."""

    def __init__(self, vocabulary: int = 256, width: int = 64, num_blocks: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(64, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
            for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.unembedding = nn.Linear(width, vocabulary, bias=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Logits for each position."""
        length = token_ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.embedding(token_ids) + self.position.weight[:length]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.unembedding(self.norm(x))


torch.manual_seed(0)
text = torch.randint(0, 256, (257, 64))  # put your tokens here
model = Tiny()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
monitor = Monitor(
    PromptSet.from_token_ids(text[:65, :10]),
    MonitorConfig(num_pairs=64, num_slices=1, slice_resolution=21),
    writers=[TensorBoardWriter(folder)],
    schedule=every(10),
    log_dir=folder,
)
monitor.step(model, 0)  # before the first update
for step in range(1, 21):
    batch = text[torch.randint(len(text), (8,))]
    loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    record = monitor.step(model, step)  # measures at steps 10 and 20
    if record is not None:
        print(f"step {step}: maximum slope {record.scalars['stable_regions/max_slope/median']:.3f}")
monitor.close()
