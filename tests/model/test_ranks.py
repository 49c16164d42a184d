"""Two processes that measure together: equal to one, undisturbed, and none waits for the other.

All of it runs in one pair of gloo processes; a test looks at what one scenario gave on both.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sr_monitor.display.writers.memory import MemoryWriter
from sr_monitor.errors import InputError
from sr_monitor.model.ranks import RankGroup
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record, list_records, step_of
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.measure import take_record
from sr_monitor.watch.monitor import Monitor
from sr_monitor.watch.schedule import at, budget, every
from tests.processes import in_processes
from tests.training import Run, facts_of
from tests.zoo import build

CONFIG = MonitorConfig(num_pairs=5, num_steps=11, num_slices=1, slice_resolution=4)
TOPOLOGIES = ("ddp", "fsdp2", "fsdp1")
NAME = "stable_regions"

Facts = dict[str, Any]


# One process -------------------------------------------------------------------------------------


def test_one_process_is_a_team_that_exchanges_nothing() -> None:
    ranks = RankGroup.present()
    assert (ranks.rank, ranks.size, ranks.is_leader) == (0, 1, True)
    assert ranks.share(3).tolist() == [0, 1, 2]
    value = torch.tensor([1.5, 2.5])
    assert ranks.gather(value, 2).tolist() == [1.5, 2.5]
    assert ranks.broadcast(value) is value
    assert (ranks.broadcast_number(7), ranks.minimum(7), ranks.broadcast_object("a")) == (7, 7, "a")
    ranks.sync_errors()
    error = ZeroDivisionError("by 0")
    with pytest.raises(ZeroDivisionError) as caught, ranks.failing_together():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(("count", "size"), [(1, 2), (2, 2), (5, 2), (7, 3), (8, 3), (2, 5)])
def test_shares_are_equal_in_size_and_hold_every_item(count: int, size: int) -> None:
    shares = [RankGroup(rank, size).share(count).tolist() for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    everything = [number for share in shares for number in share]
    assert everything[:count] == list(range(count))
    assert set(everything[count:]) <= {count - 1}


# What the two processes do -----------------------------------------------------------------------


@contextmanager
def told() -> Iterator[list[str]]:
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


def total(number: int) -> int:
    """The sum over both: they meet, whatever went before."""
    dist.all_reduce(found := torch.tensor(number))
    return int(found)


def make_prompts(seed: int = 5) -> PromptSet:
    return PromptSet.from_token_ids(build("llama").prompts(7, 6, seed=seed))


def measure(model: nn.Module, prompts: PromptSet, config: MonitorConfig) -> Record:
    return take_record(model, prompts, config, step=0)


def make_monitor(folder: Path | None = None, **changes: Any) -> Monitor:
    options = {"prompts": make_prompts(), "config": CONFIG, "schedule": every(1), **changes}
    return Monitor(log_dir=folder, **options)


def make_model(topology: str) -> Any:
    """A tiny Llama with dropout, the same on every process, and wrapped."""
    model: Any = build("llama").model.train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    if topology == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if topology == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for block in model.model.layers:
            fully_shard(block)
        return fully_shard(model)
    if topology == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        policy = ModuleWrapPolicy({type(model.model.layers[0])})
        device = torch.device("cpu")
        return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=device)
    return model


def is_resharded(model: nn.Module) -> bool:
    """Whether no process holds more than its part of the weights."""
    return all(hasattr(weight, "placements") for weight in model.parameters())


def train(topology: str, rank: int, monitor: Monitor | None) -> tuple[Run, list[bool]]:
    """4 steps, batches of its own on each rank; and whether weights were in parts at each step."""
    torch.manual_seed(rank)
    model = make_model(topology)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses: list[float] = []
    sharded: list[bool] = []
    for step in range(5):
        if step > 0:
            batch = torch.randint(61, (2, 8))
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        if monitor is not None:
            monitor.step(model, step)
            sharded.append(is_resharded(model))
    if monitor is not None:
        monitor.close()
    return Run(folder=Path(), model=model, facts=facts_of(model, optimizer, losses)), sharded


def observed(monitor: Monitor, model: nn.Module, num_steps: int) -> Facts:
    """Which steps were measured, and what was told and counted of the others."""
    with told() as texts:
        measured = [step for step in range(num_steps) if monitor.step(model, step) is not None]
    guard = monitor.guard
    return {"measured": measured, "failures": guard.failures, "off": guard.is_off, "texts": texts}


def distances(record: Record) -> list[Tensor]:
    assert record.slices is not None
    return [record.paths.distance, record.paths.input_distance, record.slices.distance]


def topology_scenario(topology: str) -> Callable[[int, Path], Facts]:
    def scenario(rank: int, folder: Path) -> Facts:
        alone = measure(build("llama").model, make_prompts(), CONFIG)
        assert alone.slices is not None
        mine = folder / f"{topology}-{rank}"  # only the leader's is to be written to
        # Other prompts on the other process: the leader's count.
        monitor = make_monitor(mine, prompts=make_prompts(5 + rank), schedule=every(2))
        unmonitored, _ = train(topology, rank, None)
        monitored, sharded = train(topology, rank, monitor)
        record = Record.load(list_records(folder / f"{topology}-0")[0])
        expected = [alone.paths.distance, alone.paths.input_distance, alone.slices.distance]
        gaps = [
            float((found - wanted).abs().max() / wanted.abs().max())
            for found, wanted in zip(distances(record), expected, strict=True)
        ]
        return {
            "changed": monitored.differences(unmonitored),
            "losses": monitored.losses,
            "sharded": sharded,
            "gap": max(gaps),
            "written": [step_of(path) for path in list_records(mine)] if mine.exists() else None,
            "processes": record.metadata["processes"],
            "prompts": [record.metadata["prompts"], monitor.prompts.fingerprint],
            "failures": monitor.guard.failures,
            "points": (record.paths.num_points, alone.paths.num_points),
        }

    return scenario


def exchange(rank: int, folder: Path) -> Facts:
    ranks = RankGroup.present()
    share = ranks.share(5)
    return {
        "ranks": (ranks.rank, ranks.size, ranks.is_leader),
        "gathered": ranks.gather(10 * share, 5).tolist(),
        "rows": ranks.gather(torch.full((1, 2), float(rank)), 2).tolist(),
        "one": ranks.gather(ranks.share(1), 1).tolist(),
        "followed": ranks.broadcast(torch.tensor([rank + 3, 7])).tolist(),
        "true": ranks.broadcast(torch.tensor([rank == 0])).tolist(),
        "number": ranks.broadcast_number(rank + 3),
        "smallest": ranks.minimum(rank + 3),
        "object": ranks.broadcast_object({"rank": rank}),
    }


def failing_together(rank: int, folder: Path) -> Facts:
    """In each phase, on each process: who raises what, and that they meet again afterwards."""
    ranks = RankGroup.present()

    def before(who: int) -> None:
        with ranks.failing_together():
            if rank == who:
                raise torch.OutOfMemoryError("out of memory")
            ranks.gather(torch.ones(1), 2)

    def after(who: int) -> None:
        with ranks.failing_together():
            ranks.gather(torch.ones(1), 2)
            if rank == who:
                raise ZeroDivisionError("by 0")

    def nested(who: int) -> None:
        with ranks.failing_together():
            with ranks.failing_together():
                if rank == who:
                    raise ZeroDivisionError("by 0")
            ranks.broadcast_number(3)

    def wrapped(who: int) -> None:
        """The error that comes out is another one than went in; one answer is enough."""
        with ranks.failing_together():
            try:
                with ranks.failing_together():
                    if rank == who:
                        raise ZeroDivisionError("by 0")
                    ranks.broadcast_number(3)
            except Exception as error:
                raise LookupError(f"{type(error).__name__} wrapped") from error

    def swallowed(who: int) -> None:
        """Whoever goes on after the other has failed is stopped at the next exchange."""
        with ranks.failing_together():
            if rank == who:
                raise ZeroDivisionError("by 0")
            outcome(lambda: ranks.broadcast_number(3))
            ranks.broadcast_number(3)

    def outside(who: int) -> None:
        if rank == who:
            with ranks.failing_together():
                raise ZeroDivisionError("by 0")
        ranks.sync_errors()

    found: Facts = {}
    for phase in (before, after, nested, wrapped, swallowed, outside):
        for who in (0, 1):
            raised = outcome(lambda phase=phase, who=who: phase(who))  # type: ignore[misc]
            found[f"{phase.__name__} {who}"] = (raised, total(rank + 1))
    both = outcome(lambda: _both_fail(ranks))
    found["both"] = (both, total(rank + 1))
    return found


def _both_fail(ranks: RankGroup) -> None:
    with ranks.failing_together():
        raise ZeroDivisionError(f"on {ranks.rank}")


def faults(rank: int, folder: Path) -> Facts:
    """A fault on one process, under DDP: both are told, and the training afterwards works."""
    found: Facts = {}
    for who in (0, 1):
        model = make_model("ddp")
        now = {"ill": False}

        def fail(*_: Any, who: int = who, now: dict[str, bool] = now) -> None:
            if now["ill"] and rank == who:
                raise torch.OutOfMemoryError("out of memory")

        model.module.model.layers[1].mlp.register_forward_hook(fail)
        monitor = make_monitor()
        with told() as texts:
            outcomes = []
            for step, now["ill"] in enumerate([False, True, True, False, True, True, True, True]):
                outcomes.append(monitor.step(model, step) is not None)
        now["ill"] = False
        batch = torch.randint(61, (2, 8))
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        norm = float(sum(weight.grad.norm() for weight in model.parameters()))
        facts = (outcomes, monitor.guard.failures, monitor.guard.is_off, texts)
        found[f"forward {who}"] = (*facts, total(round(1e3 * norm)))
    return found


def faults_in_shards(rank: int, folder: Path) -> Facts:
    """A fault in the middle of a forward in which processes exchange weights, at many places."""
    found: Facts = {}
    for topology in ("fsdp2", "fsdp1"):
        for number in (1, 2, 4, 6, 9):  # a look at the model, comparisons, the measurement
            for who in (0, 1):
                model, calls = make_model(topology), [0]

                def fail(*_: Any, who: int = who, number: int = number, calls: Any = calls) -> None:
                    calls[0] += 1
                    if calls[0] == number and rank == who:
                        raise RuntimeError("ill")

                block = model.get_submodule(next(n for n, m in model.named_modules() if "mlp" in n))
                hook = block.register_forward_hook(fail)
                monitor = make_monitor(on_error="raise")
                raised = outcome(lambda monitor=monitor, model=model: monitor.step(model, 0))  # type: ignore[misc]
                hook.remove()
                again = monitor.step(model, 1) is not None
                found[f"{topology} {number} {who}"] = (raised, again)
    return found


def fault_in_writing(rank: int, folder: Path) -> Facts:
    class Broken(MemoryWriter):
        def scalar(self, name: str, value: float, step: int) -> None:
            raise OSError("the line is dead")

    model = make_model("ddp")
    monitor = make_monitor(folder / "writing", writers=[Broken()])
    found = observed(monitor, model, 4)
    saved = [step_of(path) for path in list_records(folder / "writing")] if rank == 0 else None
    strict = make_monitor(writers=[Broken()], on_error="raise")
    raised = outcome(lambda: strict.step(model, 0))
    return {**found, "saved": saved, "raised": raised}


def refusal_of_one(rank: int, folder: Path) -> Facts:
    """What one process refuses cannot work on any, whatever else fails on the other."""
    found: Facts = {}
    for who in (0, 1):
        for other in (None, torch.OutOfMemoryError("out of memory")):
            error = InputError("the moon is full") if rank == who else other
            model = make_model("ddp")

            def fail(*_: Any, error: Exception | None = error) -> None:
                if error is not None:
                    raise error

            model.module.model.layers[1].mlp.register_forward_hook(fail)
            found[f"{who} {other}"] = {**observed(make_monitor(), model, 3), "sum": total(1)}
    return found


def leader_alone_is_off(rank: int, folder: Path) -> Facts:
    """Saving a state fails on the leader, which alone does it: the other does not wait for it."""
    model, monitor = make_model("ddp"), make_monitor()
    first = monitor.step(model, 0) is not None
    with told() as texts:
        for _ in range(3 if rank == 0 else 0):
            with monitor.guard.catching("saving the state"):
                raise OSError("no space")
    later = monitor.step(model, 1) is not None
    return {"measured": (first, later), "texts": texts, "sum": total(1)}


def nan_weights(rank: int, folder: Path) -> Facts:
    model = make_model("fsdp2")
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(torch.nan)
    return observed(make_monitor(), model, 2)


def refused(rank: int, folder: Path) -> Facts:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model: Any = build("llama").model
    mesh = init_device_mesh("cpu", (2,))
    for block in model.model.layers:
        parallelize_module(block.mlp, mesh, {"up_proj": ColwiseParallel()})
    return observed(make_monitor(schedule=at([500])), model, 1)


def adaptive(rank: int, folder: Path) -> Facts:
    config = replace(CONFIG, num_pairs=3, num_slices=0, num_steps=41, sampling="adaptive")
    grid = replace(config, sampling="grid")
    alone = measure(build("llama").model, make_prompts(), grid)
    record = make_monitor(config=config).measure(make_model("fsdp2"), 0)
    apart = make_monitor(config=config).measure(build("llama").model, 0)
    gap = (record.paths.distance - alone.paths.distance).abs().max() / alone.paths.distance.max()
    return {
        "gap": float(gap),
        "unsharded looks at all": bool(apart.paths.distance.isfinite().all()),
        "slope": float((apart.paths.max_slope - alone.paths.max_slope).abs().max()),
    }


def fewer_items_than_processes(rank: int, folder: Path) -> Facts:
    config = replace(CONFIG, num_pairs=1, num_slices=1)
    alone = measure(build("llama").model, make_prompts(), config)
    assert alone.slices is not None
    found = {}
    for topology in ("plain", "fsdp2"):
        record = make_monitor(config=config).measure(make_model(topology).eval(), 0)
        assert record.slices is not None
        gap = (record.paths.distance - alone.paths.distance).abs().max()
        slices = (record.slices.distance - alone.slices.distance).abs().max()
        shapes = (tuple(record.paths.distance.shape), tuple(record.slices.distance.shape))
        noise = record.paths.noise_floor
        found[topology] = (float(gap), float(slices), shapes, noise < 1e-3)
    return found


def budgets(rank: int, folder: Path) -> Facts:
    """Clocks that differ by a factor of 100: the leader's decides, and is asked now and then."""
    ahead = [0.0]

    def clock() -> float:
        return (time.perf_counter() + ahead[0]) * (100 if rank else 1)

    schedule = budget(0.02, clock=clock)
    config = replace(CONFIG, num_pairs=2, num_steps=3, num_slices=0)
    monitor, model = make_monitor(config=config, schedule=schedule), build("llama").model
    measured, questions = [], 0
    for step in range(400):
        questions += step >= monitor.pace._next_question
        record = monitor.step(model, step)
        measured += [step] if record is not None else []
        ahead[0] += 2 * max(schedule.state_dict()["recent"])  # a step takes as long as two of these
    spent = schedule.spent_share * schedule.wall_seconds
    excess = spent - max(schedule.state_dict()["recent"]) - 0.02 * schedule.wall_seconds
    return {"measured": measured, "excess": excess, "questions": questions}


