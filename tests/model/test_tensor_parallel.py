"""Four ranks, two by two: mates run the same prompts, data-parallel groups share the pairs.

All scenarios run in one set of gloo processes; a test asks of each whether it failed on a rank.
"""

import copy
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

from sr_monitor import measure_paths
from sr_monitor.model.mates import find_mates
from sr_monitor.model.ranks import RankGroup, number_teams
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import pack
from sr_monitor.probes.depth import Depth
from sr_monitor.probes.divergence import Divergence
from sr_monitor.probes.layers import Layers
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.polytopes import Polytopes
from sr_monitor.probes.radius import Radius
from sr_monitor.probes.sinks import Sinks
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.watch.config import MonitorConfig
from tests.model.test_ranks import Ill, alone, gap, make_monitor, make_prompts, outcome, told
from tests.processes import in_processes
from tests.zoo import VOCAB, WIDTH, build

CONFIG = MonitorConfig(num_pairs=5, num_steps=11, num_slices=1, slice_resolution=4)
OUT_OF_MEMORY = "memory ran out in a forward of two prompts, the least there is"
SCENARIOS: dict[str, Callable[[int, DeviceMesh], None]] = {}

COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROWS = ("o_proj", "down_proj")


def split(model: Any, mesh: DeviceMesh) -> Any:
    """A Llama, cut up over `mesh`, its vocabulary included; logits come as parts of them."""
    for block in model.model.layers:
        plan: dict[str, Any] = {}
        for name, _ in block.named_modules():
            plan |= {name: ColwiseParallel()} if name.endswith(COLUMNS) else {}
            plan |= {name: RowwiseParallel()} if name.endswith(ROWS) else {}
        parallelize_module(block, mesh, plan)
    head = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    embedding = RowwiseParallel(input_layouts=Replicate())
    return parallelize_module(model, mesh, {"model.embed_tokens": embedding, "lm_head": head})


def sharded(model: Any, mesh: DeviceMesh, **options: Any) -> Any:
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def both_ways(model: Any, mesh: DeviceMesh) -> Any:
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    return sharded(split(model, mesh["tp"]), mesh["dp"], mp_policy=half)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1)[:, None]
        made: Tensor = self.out(torch.tanh(self.value(x).cumsum(dim=1) / counts))
        return made


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(WIDTH), _Attention()
        self.after, self.mlp = nn.LayerNorm(WIDTH), nn.Sequential()
        self.mlp.append(nn.Linear(WIDTH, 48)).append(nn.GELU()).append(nn.Linear(48, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        made: Tensor = x + self.mlp(self.after(x))
        return made


class Sequence(nn.Module):
    """Blocks whose stream can be divided by tokens, as torchtitan and OLMo-core train."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(_Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def by_tokens(mesh: DeviceMesh, *, local: bool) -> nn.Module:
    """The stream is a DTensor, or `local`, each rank's own tokens."""
    out: dict[str, Any] = {"output_layouts": Shard(1), "use_local_output": local}
    whole: dict[str, Any] = {"input_layouts": (Shard(1),), "desired_input_layouts": (Replicate(),)}
    model = Sequence()
    block = {
        "before": SequenceParallel(),
        "attention": PrepareModuleInput(**whole),
        "attention.value": ColwiseParallel(),
        "attention.out": RowwiseParallel(**out),
        "after": SequenceParallel(),
        "mlp": PrepareModuleInput(**whole),
        "mlp.0": ColwiseParallel(),
        "mlp.2": RowwiseParallel(**out),
    }
    for layer in model.layers:
        parallelize_module(layer, mesh, block)
    plan = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), **out),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, plan)


# The rule, in one process -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mates", "teams"),
    [
        ([{0}, {1}, {2}], [0, 1, 2]),
        ([{0, 1}, {0, 1}, {2, 3}, {2, 3}], [0, 0, 1, 1]),
        ([{0, 2}, {1, 3}, {0, 2}, {1, 3}], [0, 1, 0, 1]),
        ([{0, 1}, {1, 2}, {2}, {3}], [0, 0, 0, 1]),  # linked by one rank
    ],
)
def test_mates_and_theirs_are_one_team(mates: list[set[int]], teams: list[int]) -> None:
    assert number_teams(mates) == teams


