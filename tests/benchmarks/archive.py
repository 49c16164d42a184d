"""What an --out of many records costs to open, to go on with, and to add one record to.

with tempfile.TemporaryDirectory() as folder:
    print(costs(make_archive(Path(folder), 5000), 5000))
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.folder import Folder
from sr_monitor.replay.names import CheckpointName
from sr_monitor.replay.plan import PlannedCheckpoint
from sr_monitor.results.record import Record, record_path
from tests.made import PROMPTS, make_paths, make_record

_TRAINING = "/runs/training"


def planned(step: int) -> PlannedCheckpoint:
    """Return the plan of a checkpoint that nobody reads."""
    path = Path(_TRAINING, f"checkpoint-{step}")
    source = LocalCheckpoint(CheckpointName(path.name, step=step), path, None)
    return PlannedCheckpoint(name=source.name, training=_TRAINING, source=source, curve=_TRAINING)


def record_of(step: int) -> Record:
    """Return a made-up record of 256 pairs and 51 points, as a replay keeps it."""
    about = {"source": planned(step).label, "files_sha256": f"{step:064d}", "seconds": 1.5}
    paths = make_paths(step, num_pairs=256, num_steps=51)
    return make_record(step, num_slices=1, paths=paths, metadata=about)


def make_archive(out: Path, num: int) -> Path:
    """Make the folder that a replay of this many checkpoints leaves, with an empty event file."""
    for step in range(1, num + 1):
        record_of(step).save(record_path(out, step))
    runs = {"schema": 1, "options": {}, "runs": {"": _TRAINING}}
    (out / "replay.json").write_text(json.dumps(runs))
    PROMPTS.save((folder := record_path(out, 0).parent) / "prompts.json")
    shown = {"step": num, "records": num, "probes": [], "is_done": True}
    (folder / ".shown.json").write_text(json.dumps(shown))
    (folder / "events.out.tfevents.1").touch()
    return out


def costs(out: Path, num: int) -> dict[str, Any]:
    """Return CPU seconds to open the folder and go on, and of each record more; and peak memory."""
    script = f"from tests.benchmarks.archive import _go_on; _go_on({str(out)!r}, {num})"
    found = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(found.stdout.splitlines()[-1]))


def _go_on(out: str, num: int) -> None:
    more = [planned(step) for step in range(num + 1, num + 11)]
    records = [record_of(each.name.step) for each in more]
    before, start = peak_megabytes(), time.process_time()
    folder = Folder(Path(out), {}, {"": _TRAINING})
    with folder.open():
        todo = [each for each in map(planned, range(1, num + 11)) if folder.find(each) is None]
        folder.begin(todo)
        opened = time.process_time() - start
        times = []
        for each, record in zip(more, records, strict=True):
            start = time.process_time()
            folder.ways(each)
            folder.save(each, record, PROMPTS)
            times.append(time.process_time() - start)
        start = time.process_time()
        folder.finish()
    closed = time.process_time() - start
    found = {"opened": opened, "added": sorted(times)[5], "closed": closed}
    found |= {"megabytes": peak_megabytes() - before, "todo": len(todo)}
    sys.stdout.write(json.dumps(found))


def peak_megabytes() -> float:
    """Return the most memory that this process has held."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
