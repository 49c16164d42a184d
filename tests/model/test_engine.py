"""The fast ways are checked, not believed, and do no work that the result does not need."""

import inspect
import linecache
import math
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr_monitor import InputError, measure_paths, measure_slices
from sr_monitor.model.selfcheck import EngineName
from sr_monitor.model.session import SessionOptions, open_session
from tests import zoo
from tests.model.helpers import (
    LENGTH,
    NUM_STEPS,
    Operations,
    assert_exact,
    measure,
    pairs,
    truth,
    watched,
)


def _measure_slower(
    specimen: zoo.Specimen, engine: str, why: str, num_steps: int = NUM_STEPS
) -> str:
    """Expect one warning that says why a slower way is taken, and exact numbers; return it."""
    with pytest.warns(UserWarning, match=why) as caught:
        paths = measure(specimen, num_steps=num_steps)
    (warning,) = caught
    assert "\n" not in str(warning.message)
    assert paths.engine == engine
    assert_exact(paths.distance, truth(specimen, num_steps))
    return str(warning.message)


class _Forgetful(nn.Module):
    """A key projection that gives other keys when the prompt comes without its last token."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, x: Tensor) -> Float[Tensor, "row token d_key"]:
        keys: Tensor = self.projection(x)
        return keys if x.shape[1] == LENGTH else 1.5 * keys


def with_a_wrong_cache() -> zoo.Specimen:
    specimen = zoo.build("llama")
    for block in specimen.stack:
        attention = block.get_submodule("self_attn")
        attention.k_proj = _Forgetful(attention.get_submodule("k_proj"))
    return specimen


def test_a_wrong_cache_is_found_out_and_the_plain_way_taken() -> None:
    """The warning shows a wrong distance and the true one, at the middle or the end of a path."""
    specimen = with_a_wrong_cache()
    warning = _measure_slower(specimen, "plain", "disagrees")
    said = re.findall(r"distance of (\S+) against (\S+),", warning)
    true = truth(specimen, num_steps=3)[:2, 1:].flatten().tolist()
    for wrong, right in ((float(one), float(other)) for one, other in said):
        assert any(math.isclose(right, distance, rel_tol=1e-4) for distance in true)
        assert abs(wrong / right - 1) > 0.01
    assert len(said) == 2  # of "shared" and of "rows"
    for engine in ("shared", "rows"):
        with pytest.raises(InputError, match=f"{engine}.*plain"):
            measure(specimen, engine=engine)


def test_the_warning_points_to_the_line_that_asked() -> None:
    # Without the type checks of the test run, which put frames of their own in between.
    along_paths, in_slices = inspect.unwrap(measure_paths), inspect.unwrap(measure_slices)
    a, b = pairs(zoo.build("llama"), 1)
    with pytest.warns(UserWarning, match="disagrees") as of_paths:
        along_paths(with_a_wrong_cache().model, a, b, num_steps=2)
    with pytest.warns(UserWarning, match="disagrees") as of_slices:
        in_slices(with_a_wrong_cache().model, a, b, a, resolution=2)
    assert of_paths[0].filename == of_slices[0].filename == __file__
    for lineno, call in ((of_paths[0].lineno, "along_paths("), (of_slices[0].lineno, "in_slices(")):
        assert call in linecache.getline(__file__, lineno)


def test_an_output_that_never_moves_is_no_disagreement() -> None:
    specimen = zoo.build("llama")
    with torch.no_grad():
        for parameter in specimen.model.parameters():
            parameter.zero_()
    paths = measure(specimen)
    assert paths.engine != "plain"
    assert paths.num_left_out == len(paths.distance)


def test_the_choice_is_a_rule_and_no_clock() -> None:
    """The fastest way is taken where it is the slowest by far, too; the bits are the same."""
    paths = measure(zoo.build("llama"))

    def slow_down(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("attention_mask") is not None:  # as only shared rows have one
            time.sleep(0.03)

    slowed = zoo.build("llama")
    slowed.model.register_forward_pre_hook(slow_down, with_kwargs=True)
    again = measure(slowed)
    assert again.engine == paths.engine == "shared"
    assert torch.equal(again.distance, paths.distance)
    assert again.noise_floor == paths.noise_floor


def _shift_last(_: nn.Module, __: Any, output: Tensor) -> Float[Tensor, "row token width"]:
    """Harmless to whole prompts, and wrong for one token at a time or many in a row."""
    return torch.cat([output[:, :-1], output[:, -1:] + 3], dim=1)


def test_a_model_that_was_changed_since_is_checked_anew() -> None:
    """What was chosen for it as it was can be wrong now, and may do again later."""
    specimen = zoo.build("llama")
    assert measure(specimen).engine == "shared"
    with specimen.stack[1].register_forward_hook(_shift_last):
        _measure_slower(specimen, "plain", "disagrees")
    assert measure(specimen).engine == "shared"


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_tokens_that_peft_puts_before_the_prompt_are_found_out(kind: str) -> None:
    """A cache of the earlier tokens does not hold them, also where they are switched on later."""
    specimen = zoo.build("llama")
    model: Any = specimen.model
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapted = peft.get_peft_model(model, config).eval()
    with adapted.disable_adapter():
        assert measure_paths(adapted, *pairs(specimen), num_steps=2).engine != "plain"
    with pytest.warns(UserWarning, match="slower"):
        assert measure_paths(adapted, *pairs(specimen), num_steps=2).engine == "plain"


def test_a_way_that_only_fails_for_many_points_is_found_out() -> None:
    """GPT-Neo's masks have room for 64 keys, which is too little for a full row of points."""
    specimen = zoo.build("gpt_neo_local")
    for block in specimen.layers:
        mask = block.get_buffer("attn.attention.bias")
        mask.copy_(torch.ones_like(mask).tril())  # without its window, which few points show
    _measure_slower(specimen, "rows", "shared", 51)


