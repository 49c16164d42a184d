"""The command `sr-monitor measure`, as a user types it."""

import json
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from PIL import Image

from sr_monitor import measure_paths
from sr_monitor.cli import main
from sr_monitor.model.loading import load_model
from sr_monitor.probes.statistics import summarise
from sr_monitor.prompts.prompt_set import PromptSet
from tests.saved import save_model, save_tokenizer

FEW = ("--num-pairs", "3", "--num-steps", "5", "--num-slices", "1", "--slice-resolution", "4")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lead into a folder of the test, and names lead to no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def measure(model: Path, *options: str, device: str = "cpu") -> dict[str, Any]:
    """Run the command into the folder `out`; the numbers it wrote."""
    command = ["measure", str(model), "--out", "out", "--device", device, *FEW, *options]
    assert main(command) == 0
    numbers = json.loads(Path("out/measurement.json").read_text())
    assert isinstance(numbers, dict)
    return numbers


def refusal(capsys: Capture, *command: str) -> str:
    """Run a command that has to be refused; the one line it says."""
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sr-monitor: error: ")
    assert err.count("\n") == 1
    return err


def test_numbers_are_those_of_the_library(saved: Path) -> None:
    numbers = measure(saved, "--layer", "2", "--sampling", "grid")
    prompts = PromptSet.load("out/prompts.json")
    assert numbers["prompts_fingerprint"] == prompts.fingerprint
    model = load_model(str(saved), device="cpu")
    paths = measure_paths(model, *prompts.pairs(3), layer=2, num_steps=5)
    expected = summarise(paths.max_slope, paths.kept)
    assert numbers["max_slope"]["median"] == pytest.approx(expected.median, rel=1e-6)
    assert numbers["pairs"]["end_distance"] == pytest.approx(paths.end_distance.tolist(), rel=1e-6)
    assert numbers["curve"]["median"][0] == 0
    assert numbers["curve"]["median"][-1] == 1
    assert numbers["layer"] == 2


def test_pictures_prompts_and_a_table_are_left(saved: Path, capsys: Capture) -> None:
    measure(saved)
    out, err = capsys.readouterr()
    assert err == ""
    for line in (
        "LlamaForCausalLM, float32 on cpu",
        "3 pairs of 10 tokens, the help topics of Python",
        "maximum slope",
        "quartiles",
        "95% interval",
        "noise floor",
        "pairs left out",
        "seconds",
        "points",
    ):
        assert line in out, line
    written = {path.name for path in Path("out").iterdir()}
    assert all(name in out for name in written)
    pictures = {"curves.png", "slopes.png", "slice-0.png"}
    assert written == {*pictures, "prompts.json", "measurement.json"}
    for name in pictures:
        with Image.open(Path("out") / name) as image:
            assert len(image.convert("L").getcolors() or ()) > 10


def test_the_folder_is_named_after_the_model(saved: Path) -> None:
    assert main(["measure", str(saved), "--device", "cpu", *FEW]) == 0
    assert (Path("stable-regions") / saved.name / "curves.png").is_file()


def test_no_slices_on_request(saved: Path) -> None:
    measure(saved, "--num-slices", "0")
    assert not list(Path("out").glob("slice-*"))


def test_the_seed_chooses_the_prompts(saved: Path) -> None:
    first = measure(saved)["prompts_fingerprint"]
    assert measure(saved, "--seed", "1")["prompts_fingerprint"] != first
    assert measure(saved)["prompts_fingerprint"] == first