def made_before_the_group(rank: int, folder: Path) -> Facts:
    dist.destroy_process_group()
    monitor = make_monitor()
    assert monitor.ranks.size == 1
    dist.init_process_group("gloo", init_method=f"file://{folder}/again", rank=rank, world_size=2)
    record = monitor.step(build("llama").model, 0)
    assert record is not None
    return {"processes": record.metadata["processes"], "leads": monitor.ranks.is_leader}


def resuming(rank: int, folder: Path) -> Facts:
    """The other process sees no records, and learns what was measured from the leader."""
    model, mine = build("llama").model, folder / f"resumed-{rank}"
    for steps in (range(3), range(2, 5)):
        monitor = make_monitor(mine)
        measured = [step for step in steps if monitor.step(model, step) is not None]
        monitor.close()
    return {"measured": measured}


SCENARIOS: dict[str, Callable[[int, Path], Facts]] = {
    "exchange": exchange,
    "failing together": failing_together,
    **{topology: topology_scenario(topology) for topology in TOPOLOGIES},
    "faults": faults,
    "faults in shards": faults_in_shards,
    "fault in writing": fault_in_writing,
    "refusal of one": refusal_of_one,
    "leader alone is off": leader_alone_is_off,
    "nan": nan_weights,
    "refused": refused,
    "adaptive": adaptive,
    "few": fewer_items_than_processes,
    "budgets": budgets,
    "made before": made_before_the_group,
    "resuming": resuming,
}


