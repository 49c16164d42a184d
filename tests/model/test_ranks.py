"""Two ranks that measure together find what one finds, and none waits for the other.

All scenarios run in one pair of gloo processes; a test asks of each whether it failed on a rank.
"""

import random
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sr_monitor.errors import InputError, NothingFitsError, describe
from sr_monitor.model.ranks import RankGroup
from sr_monitor.model.session import Session
from sr_monitor.probes.radius import Radius
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record, list_records, step_of
from sr_monitor.watch.config import MonitorConfig, WatchOptions
from sr_monitor.watch.measure import take_record
from sr_monitor.watch.monitor import Monitor
from sr_monitor.watch.schedule import budget, every
from sr_monitor.watch.watcher import Training, Watcher
from tests.memory_writer import MemoryWriter
from tests.model.helpers import needs_fsdp2
from tests.outside_probe import Norms
from tests.processes import in_processes
from tests.zoo import build

CONFIG = MonitorConfig(num_pairs=5, num_steps=11, num_slices=1, slice_resolution=4)
BY_ZERO = ("ZeroDivisionError", "by 0")
OUT_OF_MEMORY = describe(torch.OutOfMemoryError("out of memory"))
NOTHING_FITS = describe(NothingFitsError("out of memory"))
_SKIPPED = "skipped: "
SCENARIOS: dict[str, Callable[[int, Path], None]] = {}


@pytest.mark.parametrize(("count", "size"), [(1, 2), (2, 2), (5, 2), (7, 3), (8, 3), (2, 5)])
def test_shares_are_equal_in_size_and_hold_every_item(count: int, size: int) -> None:
    shares = [RankGroup(rank, size).share(count).tolist() for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    everything = [number for share in shares for number in share]
    assert everything[:count] == list(range(count))
    assert set(everything[count:]) <= {count - 1}


def scenario(work: Callable[[int, Path], None]) -> Callable[[int, Path], None]:
    SCENARIOS[work.__name__] = work
    return work


@contextmanager
def told() -> Iterator[list[str]]:
    """The warnings of failures inside."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(item.message) for item in caught if "failed" in str(item.message)]


def outcome(work: Callable[[], Any]) -> tuple[str, str]:
    """What was raised."""
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def both(value: Any) -> list[Any]:
    """What both ranks have; they meet, whatever went before."""
    found: list[Any] = [None, None]
    dist.all_gather_object(found, value)
    return found


def make_prompts(seed: int = 5) -> PromptSet:
    return PromptSet.from_token_ids(build("llama").prompts(7, 6, seed=seed))


def alone(config: MonitorConfig = CONFIG, *, scale: float = 1.0) -> Record:
    """The measurement of one rank."""
    return take_record(_scale(build("llama").model, scale), make_prompts(), config, step=0)


def _scale(model: nn.Module, scale: float) -> nn.Module:
    """As an update of the optimizer."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    return model


def make_monitor(folder: Path | None = None, **changes: Any) -> Monitor:
    options = {"prompts": make_prompts(), "config": CONFIG, "schedule": every(1), **changes}
    return Monitor(log_dir=folder, **options)


def make_model(topology: str) -> Any:
    """A tiny Llama, the same on every rank, and wrapped."""
    model: Any = build("llama").model.train()
    if topology == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if topology == "fsdp2":
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        needs_fsdp2()
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        for block in model.model.layers:
            fully_shard(block, mp_policy=half)
        return fully_shard(model, mp_policy=half)
    if topology == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        policy = ModuleWrapPolicy({type(model.model.layers[0])})
        device = torch.device("cpu")
        mixed = MixedPrecision(param_dtype=torch.bfloat16, buffer_dtype=torch.bfloat16)
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, mixed_precision=mixed, device_id=device
        )
    return model


def observed(monitor: Monitor, model: nn.Module, steps: range) -> tuple[list[int], int, list[str]]:
    """Which steps were measured, how many failed, and what was told of those."""
    with told() as texts:
        measured = [step for step in steps if monitor.step(model, step) is not None]
    return measured, monitor.guard.failures, texts


def gap(record: Record, expected: Record) -> float:
    """The largest difference in any number, as a share of the largest."""

    def numbers(of: Record) -> list[Tensor]:
        slices = [of.slices.distance] if of.slices else []
        return [of.paths.distance, of.paths.input_distance, *slices]

    pairs = list(zip(numbers(record), numbers(expected), strict=True))
    assert all(found.shape == wanted.shape for found, wanted in pairs)
    return max(float((found - wanted).abs().max() / wanted.abs().max()) for found, wanted in pairs)


