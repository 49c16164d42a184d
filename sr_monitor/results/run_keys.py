"""What is logged of a measurement as a whole, besides what its probes log of their parts.

writer.scalar(FAILURES.name, 1.0, step)
names = [key.name for key in documented_keys()]
"""

from sr_monitor.probes.base import built_in
from sr_monitor.probes.keys import Key

NUM_POINTS = Key.scalar("num_points", "How many points were run in all.")
SECONDS = Key.scalar("seconds", "How long the measurement took.")
SHARE_OF_TIME = Key.scalar(
    "share_of_time",
    "The share of the run's wall time that the measurements before this one took.",
)
FAILURES = Key.scalar("failures", "How many measurements have failed so far.")
TOKENS = Key.scalar("tokens", "How many tokens were trained on so far.")
PROMPTS = Key.text("prompts", "The prompts that are measured, the same at every step.")
RUN_KEYS = (NUM_POINTS, SECONDS, SHARE_OF_TIME, FAILURES, TOKENS, PROMPTS)


def documented_keys() -> tuple[Key, ...]:
    """Return every name that this package logs: those of its probes, then those of a run."""
    return (*(key for probe in built_in().values() for key in probe.keys), *RUN_KEYS)