def run_all(rank: int) -> dict[str, Facts]:
    """Every scenario, one after the other; both processes are in step all the time."""
    place = [""]
    if rank == 0:
        import tempfile

        place = [tempfile.mkdtemp()]
    dist.broadcast_object_list(place)
    warnings.simplefilter("ignore")
    found: dict[str, Facts] = {}
    for name, scenario in SCENARIOS.items():
        torch.manual_seed(0)
        found[name] = scenario(rank, Path(place[0]))
        dist.barrier()
    return found


# What they found ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Callable[[str], list[Facts]]:
    """What a scenario gave, by rank."""
    results = in_processes(run_all, timeout=240)
    return lambda name: [result[name] for result in results]


Found = Callable[[str], list[Facts]]


def test_what_is_exchanged_arrives(found: Found) -> None:
    first, second = found("exchange")
    assert first.pop("ranks") == (0, 2, True)
    assert second.pop("ranks") == (1, 2, False)
    assert first == second
    assert first == {
        "gathered": [0, 10, 20, 30, 40],
        "rows": [[0.0, 0.0], [1.0, 1.0]],
        "one": [0],
        "followed": [3, 7],
        "true": [True],
        "number": 3,
        "smallest": 3,
        "object": {"rank": 0},
    }


OUT_OF_MEMORY = (
    "memory ran out (out of memory); pass a smaller max_tokens= (tokens in one forward) or "
    "slice_resolution="
)


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    ("phase", "raised", "said"),
    [
        ("before", ("OutOfMemoryError", "out of memory"), OUT_OF_MEMORY),
        ("after", ("ZeroDivisionError", "by 0"), "ZeroDivisionError: by 0"),
        ("nested", ("ZeroDivisionError", "by 0"), "ZeroDivisionError: by 0"),
        ("swallowed", ("ZeroDivisionError", "by 0"), "ZeroDivisionError: by 0"),
        ("outside", ("ZeroDivisionError", "by 0"), "ZeroDivisionError: by 0"),
    ],
)
def test_who_fails_raises_its_error_and_the_other_says_why(
    found: Found, phase: str, raised: tuple[str, str], said: str, who: int
) -> None:
    results = [result[f"{phase} {who}"] for result in found("failing together")]
    assert results[who] == (raised, 3)
    assert results[1 - who] == (("PeerError", f"rank {who} of 2: {said}"), 3)


