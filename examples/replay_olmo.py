"""See stable regions form in OLMo-1B: 20 of its 1,446 published checkpoints, measured one by one.

Each is 5.1 GB; it is downloaded while the one before is measured, and deleted after its own turn.
Stop it whenever you like, and start it again: it goes on where it was.

    python examples/replay_olmo.py
    tensorboard --logdir replays/olmo
"""

import sys

from sr_monitor import Record
from sr_monitor.replay import replay
from sr_monitor.results.record import list_records

out = sys.argv[1] if len(sys.argv) > 1 else "replays/olmo"

# The same as: sr-monitor replay 'allenai/OLMo-1B-0724-hf@step*' --num 20 --out replays/olmo
report = replay(["allenai/OLMo-1B-0724-hf@step*"], out, num=20)

for record in map(Record.load, list_records(out)):
    slope = record.scalars["stable_regions/max_slope/median"]
    print(f"step {record.step}, {record.tokens} tokens: maximum slope {slope:.2f}")
for checkpoint, reason in report.failures.items():
    print(f"{checkpoint}: {reason}")