@scenario
def what_is_exchanged_arrives(rank: int, folder: Path) -> None:
    ranks = RankGroup.present()
    assert (ranks.rank, ranks.size, ranks.is_leader) == (rank, 2, rank == 0)
    assert ranks.gather(10 * ranks.share(5), 5).tolist() == [0, 10, 20, 30, 40]
    assert ranks.gather(torch.full((1, 2), float(rank)), 2).tolist() == [[0, 0], [1, 1]]
    assert ranks.gather(ranks.share(1), 1).tolist() == [0]
    assert ranks.broadcast(torch.tensor([rank + 3, 7])).tolist() == [3, 7]
    assert ranks.broadcast(torch.tensor([rank == 0])).tolist() == [True]
    assert ranks.broadcast({"rank": rank}) == {"rank": 0}
    assert ranks.minimum(rank + 3) == 3


@scenario
def who_fails_raises_its_error_and_the_other_says_why(rank: int, folder: Path) -> None:
    ranks = RankGroup.present()

    def fail(who: int, error: Exception | None = None) -> None:
        if rank == who:
            raise error or ZeroDivisionError("by 0")

    def before(who: int) -> None:
        with ranks.failing_together():
            fail(who, torch.OutOfMemoryError("out of memory"))
            ranks.gather(torch.ones(1), 2)

    def after(who: int) -> None:
        with ranks.failing_together():
            ranks.gather(torch.ones(1), 2)
            fail(who)

    def nested(who: int) -> None:
        with ranks.failing_together():
            with ranks.failing_together():
                fail(who)
            ranks.broadcast(3)

    def swallowed(who: int) -> None:
        """Whoever goes on after the other has failed is stopped at the next exchange."""
        with ranks.failing_together():
            fail(who)
            outcome(lambda: ranks.broadcast(3))
            ranks.broadcast(3)

    def outside(who: int) -> None:
        if rank == who:
            with ranks.failing_together():
                fail(who)
        ranks.sync_errors()

    def wrapped(who: int) -> None:
        """The error that comes out is another one than went in; one answer is enough."""
        with ranks.failing_together():
            try:
                nested(who)
            except Exception as error:
                raise LookupError(f"{type(error).__name__} wrapped") from error

    for phase in (before, after, nested, swallowed, outside, wrapped):
        for who in (0, 1):
            raised = both(outcome(partial(phase, who)))
            own, reason = BY_ZERO, "ZeroDivisionError: by 0"
            if phase is before:
                own, reason = ("OutOfMemoryError", "out of memory"), OUT_OF_MEMORY
            others = ("PeerError", f"rank {who} of 2: {reason}")
            if phase is wrapped:
                own, others = (("LookupError", f"{each[0]} wrapped") for each in (own, others))
            assert (raised[who], raised[1 - who]) == (own, others), (phase, who, raised)

    with told(), pytest.raises(ZeroDivisionError, match=f"on {rank}"), ranks.failing_together():
        raise ZeroDivisionError(f"on {rank}")


@scenario
def ranks_find_together_what_one_finds(rank: int, folder: Path) -> None:
    """Of the leader's prompts. Only the leader writes, and no rank keeps the others' weights.

    FSDP trains in 16 bits, and the measurement does not.
    """
    expected, later = alone(), alone(scale=1.1)
    for topology in ("ddp", "fsdp2", "fsdp1"):
        mine = folder / f"{topology}-{rank}"
        model, monitor = make_model(topology), make_monitor(mine, prompts=make_prompts(5 + rank))
        record = monitor.measure(model, 0)
        _scale(model, 1.1)
        assert gap(monitor.measure(model, 1), later) < 1e-5  # not of weights gathered before
        monitor.close()
        assert gap(record, expected) < 1e-5
        assert record.paths.num_points == expected.paths.num_points
        assert record.metadata["processes"] == 2
        assert record.metadata["prompts"] == make_prompts().fingerprint
        assert [step_of(path) for path in list_records(mine)] == [0, 1] * (rank == 0)
        if topology == "fsdp2":
            assert all(hasattr(weight, "placements") for weight in model.parameters())


@scenario
def radii_on_ranks_are_those_of_one(rank: int, folder: Path) -> None:
    """Three prompts on two ranks; the weights are whole, or sharded."""
    config = replace(CONFIG, probes=[Radius(num_prompts=3, num_directions=2)])
    expected = alone(config).parts["radius"]
    for topology in ("plain", "fsdp2"):
        found = make_monitor(config=config).measure(make_model(topology).eval(), 0).parts["radius"]
        for name in ("radius", "across", "mixed", "output_radius", "closed_form"):
            one, other = getattr(found, name), getattr(expected, name)
            torch.testing.assert_close(one, other, rtol=2e-3, atol=0, equal_nan=True)
        assert found.scale == expected.scale


