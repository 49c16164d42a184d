"""The fast ways are checked, not believed, and do no work that the result does not need.

What runs is counted from outside: by hooks on the specimen's parts, or by watching every tensor
operation for one as wide as the vocabulary.
"""

import math
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import accelerate
import peft
import pytest
import torch
import transformers as hf
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sr_monitor import InputError, PromptSet, measure_paths
from sr_monitor.model.engine import Way
from sr_monitor.model.session import SessionOptions, open_session
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from tests import zoo
from tests.oracle import Output, oracle_paths

Engine = Literal["auto", "shared", "rows", "plain"]
Prompts = Int[Tensor, "pair token"]

LENGTH = 7
NUM_STEPS = 5
TOLERANCE = 1e-5


def _pairs(specimen: zoo.Specimen, length: int = LENGTH) -> tuple[Prompts, Prompts]:
    prompts = specimen.prompts(4, length)
    return prompts[:-1], prompts[1:]


def _truth(specimen: zoo.Specimen, num_steps: int = NUM_STEPS) -> Float[Tensor, "pair step"]:
    return oracle_paths(specimen, *_pairs(specimen), layer=1, num_steps=num_steps)


def _assert_exact(distance: Tensor, truth: Tensor, tolerance: float = TOLERANCE) -> None:
    assert ((distance - truth).abs() / truth[:, -1:]).max() <= tolerance


