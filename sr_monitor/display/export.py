"""Show the records of a run on writers again, as if the run had just been measured.

for run in find_runs(["runs/demo"]):
with closing(TensorBoardWriter(f"runs-again/{run.name}")) as writer:
export_run(run, [writer])
"""

from collections.abc import Sequence

from sr_monitor.display.album import Album
from sr_monitor.display.writers.base import Writer
from sr_monitor.errors import InputError
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.runs import Run


def export_run(run: Run, writers: Sequence[Writer]) -> int:
    """Write numbers, pictures and prompts of all records; return how many records there were.

    Names begin with that of the run's folder, as they did in the run. Records that cannot be read
    are in `run.damaged`.
    """
    album = Album(writers, name=run.logged_as)
    last = next((record.step for record in run.records(newest_first=True)), None)
    fingerprint, count = "", 0
    for record in run.records():
        prompts = _prompts(run, record.step, run.prompts(record))
        if prompts.fingerprint != fingerprint:
            fingerprint = prompts.fingerprint
            album.introduce(prompts, record.step)
        album.show(record, prompts=prompts, last=record.step == last)
        count += 1
    return count


def _prompts(run: Run, step: int, prompts: PromptSet | None) -> PromptSet:
    if prompts is None:
        raise InputError(
            f"export: the prompts of {run.name!r} at step {step} are missing or damaged; put "
            f"prompts.json back into {str(run.folder)!r}"
        )
    return prompts