def test_a_team_has_the_same_items() -> None:
    teams = [0, 0, 1, 1]
    shares = [RankGroup(rank, 4, teams).share(5).tolist() for rank in range(4)]
    assert shares == [[0, 1, 2], [0, 1, 2], [3, 4, 4], [3, 4, 4]]


@pytest.fixture
def eight_ranks() -> Any:
    """A group of eight whose other members are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=8)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("eight_ranks")
def test_mates_are_those_that_do_not_only_gather_weights() -> None:
    two = init_device_mesh("cpu", (4, 2), mesh_dim_names=("a", "b"))
    three = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("x", "y", "z"))

    def gathered(mesh: DeviceMesh, model: Any = None) -> Any:
        return fully_shard(model or nn.Linear(8, 8), mesh=mesh)

    def cut(mesh: DeviceMesh) -> Any:
        model: Any = nn.Linear(8, 8, bias=False)
        model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
        return model

    assert find_mates(nn.Linear(8, 8)) == set()
    assert find_mates(gathered(two["a"])) == set()
    assert find_mates(gathered(two)) == set()  # replicas of shards
    assert find_mates(cut(two["b"])) == {4, 5}
    assert find_mates(gathered(two["a"], cut(two["b"]))) == {4, 5}
    assert find_mates(cut(two["a"])) == {1, 3, 5, 7}
    assert find_mates(gathered(three["x", "y"], cut(three["z"]))) == {4, 5}
    # Along other dimensions for other weights.
    assert find_mates(nn.Sequential(cut(three["y"]), cut(three["z"]))) == {4, 5, 7}


# Four ranks ---------------------------------------------------------------------------------------


def scenario(work: Callable[[int, DeviceMesh], None]) -> Callable[[int, DeviceMesh], None]:
    SCENARIOS[work.__name__] = work
    return work


def everyone(value: Any) -> list[Any]:
    """What all ranks have; they meet, whatever went before."""
    found: list[Any] = [None] * 4
    dist.all_gather_object(found, value)
    return found


@scenario
def four_ranks_find_what_one_finds(rank: int, mesh: DeviceMesh) -> None:
    """Of weights in 16 bits too, with FSDP around in 16 bits; slices and paths."""
    expected = alone(CONFIG)
    ways: dict[str, Callable[[Any], Any]] = {
        "tp": lambda model: split(model, mesh["tp"]),
        "other way round": lambda model: split(model, mesh["dp"]),
        "fsdp and tp": lambda model: both_ways(model, mesh),
        "fsdp1 and tp": lambda model: FullyShardedDataParallel(
            split(model, mesh["tp"]),
            device_mesh=mesh["dp"],
            device_id=torch.device("cpu"),
            auto_wrap_policy=ModuleWrapPolicy({type(model.model.layers[0])}),
        ),
    }
    for name, way in ways.items():
        monitor = make_monitor(config=CONFIG)
        record = monitor.measure(way(build("llama").model), 0)
        assert gap(record, expected) < 1e-5, name
        assert (record.paths.engine, record.paths.arithmetic) == ("shared", "float32")
        assert record.paths.num_points == expected.paths.num_points
        assert record.metadata["processes"] == 4
    prompts = make_prompts().pairs(5)
    half = build("llama").model.to(torch.bfloat16)
    wanted = measure_paths(half, *prompts, num_steps=5)
    found = measure_paths(
        split(copy.deepcopy(half), mesh["tp"]), *prompts, num_steps=5, ranks=RankGroup.present()
    )
    assert found.precision == wanted.precision == "float32 on bfloat16 weights"
    assert ((found.distance - wanted.distance).abs().max() / wanted.distance.max()) < 1e-5


@scenario
def every_layer_output_and_engine_is_exact(rank: int, mesh: DeviceMesh) -> None:
    prompts, model = make_prompts().pairs(3), both_ways(build("llama").model, mesh)
    for layer, output in ((0, "logits"), (2, "final_norm"), (3, "resid_final")):
        cut: dict[str, Any] = {"layer": layer, "output": output, "num_steps": 5}
        expected = measure_paths(build("llama").model, *prompts, **cut).distance
        for engine in ("plain", "rows", "shared"):
            found = measure_paths(
                model, *prompts, engine=engine, ranks=RankGroup.present(), **cut
            ).distance
            assert (found - expected).abs().max() < 1e-5 * expected.max()


@scenario
def streams_that_are_divided_by_tokens_are_whole_for_us(rank: int, mesh: DeviceMesh) -> None:
    """Of six and of seven tokens; local parts of a stream are refused, on all ranks at once."""
    for length in (6, 7):
        prompts = build("llama").prompts(6, length)
        for layer, output in ((0, "logits"), (1, "final_norm"), (2, "resid_final")):
            cut: dict[str, Any] = {"layer": layer, "output": output, "num_steps": 5}
            expected = measure_paths(Sequence(), prompts[:3], prompts[3:], **cut).distance
            model = by_tokens(mesh["tp"], local=False)
            ranks = RankGroup.present()
            found = measure_paths(model, prompts[:3], prompts[3:], ranks=ranks, **cut).distance
            assert (found - expected).abs().max() < 1e-5 * expected.max()
    monitor = make_monitor(config=CONFIG, on_error="raise")
    kind, text = outcome(lambda: monitor.step(by_tokens(mesh["tp"], local=True), 0))
    assert kind == "InputError"
    assert "block 1 of Sequence puts out 3 of 6 tokens" in text
    assert "sequence parallel" in text


PROBES = Depth(), Divergence(), Layers(num_layers=3), Radius(num_prompts=3, num_directions=2)


@scenario
def probes_find_what_one_process_finds_or_stay_out(rank: int, mesh: DeviceMesh) -> None:
    """What looks inside a block, where each rank has a part of the heads and gates, stays out."""
    probes = [PathsProbe(num_steps=7), SlicesProbe(num_slices=1, slice_resolution=4), *PROBES]

    def measured(model: Any, ranks: RankGroup, *more: Any) -> dict[str, Any]:
        return measure_probes(
            model, make_prompts(), [*probes, *more], SessionOptions(), ranks=ranks
        )

    expected = measured(build("llama").model, RankGroup())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = measured(
            both_ways(build("llama").model, mesh), RankGroup.present(), Polytopes(), Sinks()
        )
    assert found.keys() == expected.keys()
    texts = [str(each.message) for each in caught if "probes=" in str(each.message)]
    assert len(texts) == (2 if rank == 0 else 0)
    for text in texts:
        assert "spread over 2 ranks" in text
    for probe in PROBES:
        mine, theirs = pack(found[probe.name]), pack(expected[probe.name])
        for field, value in theirs.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(mine[field], value, rtol=2e-3, atol=1e-4, equal_nan=True)


@scenario
def mates_run_the_same_prompts_and_nothing_is_run_twice(rank: int, mesh: DeviceMesh) -> None:
    """Each group runs half of the tokens that one process runs, though four ranks are there."""
    config = replace(CONFIG, num_pairs=6, num_slices=2, engine="plain")

    def tokens_of(model: Any, ranks: RankGroup | None) -> list[list[list[int]]]:
        ran: list[list[list[int]]] = []
        hook = model.register_forward_pre_hook(
            lambda _, __, given: ran.append(given["input_ids"].tolist()), with_kwargs=True
        )
        make_monitor(config=config, ranks=ranks).measure(model, 0)
        hook.remove()
        return ran

    single = tokens_of(build("llama").model, RankGroup())
    for model in (split(build("llama").model, mesh["tp"]), both_ways(build("llama").model, mesh)):
        ran = everyone(tokens_of(model, None))
        assert ran[0] == ran[1]
        assert ran[2] == ran[3]
        assert ran[0] != ran[2]
        mine, all_rows = (sum(map(len, each)) for each in (ran[0], single))
        assert mine < 0.6 * all_rows  # a look at the model and a comparison are run by everyone


def trained(model: Any, mesh: DeviceMesh, monitor: Any = None) -> dict[str, Any]:
    """What is left of four steps: losses, weights, and the random states."""
    torch.manual_seed(dist.get_rank() // 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    model.train()
    for step in range(4):
        if monitor is not None:
            monitor.step(model, step)
        ids = torch.randint(VOCAB, (2, 8))
        logits = model(input_ids=ids).logits
        logits = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
        loss: Any = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    weights = [
        weight.to_local().clone() for weight in model.parameters() if hasattr(weight, "to_local")
    ]
    return {"losses": losses, "weights": weights, "random": torch.get_rng_state()}


@scenario
def a_training_is_bit_for_bit_the_same(rank: int, mesh: DeviceMesh) -> None:
    from torch.distributed.tensor import _random

    ways: list[Callable[[Any], Any]] = [
        lambda model: split(model, mesh["tp"]),
        lambda model: both_ways(model, mesh),
    ]
    for make in ways:
        plain = trained(make(build("llama").model), mesh)
        tracker = _random._rng_tracker
        monitor = make_monitor(config=CONFIG, on_error="raise")
        watched = trained(make(build("llama").model), mesh, monitor)
        assert monitor.last_step == 3
        assert watched["losses"] == plain["losses"]
        assert len(set(plain["losses"])) > 2
        assert all(map(torch.equal, watched["weights"], plain["weights"]))
        assert torch.equal(watched["random"], plain["random"])
        assert _random._rng_tracker is tracker


@scenario
def weights_that_are_gathered_stay_so(rank: int, mesh: DeviceMesh) -> None:
    """A measurement between a forward and its backward finds the root's weights whole."""
    model = both_ways(build("llama").model, mesh)
    loss = model(input_ids=torch.arange(6)[None]).logits.full_tensor().square().mean()
    for precision in ("auto", "run"):
        make_monitor(config=replace(CONFIG, precision=precision)).measure(model, 0)
    loss.backward()
    after = both_ways(build("llama").model, mesh)
    after(input_ids=torch.arange(6)[None]).logits.full_tensor().square().mean().backward()
    for one, other in zip(model.parameters(), after.parameters(), strict=True):
        assert torch.equal(one.grad.to_local(), other.grad.to_local())