@contextmanager
def _shapes(module: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """Yield the (rows, tokens) of every call of `module`."""
    shapes: list[tuple[int, int]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = args[0] if args else next(iter(kwargs.values()))
        shapes.append((tensor.shape[0], tensor.shape[1]))

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()


@contextmanager
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# The check -------------------------------------------------------------------------------------


class _Forgetful(nn.Module):
    """A key projection that gives other keys when the prompt comes without its last token."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, x: Tensor) -> Float[Tensor, "row token d_key"]:
        keys: Tensor = self.projection(x)
        return keys if x.shape[1] == LENGTH else 1.5 * keys


def _with_a_wrong_cache() -> zoo.Specimen:
    specimen = zoo.build("llama")
    for block in specimen.stack:
        attention = block.get_submodule("self_attn")
        attention.k_proj = _Forgetful(attention.get_submodule("k_proj"))
    return specimen


def test_a_wrong_cache_is_found_out_with_one_warning_and_the_plain_way_taken() -> None:
    specimen = _with_a_wrong_cache()
    a, b = _pairs(specimen)
    with pytest.warns(UserWarning, match="disagrees") as caught:
        paths = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS)
    assert len(caught) == 1
    assert paths.engine == "plain"
    _assert_exact(paths.distance, _truth(specimen))


def test_the_warning_carries_both_distances() -> None:
    """The plain one is a true distance, at the middle or the end of one of the first pairs."""
    specimen = _with_a_wrong_cache()
    with pytest.warns(UserWarning, match="disagrees") as caught:
        measure_paths(specimen.model, *_pairs(specimen), num_steps=NUM_STEPS)
    message = str(caught[0].message)
    assert "\n" not in message
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", message)]
    true = [
        (number, distance)
        for number in numbers
        for distance in _truth(specimen, num_steps=3)[:2, 1:].flatten().tolist()
        if math.isclose(number, distance, rel_tol=1e-4)
    ]
    assert true
    assert any(abs(number / true[0][1] - 1) > 0.01 for number in numbers)


_SCRIPT = """
import torch, transformers as hf
from sr_monitor import measure_paths, measure_slices
model = hf.LlamaForCausalLM(hf.LlamaConfig(
    vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
)).eval()
model.model.layers[1].register_forward_hook(lambda _, __, out: out + out.shape[1])
ids = torch.arange(8).view(2, 4)
measure_paths(model, ids, ids.flip(0))
model.model.layers[1].register_forward_hook(lambda *_: None)
measure_slices(model, ids, ids.flip(0), ids)
"""


def test_the_warning_points_to_the_line_that_asked(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    where = [line.split(": UserWarning")[0] for line in said.stderr.split("\n") if "UserW" in line]
    lines = _SCRIPT.split("\n")
    assert where == [
        f"{script}:{number}" for number, line in enumerate(lines, 1) if line.startswith("measure_")
    ]


def test_an_output_that_never_moves_is_no_disagreement() -> None:
    specimen = zoo.build("llama")
    with torch.no_grad():
        for parameter in specimen.model.parameters():
            parameter.zero_()
    with _no_warning():
        paths = measure_paths(specimen.model, *_pairs(specimen), num_steps=NUM_STEPS)
    assert paths.engine != "plain"
    assert paths.num_left_out == len(paths.distance)


def test_a_run_keeps_to_the_way_it_began_with() -> None:
    """No faster way is considered, so no warning comes again; a slower one is, if need be."""
    prompts = PromptSet.from_token_ids(torch.cat(_pairs(zoo.build("llama"))))

    def engine(specimen: zoo.Specimen, way: Way | None) -> str:
        probes, options = [PathsProbe(num_steps=NUM_STEPS)], SessionOptions()
        found = measure_probes(specimen.model, prompts, probes, options, way=way)
        return str(found["paths"].engine)

    with _no_warning():
        assert engine(zoo.build("llama"), None) == "shared"
        assert engine(zoo.build("llama"), "rows") == "rows"
        assert engine(zoo.build("llama"), "plain") == "plain"
        assert engine(_with_a_wrong_cache(), "plain") == "plain"
    with pytest.warns(UserWarning, match="'rows'.*disagrees"):
        assert engine(_with_a_wrong_cache(), "rows") == "plain"


def _shift_last(output: Tensor, by: float = 3) -> Float[Tensor, "row token width"]:
    """Harmless to whole prompts, and wrong for one token at a time or many in a row."""
    return torch.cat([output[:, :-1], output[:, -1:] + by], dim=1)


class _Shifted(nn.Module):
    def __init__(self, inner: nn.Module, by: float) -> None:
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, x: Tensor) -> Float[Tensor, "row token width"]:
        return _shift_last(self.inner(x), self.by)


Undo = Callable[[], None]


def _hook(block: Any) -> Undo:
    handle = block.register_forward_hook(lambda _, __, output: _shift_last(output))
    undo: Undo = handle.remove
    return undo


def _pre_hook(block: Any) -> Undo:
    handle = block.register_forward_pre_hook(lambda _, args: (_shift_last(args[0]), *args[1:]))
    undo: Undo = handle.remove
    return undo


def _patched_forward(block: Any) -> Undo:
    forward = block.forward
    block.forward = lambda *args, **kwargs: _shift_last(forward(*args, **kwargs))
    return lambda: delattr(block, "forward")


def _patched_class(block: Any) -> Undo:
    kind, forward = type(block), type(block).forward
    kind.forward = lambda *args, **kwargs: _shift_last(forward(*args, **kwargs))
    return lambda: setattr(kind, "forward", forward)


def _other_module(block: Any) -> Undo:
    before, block.mlp = block.mlp, _Shifted(block.mlp.inner, by=3)
    return lambda: setattr(block, "mlp", before)


CHANGES = [_hook, _pre_hook, _patched_forward, _patched_class, _other_module]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_since_is_checked_anew(change: Callable[[Any], Undo]) -> None:
    """What was chosen for it as it was can be wrong now, and may do again later."""
    specimen = zoo.build("llama")
    pairs = _pairs(specimen)
    block: Any = specimen.stack[1]
    block.mlp = _Shifted(block.mlp, by=0)
    assert measure_paths(specimen.model, *pairs, num_steps=NUM_STEPS).engine != "plain"
    undo = change(block)
    try:
        with pytest.warns(UserWarning, match="disagrees"):
            paths = measure_paths(specimen.model, *pairs, num_steps=NUM_STEPS)
        _assert_exact(paths.distance, _truth(specimen))
    finally:
        undo()
    assert paths.engine == "plain"
    assert measure_paths(specimen.model, *pairs, num_steps=NUM_STEPS).engine == "shared"


@pytest.mark.parametrize("engine", ["shared", "rows"])
def test_a_forced_way_is_refused_once_a_change_makes_it_wrong(engine: Engine) -> None:
    specimen = zoo.build("llama")
    measure_paths(specimen.model, *_pairs(specimen), num_steps=NUM_STEPS, engine=engine)
    _hook(specimen.stack[1])
    with pytest.raises(InputError, match=f"{engine}.*plain"):
        measure_paths(specimen.model, *_pairs(specimen), num_steps=NUM_STEPS, engine=engine)


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_tokens_that_peft_puts_before_the_prompt_are_found_out(kind: str) -> None:
    """A cache of the earlier tokens does not hold them, also where they are switched on later."""
    specimen = zoo.build("llama")
    pairs = _pairs(specimen)
    model: Any = specimen.model
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapted = peft.get_peft_model(model, config).eval()
    with adapted.disable_adapter():
        assert measure_paths(adapted, *pairs, num_steps=NUM_STEPS).engine != "plain"
    with pytest.warns(UserWarning, match="slower"):
        paths = measure_paths(adapted, *pairs, num_steps=NUM_STEPS)
    assert paths.engine == "plain"
    assert measure_paths(model, *pairs, num_steps=NUM_STEPS).engine != "plain"


@pytest.mark.parametrize("engine", ["shared", "rows"])
def test_a_forced_way_that_is_wrong_is_an_error(engine: Engine) -> None:
    specimen = _with_a_wrong_cache()
    with pytest.raises(InputError, match=f"{engine}.*plain") as caught:
        measure_paths(specimen.model, *_pairs(specimen), engine=engine)
    assert "\n" not in str(caught.value)


def _gpt_neo(num_positions: int, window: int) -> zoo.Specimen:
    config = hf.GPTNeoConfig(
        vocab_size=61,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=48,
        max_position_embeddings=num_positions,
        attention_types=[[["global", "local"], 1]],
        window_size=window,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: nn.Module = hf.GPTNeoForCausalLM(config)
    zoo.stir(model, torch.Generator().manual_seed(0), 1.75)
    return zoo.Specimen(
        model=model.eval(),
        vocab=61,
        blocks="transformer.h",
        unembedding="lm_head",
        call={"use_cache": False},
    )


def test_a_mask_that_a_model_overrules_is_found_out() -> None:
    """GPT-Neo's local attention has a window of its own, under which shared points vanish."""
    specimen = _gpt_neo(num_positions=64, window=4)
    with pytest.warns(UserWarning, match="shared") as caught:
        paths = measure_paths(specimen.model, *_pairs(specimen), num_steps=51)
    assert len(caught) == 1
    assert paths.engine == "rows"
    _assert_exact(paths.distance, _truth(specimen, 51))


def test_a_way_that_only_fails_for_many_points_is_found_out() -> None:
    """GPT-Neo's mask has room for as many keys as there are positions; 51 points are too many."""
    specimen = _gpt_neo(num_positions=32, window=32)
    with pytest.warns(UserWarning, match="shared") as caught:
        paths = measure_paths(specimen.model, *_pairs(specimen), num_steps=51)
    assert len(caught) == 1
    assert paths.engine == "rows"
    _assert_exact(paths.distance, _truth(specimen, 51))


def test_a_way_that_raises_is_passed_over() -> None:
    """The forward of many a model refuses masks of this kind."""
    specimen = zoo.build("llama")

    def refuse(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("attention_mask") is not None:
            raise NotImplementedError("masks of four dimensions are not supported")

    specimen.model.register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.warns(UserWarning, match="shared.*four dimensions") as caught:
        paths = measure_paths(specimen.model, *_pairs(specimen), num_steps=NUM_STEPS)
    assert len(caught) == 1
    assert paths.engine == "rows"
    _assert_exact(paths.distance, _truth(zoo.build("llama")))
    with pytest.raises(InputError, match=r"engine='shared'.*four dimensions"):
        measure_paths(specimen.model, *_pairs(specimen), engine="shared")


@pytest.mark.parametrize("engine", ["auto", "shared"])
def test_a_window_longer_than_the_prompt_but_shorter_than_a_row_does_no_harm(
    engine: Engine,
) -> None:
    """6 earlier tokens and 51 points are more keys than Mistral's window of 32 lets through."""
    specimen = zoo.build("mistral")
    with _no_warning():
        paths = measure_paths(specimen.model, *_pairs(specimen), num_steps=51, engine=engine)
    _assert_exact(paths.distance, _truth(specimen, 51))


def test_the_check_waits_for_weights_that_are_finite() -> None:
    """A run that starts on NaN is measured the plain way, and the fast way once it recovers."""
    specimen = zoo.build("llama")
    a, b = _pairs(specimen)
    norm = specimen.model.get_submodule("model.norm")
    assert isinstance(norm.weight, Tensor)
    weight = norm.weight.detach().clone()
    with torch.no_grad():
        norm.weight.fill_(math.nan)
    with _no_warning():
        broken = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS)
    assert broken.num_left_out == len(a)
    assert broken.max_slope.isnan().all()
    with torch.no_grad():
        norm.weight.copy_(weight)
    with _no_warning():
        paths = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS)
    assert paths.engine == "shared"
    _assert_exact(paths.distance, _truth(zoo.build("llama")))


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: model.model])
def test_threads_that_measure_one_model_take_turns(wrap: Callable[[Any], nn.Module]) -> None:
    """Also where they hold different wrappers of it. One that measures again inside goes on."""
    specimen = zoo.build("llama")
    model, (a, b) = specimen.model, _pairs(specimen)
    expected = [
        measure_paths(model, a, b, num_steps=NUM_STEPS),
        measure_paths(wrap(model), b, a, num_steps=NUM_STEPS),
    ]
    began, done = threading.Event(), threading.Event()
    seen: list[bool] = []

    def progress(*_: int) -> None:
        inner = measure_paths(model, a, b, num_steps=NUM_STEPS)
        _assert_exact(inner.distance, expected[0].distance)
        began.set()
        seen.append(done.wait(1))

    def other() -> Float[Tensor, "pair step"]:
        began.wait(60)
        paths = measure_paths(wrap(model), b, a, num_steps=NUM_STEPS)
        done.set()
        return paths.distance

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(other)
        first = measure_paths(model, a, b, num_steps=NUM_STEPS, progress=progress)
    assert seen == [False]
    _assert_exact(first.distance, expected[0].distance)
    _assert_exact(second.result(), expected[1].distance)


