"""Float32 arithmetic on 16-bit weights: the numbers of the same weights converted to float32."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sr_monitor import InputError, measure_paths
from sr_monitor.model.arithmetic import float32_arithmetic
from sr_monitor.model.precision import Precision
from sr_monitor.probes.paths import Paths
from tests.model.helpers import sharded, trained
from tests.zoo import VOCAB, build

HAS_TYPES = hasattr(torch.backends.cuda.matmul, "fp32_precision")


def _measure(model: nn.Module, precision: Precision = "auto", **options: Any) -> Paths:
    prompts = torch.randint(VOCAB, (4, 7), generator=torch.Generator().manual_seed(3))
    return measure_paths(
        model, prompts[:-1], prompts[1:], num_steps=11, precision=precision, **options
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gpt2", torch.float16),
        *((name, torch.bfloat16) for name in ("bloom", "llama", "gemma2_window", "olmoe")),
        *((name, torch.bfloat16) for name in ("mamba", "lit_gpt")),
    ],
)
def test_curves_are_those_of_the_weights_in_float32(name: str, dtype: torch.dtype) -> None:
    model = build(name).model.to(dtype)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    found, in_run = _measure(model), _measure(model, "run")
    exact = _measure(copy.deepcopy(model).float(), "run")
    assert torch.equal(found.distance, exact.distance)
    assert found.noise_floor == exact.noise_floor
    assert found.engine == exact.engine
    assert not torch.equal(in_run.distance, exact.distance)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    assert {each.dtype for each in model.parameters()} == {dtype}


@pytest.mark.skipif(HAS_TYPES, reason="this torch has an interface for each backend")
def test_products_are_not_rounded_where_torch_has_one_switch_for_all() -> None:
    seen: list[str] = []
    model: Any = build("gpt2").model.bfloat16()
    model.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("high")
    found = _measure(model)
    after = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    assert (found.arithmetic, {*seen}, after) == ("float32", {"highest"}, "high")


@pytest.mark.skipif(not HAS_TYPES, reason="torch 2.9 has it")
@pytest.mark.parametrize("setting", ["older", "newer", "all", "none"])
def test_products_are_not_rounded_whoever_asked_for_it(setting: str) -> None:
    """PyTorch has two interfaces for TF32, which do not bear each other; all is as it was after."""
    backends: Any = torch.backends
    holders = [backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv]
    if setting == "older":
        torch.set_float32_matmul_precision("high")
    elif setting != "none":
        (backends if setting == "all" else holders[0]).fp32_precision = "tf32"
    before = [holder.fp32_precision for holder in holders]
    model: Any = build("gpt2").model.bfloat16()
    seen: list[list[str]] = []
    model.register_forward_hook(lambda *_: seen.append([each.fp32_precision for each in holders]))
    found = _measure(model)
    after = [holder.fp32_precision for holder in holders]
    backends.fp32_precision = "none"
    followed = [holder.fp32_precision for holder in holders[:2]]
    torch.set_float32_matmul_precision("highest")
    for holder in holders[:2]:
        holder.fp32_precision = "none"
    for holder in (backends.cudnn.conv, backends.cudnn.rnn):  # as torch starts with them
        holder.fp32_precision = "tf32"
    assert found.arithmetic == "float32"
    assert set(map(tuple, seen)) == {("ieee", "ieee", "ieee")}
    assert after == before
    assert (followed == ["none", "none"]) == (setting in ("all", "none"))


@pytest.mark.parametrize("where", ["around", "inside", "cast"])
def test_casts_of_the_run_and_of_the_model_round_nothing(where: str) -> None:
    """Autocast around the measurement or in a forward, and a forward that casts, as nanochat's."""
    model: Any = build("nano_gpt").model
    exact, original = _measure(model, "run"), model.forward

    def inside(*args: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return original(*args)

    if where == "inside":
        model.forward = inside
    elif where == "cast":
        cast = lambda _module, _args, output: output.to(torch.bfloat16)  # noqa: E731
        model.transformer["wte"].register_forward_hook(cast)
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "around"):
        found, in_run = _measure(model), _measure(model, "run")
        assert torch.is_autocast_enabled("cpu") == (where == "around")
    assert torch.equal(found.distance, exact.distance)
    assert not torch.allclose(in_run.distance, exact.distance, rtol=1e-3)


def _with_rounding_kernel() -> Any:
    """As with a kernel of somebody's own, which takes and gives 16 bits alone."""

    def rounded(_module: nn.Module, _args: Any, hidden: Tensor) -> Tensor:
        return torch.empty(hidden.shape, dtype=torch.bfloat16).copy_(hidden)

    model: Any = build("nano_gpt").model
    model.transformer["h"][1].register_forward_hook(rounded)
    return model


def test_what_cannot_be_had_in_float32_is_measured_as_it_is_and_said() -> None:
    found = _measure(_with_rounding_kernel())
    assert found.noise_floor > 1e-3
    assert found.arithmetic == "bfloat16"
    with pytest.raises(InputError, match=r"precision='float32'.*bfloat16.*precision='auto'"):
        _measure(_with_rounding_kernel(), "float32")


def test_a_model_that_refuses_float32_is_measured_in_its_own_precision() -> None:
    model: Any = build("nano_gpt").model.bfloat16()

    def refuse(_: nn.Module, args: Any) -> None:
        if args[0].dtype != torch.bfloat16:
            raise RuntimeError("this kernel only supports bfloat16")

    model.transformer["h"][1].register_forward_pre_hook(refuse)
    with pytest.warns(RuntimeWarning, match=r"only supports bfloat16.*measured in bfloat16"):
        found = _measure(model)
    assert found.arithmetic == "bfloat16"
    assert torch.equal(found.distance, _measure(model, "run").distance)
    with pytest.raises(InputError, match=r"precision='float32'.*only supports bfloat16"):
        _measure(model, "float32")


def test_views_and_buffers_to_write_in_keep_their_type() -> None:
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    with float32_arithmetic() as arithmetic:
        assert weight.t().dtype == weight[0].dtype == torch.bfloat16
        assert torch.empty_like(weight).dtype == torch.bfloat16
        assert (weight + 1).dtype == weight.sum().dtype == torch.float32
        assert torch.ones(2).to(torch.bfloat16).dtype == torch.float32
        assert arithmetic.rounded is None
        weight.copy_(torch.full((4, 4), 0.1))
        assert arithmetic.rounded == torch.bfloat16


def _train(kind: str, *, measured: bool) -> tuple[list[float], list[Paths]]:
    torch.manual_seed(0)
    model: Any = build("olmo2").model
    model = sharded(model.bfloat16() if kind.endswith("weights") else model, kind)
    ids = torch.arange(24).view(3, 8) % VOCAB
    return trained(model, ids, _measure if measured else None)


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("kind", ["fsdp1", "fsdp2", "fsdp2 of bfloat16 weights"])
def test_policies_of_fsdp_are_lifted_and_put_back(kind: str) -> None:
    losses, found = _train(kind, measured=True)
    assert losses == _train(kind, measured=False)[0]
    plain: Any = build("olmo2").model
    plain = plain.bfloat16().float() if kind.endswith("weights") else plain
    assert torch.equal(found[0].distance, _measure(plain, "run").distance)
    assert found[-1].noise_floor < 1e-4