def test_a_way_that_raises_is_passed_over() -> None:
    """The forward of many a model refuses masks of this kind."""
    specimen = zoo.build("llama")

    def refuse(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("attention_mask") is not None:
            raise NotImplementedError("masks of four dimensions are not supported")

    specimen.model.register_forward_pre_hook(refuse, with_kwargs=True)
    _measure_slower(specimen, "rows", "shared.*four dimensions")
    with pytest.raises(InputError, match=r"engine='shared'.*four dimensions"):
        measure(specimen, engine="shared")


def test_a_window_longer_than_the_prompt_but_shorter_than_a_row_does_no_harm() -> None:
    """6 earlier tokens and 51 points are more keys than Mistral's window of 32 lets through."""
    specimen = zoo.build("mistral")
    paths = measure(specimen, num_steps=51, engine="shared")
    assert_exact(paths.distance, truth(specimen, 51))


def test_threads_that_measure_one_model_take_turns() -> None:
    """Also where they hold different wrappers of it. One that measures again inside goes on."""
    specimen = zoo.build("llama")
    model, (a, b) = specimen.model, pairs(specimen)
    there = measure_paths(model, a, b, num_steps=NUM_STEPS).distance
    back = measure_paths(model, b, a, num_steps=NUM_STEPS).distance
    began, done = threading.Event(), threading.Event()
    seen: list[bool] = []

    def progress(*_: int) -> None:
        assert torch.equal(measure(specimen).distance, there)
        began.set()
        seen.append(done.wait(0.5))

    def other() -> Float[Tensor, "pair step"]:
        began.wait(20)
        paths = measure_paths(model.get_submodule("model"), b, a, num_steps=NUM_STEPS)
        done.set()
        return paths.distance

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other)
        assert torch.equal(measure(specimen, progress=progress).distance, there)
    assert seen == [False]
    assert torch.equal(waiting.result(), back)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("llama", "float16"),
        ("gpt2", "autocast around"),
        ("llama", "autocast inside"),
    ],
)
def test_the_ways_agree_within_the_noise_floor(name: str, precision: str) -> None:
    specimen = zoo.build(name)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast around")
    if precision == "autocast inside":
        inner = torch.autocast("cpu", torch.bfloat16)
        specimen.model.forward = inner(specimen.model.forward)
    elif precision != "autocast around":
        specimen.model.to(getattr(torch, precision))
    with autocast:
        plain, rows, shared = (
            measure(specimen, num_steps=21, engine=engine, precision="run")
            for engine in ("plain", "rows", "auto")
        )
    assert shared.engine == "shared"
    assert 1e-4 < plain.noise_floor < 0.3
    for paths in (rows, shared):
        floor = max(paths.noise_floor, plain.noise_floor)
        assert (paths.relative - plain.relative).abs().max() <= 3 * floor