# Agreement in every precision ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("way", ["float16", "bfloat16", "autocast around", "autocast inside"])
def test_the_ways_agree_within_the_noise_floor(name: str, way: str) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast around")
    if way == "autocast inside":
        inner = torch.autocast("cpu", torch.bfloat16)
        specimen.model.forward = inner(specimen.model.forward)
    elif not autocast._enabled:
        specimen.model.to(getattr(torch, way))
    engines: tuple[Engine, ...] = ("plain", "rows", "shared")
    with _no_warning(), autocast:
        plain, *fast = [
            measure_paths(specimen.model, a, b, num_steps=21, engine=engine) for engine in engines
        ]
        chosen = measure_paths(specimen.model, a, b, num_steps=21)
    assert chosen.engine == "shared"
    assert 1e-4 < plain.noise_floor < 0.3
    for paths in (*fast, chosen):
        floor = max(paths.noise_floor, plain.noise_floor)
        assert (paths.relative - plain.relative).abs().max() <= 3 * floor


# Nothing for nothing ---------------------------------------------------------------------------


class _WidthOfVocabulary(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the rows of every product as wide as the vocabulary."""

    rows: int

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        is_product = func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "linear", "matmul")
        if is_product and out.shape[-1] == zoo.VOCAB:
            self.rows += out.numel() // zoo.VOCAB
        return out


def _unembedded_rows(model: nn.Module, *pair: Prompts, **options: Any) -> int:
    with _WidthOfVocabulary() as counter:
        measure_paths(model, *pair, num_steps=NUM_STEPS, **options)
    rows: int = counter.rows
    return rows


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("output", ["final_norm", "resid_final"])
@pytest.mark.parametrize("name", ["gpt2", "opt_post_norm"])
def test_the_unembedding_is_not_computed(name: str, output: Output, engine: Engine) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    for _ in range(2):
        rows = _unembedded_rows(specimen.model, a, b, output=output, engine=engine)
        assert rows == 0
    assert _unembedded_rows(specimen.model, a, b, output="logits", engine=engine) >= 15


@pytest.mark.parametrize("output", ["final_norm", "resid_final"])
@pytest.mark.parametrize("name", ["nano_gpt", "lit_gpt", "linear"])
def test_a_foreign_model_s_unembedding_is_computed_only_to_find_it(
    name: str, output: Output
) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    assert _unembedded_rows(specimen.model, a, b, output=output) <= 2 * LENGTH
    assert _unembedded_rows(specimen.model, a, b, output="logits") >= 15


@pytest.mark.parametrize("engine", ["shared", "rows"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_only_the_blocks_that_a_point_goes_through_are_computed(name: str, engine: Engine) -> None:
    """Below `layer`: for the prompts and the caches. Above it: not for the prompts either."""
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    below, above = (specimen.stack[index].get_submodule("mlp") for index in (1, 2))
    options = SessionOptions(layer=2, engine=engine)
    with (
        open_session(specimen.model, (a, b), options) as session,
        _shapes(below) as of_below,
        _shapes(above) as of_above,
    ):
        points = torch.stack(session.share(a, b).activations(), dim=1)
        session.engine.distances(session.engine.open(a), points.repeat(1, 4, 1))
    prompts, caches = (4, LENGTH), (3, LENGTH - 1)
    assert of_below == [prompts, caches]
    assert of_above[0] == caches
    assert sum(rows * tokens for rows, tokens in of_above[1:]) == 3 * 8


def test_one_prompt_is_run_once_however_often_it_stands_in_a_pair() -> None:
    specimen = zoo.build("llama")
    a, b = _pairs(specimen)
    with open_session(specimen.model, (a, b), SessionOptions()) as session:
        share = session.share(a.repeat(5, 1), b.repeat(5, 1))
        with _shapes(specimen.stack[0]) as shapes:
            share.activations()
    assert shapes == [(4, LENGTH)]


# Wrappers and states of the model --------------------------------------------------------------


@pytest.fixture
def _one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("name", ["gpt2", "nano_gpt"])
def test_wrappers_for_data_parallelism_change_nothing(name: str) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    bare = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS)
    wrappers: list[Callable[[nn.Module], nn.Module]] = [
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
    ]
    for wrap in wrappers:
        wrapped = measure_paths(wrap(specimen.model), a, b, num_steps=NUM_STEPS)
        assert torch.equal(wrapped.distance, bare.distance)
        assert wrapped.engine == bare.engine


def test_gradient_checkpointing_changes_nothing() -> None:
    specimen = zoo.build("llama")
    model: Any = specimen.model
    a, b = _pairs(specimen)
    model.activation_checkpointing_enable()
    model.train()
    paths = measure_paths(model, a, b, num_steps=NUM_STEPS)
    assert paths.engine == "shared"
    _assert_exact(paths.distance, _truth(zoo.build("llama")))
    assert model.is_activation_checkpointing


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "nano_gpt"])
def test_weights_that_are_fetched_when_needed_change_nothing(
    name: str, way: str, tmp_path: Path
) -> None:
    """Between forwards they are on the meta device, which no prompt can go to."""
    specimen = zoo.build(name)
    expected = measure_paths(specimen.model, *_pairs(specimen), num_steps=NUM_STEPS)
    if way == "cpu_offload":
        accelerate.cpu_offload(specimen.model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(specimen.model, str(tmp_path), execution_device=torch.device("cpu"))
    paths = measure_paths(specimen.model, *_pairs(specimen), num_steps=NUM_STEPS)
    _assert_exact(paths.distance, expected.distance)
    assert all(weight.is_meta for weight in specimen.model.parameters())


class _Adapted(nn.Module):
    """A wrapper as PEFT's: it has to stay in the call, and knows the model it wraps."""

    def __init__(self, model: nn.Module, shift: float) -> None:
        super().__init__()
        self.base_model, self.shift = model, shift

    def get_base_model(self) -> nn.Module:
        return self.base_model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        projection = self.base_model.get_submodule("model.layers.1.mlp.up_proj")
        with projection.register_forward_hook(lambda *call: call[-1] + self.shift):
            return self.base_model(*args, **kwargs)


def test_a_wrapper_that_changes_the_model_stays_in_the_call() -> None:
    specimen = zoo.build("llama")
    bare = _truth(specimen)
    adapted = _Adapted(specimen.model, shift=0.5)
    truth = oracle_paths(
        zoo.Specimen(
            model=adapted,
            vocab=specimen.vocab,
            blocks="base_model.model.layers",
            unembedding="base_model.lm_head",
            call=specimen.call,
        ),
        *_pairs(specimen),
        layer=1,
        num_steps=NUM_STEPS,
    )
    paths = measure_paths(adapted, *_pairs(specimen), num_steps=NUM_STEPS)
    _assert_exact(paths.distance, truth)
    assert ((truth - bare).abs() / truth[:, -1:]).max() > 0.01
    assert paths.engine == "shared"


# Models of other people: what the unembedding reads ---------------------------------------------


class _Foreign(nn.Module):
    """Blocks between an embedding and a head, in the ways people end their models."""

    def __init__(self, *, vocab: int, width: int, end: str) -> None:
        super().__init__()
        self.end = end
        self.embedding = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(_Running(width) for _ in range(3))
        self.norm = nn.Identity() if end == "functional norm" else nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, token_ids: Tensor) -> Any:
        x = self.embedding(token_ids)
        for block in self.blocks:
            x = block(x)
        if self.end == "functional norm":
            x = nn.functional.rms_norm(x, x.shape[-1:])
        else:
            x = self.norm(x)
        logits = self.head(x)
        return {"logits": logits} if self.end == "dictionary" else logits