@scenario
def a_fault_on_one_rank_or_on_mates_ends_on_all(rank: int, mesh: DeviceMesh) -> None:
    for who in (1, 2):
        config = replace(CONFIG, probes=[Ill(who=who)])
        monitor = make_monitor(config=config, on_error="raise")
        raised = everyone(
            outcome(partial(monitor.step, split(build("llama").model, mesh["tp"]), 0))
        )
        peers = raised[:who] + raised[who + 1 :]
        assert raised[who][0] not in ("", "PeerError")
        assert {kind for kind, _ in peers} == {"PeerError"}
        assert all(text.startswith(f"rank {who} of 4: {raised[who][0]}: ") for _, text in peers)
    for mates in ({0, 1}, {2, 3}):
        for make in (split, both_ways):
            model, calls = make(build("llama").model, mesh["tp"] if make is split else mesh), [0]

            def fail(*_: Any, mates: set[int] = mates, calls: list[int] = calls) -> None:
                calls[0] += 1
                if calls[0] == 9 and rank in mates:
                    raise torch.OutOfMemoryError("out of memory")

            model.model.layers[1].mlp.register_forward_hook(fail)
            monitor = make_monitor(config=CONFIG)
            with told() as texts:
                measured = [step for step in range(2) if monitor.step(model, step) is not None]
            assert everyone((measured, monitor.guard.failures)) == [([1], 1)] * 4
            assert len(texts) == (1 if rank == 0 else 0)