@pytest.mark.parametrize("who", [0, 1])
def test_an_error_that_was_wrapped_on_its_way_is_told_once(found: Found, who: int) -> None:
    results = [result[f"wrapped {who}"] for result in found("failing together")]
    assert results[who] == (("LookupError", "ZeroDivisionError wrapped"), 3)
    assert results[1 - who] == (("LookupError", "PeerError wrapped"), 3)


def test_where_both_fail_each_raises_its_own(found: Found) -> None:
    results = [result["both"] for result in found("failing together")]
    assert results == [(("ZeroDivisionError", f"on {rank}"), 3) for rank in (0, 1)]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_monitored_run_is_bit_for_bit_the_unmonitored_one(found: Found, topology: str) -> None:
    for facts in found(topology):
        assert facts["changed"] == []
        assert facts["failures"] == 0
        assert len(set(facts["losses"])) == 4
    first, second = found(topology)
    assert first["losses"] != second["losses"]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_record_is_that_of_one_process_and_written_once(found: Found, topology: str) -> None:
    first, second = found(topology)
    assert first["gap"] < 1e-5
    assert first["written"] == [0, 2, 4]
    assert second["written"] is None
    assert first["processes"] == 2
    assert first["points"][0] == first["points"][1]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_leaders_prompts_are_measured(found: Found, topology: str) -> None:
    for facts in found(topology):
        assert facts["prompts"] == [make_prompts(5).fingerprint] * 2