@scenario
def sharded_ranks_look_at_every_alpha(rank: int, folder: Path) -> None:
    config = replace(CONFIG, num_pairs=3, num_slices=0, num_steps=41, sampling="adaptive")
    expected = alone(replace(config, sampling="grid"))
    record = make_monitor(config=config).measure(make_model("fsdp2"), 0)
    assert gap(record, expected) < 1e-5
    apart = make_monitor(config=config).measure(build("llama").model, 0).paths
    assert not apart.distance.isfinite().all()
    assert (apart.max_slope - expected.paths.max_slope).abs().max() < 1e-3


@scenario
def there_may_be_fewer_pairs_and_triples_than_ranks(rank: int, folder: Path) -> None:
    config = replace(CONFIG, num_pairs=1, num_slices=1)
    expected = alone(config)
    for topology in ("plain", "fsdp2"):
        record = make_monitor(config=config).measure(make_model(topology).eval(), 0)
        assert gap(record, expected) < 1e-5
        assert record.paths.noise_floor < 1e-3


@scenario
def a_fault_on_one_rank_ends_on_both(rank: int, folder: Path) -> None:
    """Under DDP: one tells, both count."""
    for who in (0, 1):
        model, ill = make_model("ddp"), [False]

        def fail(*_: Any, who: int = who, ill: list[bool] = ill) -> None:
            if ill[0] and rank == who:
                raise torch.OutOfMemoryError("out of memory")

        model.module.model.layers[1].mlp.register_forward_hook(fail)
        monitor = make_monitor()
        measured = []
        with told() as texts:
            for step, ill[0] in enumerate([False, True, True, False, True, True, True, True]):
                measured += [step] if monitor.step(model, step) is not None else []
        assert (measured, monitor.guard.failures, monitor.guard.is_off) == ([0, 3], 5, True)
        if rank == 0:
            cause = NOTHING_FITS if who == 0 else f"rank 1 of 2: {NOTHING_FITS}"
            assert texts[0].startswith(f"measuring at step 1 failed: {cause}. Training goes on")
            assert "3 times in a row" in texts[1]
        assert len(texts) == (2 if rank == 0 else 0)


@scenario
def a_fault_amid_an_exchange_of_weights_ends_on_both(rank: int, folder: Path) -> None:
    """At many places: a look at the model, comparisons, the measurement."""
    for topology, number, who in [
        ("fsdp2", 1, 1),
        ("fsdp2", 2, 0),
        ("fsdp2", 9, 1),
        ("fsdp1", 4, 1),
        ("fsdp1", 6, 0),
    ]:
        model, calls = make_model(topology), [0]

        def fail(*_: Any, who: int = who, number: int = number, calls: list[int] = calls) -> None:
            calls[0] += 1
            if calls[0] == number and rank == who:
                raise RuntimeError("ill")

        block = model.get_submodule(next(n for n, m in model.named_modules() if "mlp" in n))
        hook = block.register_forward_hook(fail)
        monitor = make_monitor(on_error="raise")
        raised = outcome(partial(monitor.step, model, 0))
        hook.remove()
        again = monitor.step(model, 1)
        peers = ("PeerError", f"rank {who} of 2: RuntimeError: ill")
        assert raised == (("RuntimeError", "ill") if rank == who else peers)
        assert again is not None


@scenario
def a_fault_in_writing_ends_on_both_and_the_record_is_saved(rank: int, folder: Path) -> None:
    class Broken(MemoryWriter):
        def scalar(self, name: str, value: float, step: int) -> None:
            raise OSError("the line is dead")

    model = make_model("ddp")
    monitor = make_monitor(folder / "writing", writers=[Broken()])
    measured, failures, texts = observed(monitor, model, range(4))
    strict = make_monitor(writers=[Broken()], on_error="raise")
    kind, said = outcome(lambda: strict.step(model, 0))
    assert (measured, failures, len(texts)) == ([], 3, 2 if rank == 0 else 0)
    assert "Broken could not write: the line is dead" in (texts[0] if rank == 0 else said)
    assert kind == ("WriterError" if rank == 0 else "PeerError")
    if rank == 0:
        assert [step_of(path) for path in list_records(folder / "writing")] == [0, 1, 2]