@scenario
def one_budget_is_agreed_upon(rank: int, mesh: DeviceMesh) -> None:
    model, expected = split(build("llama").model, mesh["tp"]), alone(CONFIG)
    config = replace(CONFIG, max_tokens=[64, 11, 200, 30][rank])
    assert gap(make_monitor(config=config).measure(model, 0), expected) < 1e-5


@scenario
def what_makes_new_parameters_is_refused_by_name(rank: int, mesh: DeviceMesh) -> None:
    model = split(build("llama").model, mesh["tp"])
    wrapped = nn.parallel.DistributedDataParallel(model, device_mesh=mesh["dp"])
    kind, text = outcome(partial(make_monitor(on_error="raise").step, wrapped, 0))
    assert kind == "InputError"
    assert "is tensor parallel inside DistributedDataParallel(device_mesh=...)" in text


def run_all(rank: int) -> dict[str, str]:
    """Run every scenario; return where those that failed did."""
    warnings.simplefilter("ignore")
    mesh, failed = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp")), {}
    for name, work in SCENARIOS.items():
        torch.manual_seed(0)
        try:
            work(rank, mesh)
        except Exception:
            failed[name] = traceback.format_exc()
        dist.barrier()
    return failed


@pytest.fixture(scope="module")
def failed() -> list[dict[str, str]]:
    return in_processes(run_all, size=4, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.13", reason="older DTensors refuse these layouts")
@pytest.mark.parametrize("name", SCENARIOS)
def test_four_ranks(failed: list[dict[str, str]], name: str) -> None:
    for rank in failed:
        assert name not in rank, rank[name]