def test_weights_are_in_parts_again_after_each_measurement(found: Found) -> None:
    for facts in found("fsdp2"):
        assert facts["sharded"] == [True] * 5


@pytest.mark.parametrize("who", [0, 1])
def test_a_fault_on_one_process_ends_on_both(found: Found, who: int) -> None:
    (*first, one), (*second, other) = (result[f"forward {who}"] for result in found("faults"))
    measured, failures, blown, texts = first
    assert measured == [True, False, False, True, False, False, False, False]
    assert (failures, blown) == (5, True)
    assert second == [measured, failures, blown, []]
    assert len(texts) == 2
    cause = OUT_OF_MEMORY if who == 0 else f"rank 1 of 2: {OUT_OF_MEMORY}"
    assert texts[0].startswith(f"measuring at step 1 failed: {cause}. Training goes on")
    assert "3 times in a row" in texts[1]
    assert one == other > 0  # they trained on together


def test_a_fault_amid_an_exchange_of_weights_ends_on_both(found: Found) -> None:
    results = found("faults in shards")
    assert len(results[0]) == 20
    for name in results[0]:
        who = int(name[-1])
        assert results[who][name] == (("RuntimeError", "ill"), True)
        said = f"rank {who} of 2: RuntimeError: ill"
        assert results[1 - who][name] == (("PeerError", said), True)