@scenario
def what_one_refuses_ends_on_both_at_once(rank: int, folder: Path) -> None:
    """It cannot work on any, whatever else fails on the other."""
    for who in (0, 1):
        for other in (None, torch.OutOfMemoryError("out of memory")):
            error = InputError("the moon is full") if rank == who else other
            model = make_model("ddp")

            def fail(*_: Any, error: Exception | None = error) -> None:
                if error is not None:
                    raise error

            model.module.model.layers[1].mlp.register_forward_hook(fail)
            monitor = make_monitor()
            found = both((*observed(monitor, model, range(3)), monitor.guard.is_off))
            said = "the moon is full" if who == 0 else "rank 1 of 2: the moon is full"
            (text,) = found[0][2]
            assert text.startswith(f"measuring at step 0 failed, it cannot work here: {said}.")
            assert found == [([], 1, [text], True), ([], 1, [], True)]


@scenario
def a_leader_that_is_off_alone_leaves_nobody_waiting(rank: int, folder: Path) -> None:
    """Saving a state fails on the leader, which alone does it."""
    model, monitor = make_model("ddp"), make_monitor()
    first = monitor.step(model, 0) is not None
    with told() as texts:
        for _ in range(3 if rank == 0 else 0):
            with monitor.guard.catching("saving the state"):
                raise OSError("no space")
    later = monitor.step(model, 1) is not None
    assert both((first, later)) == [(True, False)] * 2
    assert rank == 1 or "sr-monitor is off now" in texts[-1]


@scenario
def a_schedule_of_the_users_is_asked_on_the_leader_alone(rank: int, folder: Path) -> None:
    """One that is random, and one that raises; ours exchange nothing where they say no."""
    model = build("llama").model
    chance = random.Random(rank)
    one_config = replace(CONFIG, num_pairs=2, num_steps=3, num_slices=0)
    monitor = make_monitor(config=one_config, schedule=lambda step: chance.random() < 0.3)
    first, second = both(observed(monitor, model, range(12))[0])
    chance = random.Random(0)
    assert first == second == [step for step in range(12) if chance.random() < 0.3]

    def ill(step: int) -> bool:
        if rank == who and step in (1, 2, 3):
            raise LookupError("no idea")
        return step == 4

    for who, failures in ((0, 3), (1, 0)):
        for schedule in (ill, budget(1.0, schedule=ill)):
            monitor = make_monitor(config=one_config, schedule=schedule)
            found = both(observed(monitor, model, range(5))[:2])
            assert found == [([] if failures else [4], failures)] * 2, (who, found)

    def clock(who: int) -> float:
        if rank == who:
            raise LookupError("stopped")
        return time.perf_counter()

    for who in (0, 1):
        schedule = budget(1.0, clock=partial(clock, who))
        monitor = make_monitor(config=one_config, schedule=schedule)
        assert both(observed(monitor, model, range(3))[:2]) == [([], 1)] * 2
        assert monitor.guard.is_off

    monitor = make_monitor(config=one_config, schedule=every(2 + rank))
    assert both(observed(monitor, model, range(7))[0]) == [[0, 2, 4, 6]] * 2
    exchange, calls = dist.all_reduce, list[int]()

    def noted(*given: Any, **how: Any) -> Any:
        calls.append(1)
        return exchange(*given, **how)

    dist.all_reduce = noted
    try:
        monitor.step(model, 7)
        assert calls == []
        monitor = make_monitor(config=one_config, schedule=lambda step: False)
        monitor.step(model, 0)
        calls.clear()
        for step in range(1, 4):
            monitor.step(model, step)
        assert len(calls) == 3
    finally:
        dist.all_reduce = exchange


@dataclass(frozen=True, kw_only=True)
class Ill(Norms):
    """Fails in the middle of a measurement, on one rank."""

    who: int = 0

    def reader(self, session: Session, num_contexts: int, num_places: int) -> Norms.Reader:
        reader = super().reader(session, num_contexts, num_places)
        if session.ranks.rank == self.who:
            reader.norm = reader.norm[:, :0]  # no place for what it is to keep
        return reader


@scenario
def tokens_and_probes_that_fail_on_one_rank_end_on_both(rank: int, folder: Path) -> None:
    for who in (0, 1):

        def tokens(who: int = who) -> int:
            if rank == who:
                raise LookupError("not counted")
            return 5

        model = make_model("fsdp2")
        monitor = make_monitor(on_error="raise")
        raised = both(outcome(partial(monitor.step, model, 0, tokens=tokens)))
        assert raised[who] == ("LookupError", "not counted")
        assert raised[1 - who] == ("PeerError", f"rank {who} of 2: LookupError: not counted")
        config = replace(CONFIG, probes=[Ill(who=who)])
        monitor = make_monitor(config=config, on_error="raise")
        raised = both(outcome(partial(monitor.step, model, 0)))
        assert raised[1 - who][0] == "PeerError"
        assert raised[1 - who][1].startswith(f"rank {who} of 2: {raised[who][0]}: ")