class _Running(nn.Module):
    """x plus a function of the sum of x up to each token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Float[Tensor, "row token width"]:
        return x + torch.tanh(self.inner(self.norm(x).cumsum(1)))


@pytest.mark.parametrize("end", ["norm", "functional norm", "dictionary"])
@pytest.mark.parametrize("vocab", [61, 32])
def test_what_a_foreign_model_s_unembedding_reads_is_found(vocab: int, end: str) -> None:
    """Also where the vocabulary is as large as the stream is wide, as in byte-level models, and
    where the final norm is a function, as in nanochat.
    """
    specimen = zoo.Specimen(
        model=_Foreign(vocab=vocab, width=32, end=end).eval(),
        vocab=vocab,
        blocks="blocks",
        unembedding="head",
    )
    paths = measure_paths(specimen.model, *_pairs(specimen), num_steps=NUM_STEPS)
    _assert_exact(paths.distance, _truth(specimen))
    logits = measure_paths(specimen.model, *_pairs(specimen), num_steps=2, output="logits")
    moved = specimen.model.get_submodule("head").weight
    assert isinstance(moved, Tensor)
    assert (logits.end_distance <= paths.end_distance * torch.linalg.matrix_norm(moved, 2)).all()


class _TwoStreams(nn.Module):
    """Blocks that hand on what they add beside the stream itself, as the first Mamba's do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(61, 32)
        self.blocks = nn.ModuleList(_Adding(32) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 61)

    def forward(self, token_ids: Tensor) -> Float[Tensor, "row token vocab"]:
        added = self.embedding(token_ids)
        stream = torch.zeros_like(added)
        for block in self.blocks:
            added, stream = block(added, stream)
        logits: Tensor = self.head(self.norm(added + stream))
        return logits


class _Adding(_Running):
    def forward(self, x: Tensor, stream: Tensor) -> Any:  # type: ignore[override]
        stream = x + stream
        return torch.tanh(self.inner(self.norm(stream).cumsum(1))), stream


def test_a_stream_in_two_parts_is_refused() -> None:
    """Replacing one of them alone would be another experiment, and look like a result."""
    prompts = torch.randint(61, (4, LENGTH))
    with pytest.raises(InputError, match=r"(?i)stream|two|tensor"):
        measure_paths(_TwoStreams().eval(), prompts[:-1], prompts[1:])


def test_one_module_used_as_two_blocks_is_refused_by_name() -> None:
    model = _Foreign(vocab=61, width=32, end="norm").eval()
    model.blocks[2] = model.blocks[0]
    prompts = torch.randint(61, (4, LENGTH))
    with pytest.raises(InputError, match=r"(?i)same|share|twice|more than once"):
        measure_paths(model, prompts[:-1], prompts[1:])