def test_a_saved_set_of_prompts_needs_no_tokenizer(saved: Path, tmp_path: Path) -> None:
    expected = measure(saved, "--num-tokens", "7")
    bare = tmp_path / "bare"
    shutil.copytree(saved, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copy("out/prompts.json", "prompts.json")
    found = measure(bare, "--prompts", "prompts.json")
    assert found["num_tokens"] == 7
    for name, numbers in expected["pairs"].items():
        # The way that is quicker at the moment is taken; the last digits may differ.
        assert found["pairs"][name] == pytest.approx(numbers, rel=1e-3, abs=1e-4)


def test_pictures_of_an_earlier_measurement_do_not_stay(saved: Path) -> None:
    measure(saved, "--num-slices", "2")
    assert len(list(Path("out").glob("slice-*.png"))) == 2
    measure(saved, "--num-slices", "0")
    assert list(Path("out").glob("slice-*.png")) == []


def test_a_model_of_nan_is_refused_in_words(saved: Path, tmp_path: Path, capsys: Capture) -> None:
    model = load_model(str(saved), device="cpu")
    next(model.parameters()).data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")  # type: ignore[operator]
    shutil.copytree(saved, tmp_path / "nan", dirs_exist_ok=True, ignore=_all_but_tokenizers)
    capsys.readouterr()
    told = refusal(capsys, "measure", str(tmp_path / "nan"), "--out", "out", *FEW)
    assert "nan' cannot be measured: not one output of 3 pairs is finite" in told
    assert not Path("out").exists()


def _all_but_tokenizers(_: str, names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("tokenizer")}


def test_text_lines_and_pairs_are_read(saved: Path) -> None:
    words = [f"word{number} means something {number * 7}" for number in range(60)]
    Path("corpus.txt").write_text("\n".join(words))
    Path("corpus.jsonl").write_text("\n".join(json.dumps({"text": word}) for word in words))
    from_text = measure(saved, "--prompts", "corpus.txt")
    from_lines = measure(saved, "--prompts", "corpus.jsonl")
    assert from_text["prompts"] == "corpus.txt"
    assert from_text["prompts_fingerprint"] == from_lines["prompts_fingerprint"]
    pairs = [{"a": "éñ", "b": "ñé"}, {"a": "üß", "b": "ßü"}]  # letters of two tokens each
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    numbers = measure(saved, "--prompts", "pairs.jsonl")
    assert len(numbers["pairs"]["max_slope"]) == 2


def test_a_folder_of_data_is_a_data_set(saved: Path) -> None:
    Path("data").mkdir()
    words = [json.dumps({"text": f"word{number} means something"}) for number in range(60)]
    Path("data/train.jsonl").write_text("\n".join(words))
    assert measure(saved, "--prompts", "data")["prompts"] == "data set data train"


def test_half_precision_on_request(saved: Path, capsys: Capture) -> None:
    numbers = measure(saved, "--dtype", "bfloat16")
    assert numbers["dtype"] == "bfloat16"
    assert "bfloat16 on cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--layer 4", "layer=4: LlamaForCausalLM has layers 0"),
        ("--layer -1", "Invalid value for '--layer': "),
        ("--num-steps 1", "Invalid value for '--num-steps': "),
        ("--slice-resolution 1", "Invalid value for '--slice-resolution': "),
        ("--num-tokens 1", "Invalid value for '--num-tokens': "),
        ("--num-pairs many", "Invalid value for '--num-pairs': "),
        ("--num-pairs 100000", "the text has "),
        ("--device gpu", "name one that can: cpu"),
        ("--dtype int8", "'int8' is not one of 'auto', 'float32', 'bfloat16', 'float16'"),
        ("--sampling random", "'random' is not one of 'grid', 'adaptive'"),
        ("--pairs 3", "No such option"),
        ("--out taken", "--out 'taken': 'taken' is not a folder; name another"),
        ("--out taken/out", "--out 'taken/out': 'taken' is not a folder; name another"),
        ("--prompts taken", "the file is empty"),
        ("--prompts missing.txt", "--prompts 'missing.txt': there is no such file"),
        ("--prompts somebody/text", "there is no file 'somebody/text' here, and the hub cannot be"),
        ("--prompts short.txt", "the text has "),
    ],
)
def test_mistakes_are_one_line(saved: Path, capsys: Capture, options: str, said: str) -> None:
    Path("taken").touch()
    Path("short.txt").write_text("hello there")
    command = ["measure", str(saved), "--device", "cpu", *options.split()]
    assert said in refusal(capsys, *command)
    assert not Path("stable-regions").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("measure", "Missing argument"),
        ("measure ./nowhere", "there is no folder './nowhere'"),
        ("measure .", "holds no model (no config.json)"),
        ("mesure x", "No such command 'mesure'"),
        ("--version-of-what", "No such option"),
    ],
)
def test_mistaken_commands_are_one_line(capsys: Capture, command: str, said: str) -> None:
    assert said in refusal(capsys, *command.split())


def test_an_encoder_is_refused(tmp_path: Path, capsys: Capture) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = save_model(tmp_path / "bert", "Bert", "ForMaskedLM", intermediate_size=32, **sizes)
    save_tokenizer(bert)
    said = refusal(capsys, "measure", str(bert), "--device", "cpu", *FEW)
    assert "BertLMHeadModel is not causal" in said


def test_a_folder_that_cannot_be_written_to(saved: Path, capsys: Capture) -> None:
    Path("out/curves.png").mkdir(parents=True)
    said = refusal(capsys, "measure", str(saved), "--device", "cpu", "--out", "out", *FEW)
    assert "cannot write to 'out'" in said


def test_interrupted_by_the_user(saved: Path, capsys: Capture) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    # What runs in the background, as tests may, ignores an interrupt.
    restore = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        # 2,000 pairs of 2,001 points take minutes.
        command = ["measure", str(saved), "--num-pairs", "2000", "--num-steps", "2001"]
        assert main([*command, "--device", "cpu"]) == 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, restore)
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_of_ours_is_not_hidden(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("sr_monitor.cli.measure_model", broken)
    with pytest.raises(ZeroDivisionError):
        main(["measure", str(saved), "--device", "cpu", *FEW])


def test_a_warning_is_one_line(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def warn(*_: object, **__: object) -> Callable[[], None]:
        warnings.simplefilter("always")
        warnings.warn("the fast way\ndiffers", stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr("sr_monitor.cli.measure_model", warn)
    assert main(["measure", str(saved), "--device", "cpu", *FEW]) == 130
    assert capsys.readouterr().err == "sr-monitor: warning: the fast way differs\n"


@pytest.mark.parametrize("command", [[], ["--help"]])
def test_help_is_shown(
    command: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sr-monitor", *command])
    assert main() == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "measure" in out
    assert "demo" in out