@scenario
def prompts_that_fail_or_differ_on_one_rank_leave_nobody_waiting(rank: int, folder: Path) -> None:
    model = build("llama").model
    make_prompts(5).save(own := folder / f"prompts-{rank}.json")

    def find_state(name: str) -> None:
        return None

    for who, given in ((0, "nowhere.json"), (1, "nowhere.json"), (1, make_prompts(9))):
        options = WatchOptions(given if rank == who else own, num_pairs=2, num_steps=3, writer=[])
        watcher = Watcher(options)
        known: dict[str, Any] = {"model": model, "step": 0, "run": who, "log_dir": None}
        with told() as texts:
            watcher.begin(partial(Training, find_writers=list, find_state=find_state, **known))
        is_lost = given == "nowhere.json"
        assert both((watcher.monitor is None, watcher.guard.is_off)) == [(is_lost, is_lost)] * 2
        assert len(texts) == (1 - rank) * is_lost
        if watcher.monitor is not None:
            assert watcher.monitor.prompts.fingerprint == make_prompts(5).fingerprint


@scenario
def weights_that_are_not_finite_are_told_by_one_and_counted_by_all(rank: int, folder: Path) -> None:
    model = make_model("fsdp2")
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(torch.nan)
    measured, failures, texts = observed(make_monitor(), model, range(2))
    assert (measured, failures, len(texts)) == ([], 2, 1 - rank)
    assert rank == 1 or "not one output of 5 pairs is finite" in texts[0]


@scenario
def with_a_budget_the_leaders_clock_decides(rank: int, folder: Path) -> None:
    """Clocks that differ by a factor of 100: the leader's is asked, and not at every step."""
    ahead = [0.0]

    def clock() -> float:
        return (time.perf_counter() + ahead[0]) * (100 if rank else 1)

    schedule = budget(0.02, clock=clock)
    config = replace(CONFIG, num_pairs=2, num_steps=3, num_slices=0)
    monitor, model = make_monitor(config=config, schedule=schedule), build("llama").model
    measured, questions = [], 0
    for step in range(400):
        questions += step >= monitor.pace._next_question
        measured += [step] if monitor.step(model, step) is not None else []
        ahead[0] += 2 * max(schedule.state_dict()["recent"])  # a step takes as long as two of these
    first, second = both((measured, questions))
    assert first == second
    assert measured[0] == 0
    assert 2 <= len(measured) < 100
    assert questions < 200
    spent = schedule.spent_share * schedule.wall_seconds
    excess = spent - max(schedule.state_dict()["recent"]) - 0.02 * schedule.wall_seconds
    assert excess <= 0 or rank == 1


@scenario
def a_resumed_run_follows_the_leaders_records(rank: int, folder: Path) -> None:
    """The other rank sees no records, and learns what was measured from the leader."""
    model, mine = build("llama").model, folder / f"resumed-{rank}"
    for steps, expected in ((range(3), [0, 1, 2]), (range(2, 5), [3, 4])):
        monitor = make_monitor(mine)
        measured, _, _ = observed(monitor, model, steps)
        monitor.close()
        assert measured == expected


@scenario
def a_monitor_made_before_the_group_joins_it(rank: int, folder: Path) -> None:
    dist.destroy_process_group()
    monitor = make_monitor()
    assert monitor.ranks.size == 1
    dist.init_process_group("gloo", init_method=f"file://{folder}/again", rank=rank, world_size=2)
    record = monitor.step(build("llama").model, 0)
    assert record is not None
    assert record.metadata["processes"] == 2
    assert monitor.ranks.is_leader == (rank == 0)


def run_all(rank: int) -> dict[str, str]:
    """Run every scenario; return where those that failed did."""
    (folder, _) = both(tempfile.mkdtemp())
    warnings.simplefilter("ignore")
    failed = {}
    for name, work in SCENARIOS.items():
        torch.manual_seed(0)
        try:
            work(rank, Path(folder))
        except AssertionError:
            failed[name] = traceback.format_exc()
        except pytest.skip.Exception as reason:
            failed[name] = f"{_SKIPPED}{reason}"
        dist.barrier()
    return failed


@pytest.fixture(scope="module")
def failed() -> list[dict[str, str]]:
    return in_processes(run_all, timeout=150)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks(failed: list[dict[str, str]], name: str) -> None:
    for rank in failed:
        if (text := rank.get(name, "")).startswith(_SKIPPED):
            pytest.skip(text)
        assert name not in rank, text
