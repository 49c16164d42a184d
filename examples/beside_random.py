"""What training makes of a model: every probe, beside the same architecture with random weights.

python examples/beside_random.py allenai/OLMo-1B-0724-hf
python examples/beside_random.py runs/demo/model
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sr_monitor import MonitorConfig
from sr_monitor.probes.base import available
from sr_monitor.prompts.choose import PromptOptions, choose_prompts
from sr_monitor.watch.measure import take_record

name = sys.argv[1] if len(sys.argv) > 1 else "runs/demo/model"
num_pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 16

trained = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
torch.manual_seed(0)
untrained = AutoModelForCausalLM.from_config(trained.config, dtype=torch.float32)
config = MonitorConfig(
    num_pairs=num_pairs,
    num_slices=2,
    slice_resolution=21,
    probes=[probe for probe in available() if probe != "readout"],  # which needs a target
)
tokenizer = AutoTokenizer.from_pretrained(name)
prompts = choose_prompts(PromptOptions(), tokenizer, config.num_prompts)
found = [take_record(model, prompts, config, step=0).scalars for model in (trained, untrained)]
for key in sorted(found[0]):
    values = "".join(f"{scalars.get(key, float('nan')):12.4g}" for scalars in found)
    print(f"{key:60}{values}")