def _unembedded_rows(specimen: zoo.Specimen, **options: Any) -> int:
    """Count the rows of every product as wide as the vocabulary."""
    rows: list[int] = []

    def note(name: str, out: Tensor) -> None:
        is_product = name in ("mm", "addmm", "bmm", "linear", "matmul")
        rows.append(out.numel() // zoo.VOCAB if is_product and out.shape[-1] == zoo.VOCAB else 0)

    with Operations(note):
        measure(specimen, **options)
    return sum(rows)


@pytest.mark.parametrize(
    ("name", "engine", "most"),
    # Of a foreign model it is computed once, to find it.
    [("gpt2", "auto", 0), ("opt_post_norm", "plain", 0), ("lit_gpt", "auto", 2 * LENGTH)],
)
def test_the_unembedding_is_not_computed(name: str, engine: EngineName, most: int) -> None:
    for output in ("final_norm", "resid_final"):
        assert _unembedded_rows(zoo.build(name), output=output, engine=engine) <= most
    assert _unembedded_rows(zoo.build(name), output="logits", engine=engine) >= 15


@pytest.mark.parametrize(("name", "engine"), [("gpt2", "shared"), ("llama", "rows")])
def test_only_the_blocks_that_a_point_goes_through_are_computed(
    name: str, engine: EngineName
) -> None:
    """Below `layer`: for the prompts, each once, and the caches. Above it: not for the prompts."""
    specimen = zoo.build(name)
    a, b = (ids.repeat(2, 1) for ids in pairs(specimen))
    below, above = (specimen.stack[index].get_submodule("mlp") for index in (1, 2))
    of_below: list[tuple[int, int]] = []
    of_above: list[tuple[int, int]] = []
    options = SessionOptions(layer=2, engine=engine)
    with (
        open_session(specimen.model, (a, b), options) as session,
        watched([below], lambda *shape: of_below.append(shape)),
        watched([above], lambda *shape: of_above.append(shape)),
    ):
        points = torch.stack(session.share(a, b).activations(), dim=1)
        session.engine.distances(session.engine.open(a), points.repeat(1, 4, 1))
    prompts, caches = (4, LENGTH), (6, LENGTH - 1)
    assert of_below == [prompts, caches]
    assert of_above[0] == caches
    assert sum(rows * tokens for rows, tokens in of_above[1:]) == 6 * 8


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("name", ["gpt2", "nano_gpt"])
def test_wrappers_for_data_parallelism_change_nothing(name: str) -> None:
    specimen = zoo.build(name)
    bare = measure(specimen)
    for wrap in (nn.DataParallel, nn.parallel.DistributedDataParallel):
        wrapped = measure_paths(wrap(specimen.model), *pairs(specimen), num_steps=NUM_STEPS)
        assert torch.equal(wrapped.distance, bare.distance)
        assert wrapped.engine == bare.engine


@pytest.mark.parametrize(("name", "to_disk"), [("llama", False), ("nano_gpt", True)])
def test_weights_that_are_fetched_when_needed_change_nothing(
    name: str, to_disk: bool, tmp_path: Path
) -> None:
    """Between forwards they are on the meta device, which no prompt can go to."""
    specimen = zoo.build(name)
    expected = measure(specimen)
    if to_disk:
        accelerate.disk_offload(specimen.model, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        accelerate.cpu_offload(specimen.model, execution_device=torch.device("cpu"))
    assert_exact(measure(specimen).distance, expected.distance)
    assert all(weight.is_meta for weight in specimen.model.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, at PEFT
def test_adapters_stay_in_the_call() -> None:
    bare = zoo.build("llama")
    adapter = peft.LoraConfig(target_modules=["up_proj"], init_lora_weights=False)
    model: Any = bare.model
    adapted = replace(
        bare,
        model=peft.get_peft_model(model, adapter).eval(),
        blocks="base_model.model.model.layers",
        unembedding="base_model.model.lm_head",
    )
    paths, true = measure(adapted), truth(adapted)
    assert_exact(paths.distance, true)
    assert ((true - truth(zoo.build("llama"))).abs() / true[:, -1:]).max() > 0.01
    assert paths.engine == "shared"


@pytest.mark.parametrize("vocab", [zoo.VOCAB, zoo.WIDTH])
def test_what_a_foreign_model_s_unembedding_reads_is_found(vocab: int) -> None:
    """Also if it is as large as the stream is wide, the final norm no module, and logits named."""
    model = zoo.HandMade([zoo._Block() for _ in range(3)]).eval()
    model.embedding = nn.Embedding(vocab, zoo.WIDTH)
    model.unembedding = nn.Linear(zoo.WIDTH, vocab, bias=False)
    norm = partial(nn.functional.rms_norm, normalized_shape=(zoo.WIDTH,))
    model.unembedding.register_forward_pre_hook(lambda _, args: norm(args[0]))
    model.register_forward_hook(lambda _, __, logits: {"logits": logits})
    specimen = zoo.Specimen(model=model, vocab=vocab, blocks="blocks", unembedding="unembedding")
    paths, logits = measure(specimen), measure(specimen, num_steps=2, output="logits")
    assert_exact(paths.distance, truth(specimen))
    stretch = torch.linalg.matrix_norm(model.unembedding.weight, 2)
    assert (logits.end_distance <= paths.end_distance * stretch).all()


class _Apart(nn.Module):
    """Hands on what it adds beside the stream itself, as the first Mamba's blocks do."""

    def __init__(self, put_out: type) -> None:
        super().__init__()
        self.put_out, self.inner = put_out, nn.Linear(zoo.WIDTH, zoo.WIDTH)

    def forward(self, x: Any) -> Any:
        stream = x if isinstance(x, Tensor) else sum(x.values() if isinstance(x, dict) else x)
        parts = (self.inner(stream), stream)
        return parts if self.put_out is tuple else dict(enumerate(parts))


@pytest.mark.parametrize("put_out", [tuple, dict])
def test_a_stream_in_two_parts_is_refused(put_out: type) -> None:
    """Replacing one of them alone would be another experiment, and look like a result."""
    model = zoo.HandMade([_Apart(put_out) for _ in range(3)])
    model.unembedding.register_forward_pre_hook(lambda _, args: args[0][0] + args[0][1])
    with pytest.raises(InputError, match=r"block 1 of HandMade .*not one tensor"):
        measure_paths(model, *pairs(zoo.build("nano_gpt")))