def test_a_fault_in_writing_ends_on_both_and_the_record_is_saved(found: Found) -> None:
    first, second = found("fault in writing")
    assert first["measured"] == second["measured"] == []
    assert first["failures"] == second["failures"] == 3
    assert first["saved"] == [0, 1, 2]
    assert len(first["texts"]) == 2
    assert "Broken could not write: the line is dead" in first["texts"][0]
    assert second["texts"] == []
    assert first["raised"][0] == "WriterError"
    assert second["raised"][0] == "PeerError"
    assert "rank 0 of 2: WriterError: Broken could not write" in second["raised"][1]


@pytest.mark.parametrize("other", ["None", "out of memory"])
@pytest.mark.parametrize("who", [0, 1])
def test_what_one_refuses_ends_on_both_at_once(found: Found, who: int, other: str) -> None:
    first, second = (result[f"{who} {other}"] for result in found("refusal of one"))
    said = "the moon is full" if who == 0 else "rank 1 of 2: the moon is full"
    text = f"measuring at step 0 failed, it cannot work here: {said}. sr-monitor is off now; "
    alike = {"measured": [], "failures": 1, "off": True, "sum": 2}
    assert first == {**alike, "texts": [f"{text}training goes on"]}
    assert second == {**alike, "texts": []}


def test_a_leader_that_is_off_alone_leaves_nobody_waiting(found: Found) -> None:
    first, second = found("leader alone is off")
    assert first["measured"] == second["measured"] == (True, False)
    assert first["sum"] == second["sum"] == 2
    assert "sr-monitor is off now" in first["texts"][-1]


def test_weights_that_are_not_finite_are_told_by_one_and_counted_by_all(found: Found) -> None:
    first, second = found("nan")
    assert first["measured"] == second["measured"] == []
    assert first["failures"] == second["failures"] == 2
    assert len(first["texts"]) == 1
    assert "not one output of 5 pairs is finite" in first["texts"][0]
    assert second["texts"] == []


def test_what_cannot_be_shared_is_refused_at_the_start(found: Found) -> None:
    first, second = found("refused")
    assert first["off"]
    assert second["off"]
    (text,) = first["texts"]
    assert text.startswith("starting sr-monitor failed, it cannot work here: ")
    assert "is tensor parallel (model.layers.0.mlp.up_proj.weight is placed" in text
    assert "measure saved checkpoints instead" in text
    assert second["texts"] == []


def test_sharded_processes_look_at_every_alpha(found: Found) -> None:
    for facts in found("adaptive"):
        assert facts["gap"] < 1e-5
        assert not facts["unsharded looks at all"]
        assert facts["slope"] < 1e-3


def test_there_may_be_fewer_pairs_and_triples_than_processes(found: Found) -> None:
    for facts in found("few"):
        for paths, slices, shapes, has_noise in facts.values():
            assert paths < 1e-4
            assert slices < 1e-4
            assert shapes == ((1, 11), (1, 3, 4, 4))
            assert has_noise


def test_with_a_budget_the_leaders_clock_decides(found: Found) -> None:
    first, second = found("budgets")
    assert first["measured"] == second["measured"]
    assert 2 <= len(first["measured"]) < 100
    assert first["measured"][0] == 0
    assert first["excess"] <= 0
    assert first["questions"] == second["questions"] < 200  # not at every step


def test_a_monitor_made_before_the_group_joins_it(found: Found) -> None:
    assert [facts["processes"] for facts in found("made before")] == [2, 2]
    assert [facts["leads"] for facts in found("made before")] == [True, False]


def test_a_resumed_run_follows_the_leaders_records(found: Found) -> None:
    assert [facts["measured"] for facts in found("resuming")] == [[3, 4], [3, 4]]


# The helper itself -------------------------------------------------------------------------------


def hang(rank: int) -> None:
    """One waits for the other, which is busy with something else; gone, it would be missed."""
    if rank == 0:
        dist.barrier()
    time.sleep(60)


@pytest.mark.slow  # it takes as long as it is told to wait
def test_a_hang_is_a_failure_that_says_where() -> None:
    with pytest.raises(AssertionError, match=r"processes \[0, 1\] failed or hang(.|\n)*in barrier"):
        in_processes(hang, timeout=30)
