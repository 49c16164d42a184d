"""The command `sr-monitor measure`, as a user types it."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image

from sr_monitor import measure_paths
from sr_monitor.cli import main
from sr_monitor.model.loading import load_model
from sr_monitor.probes.statistics import summarise
from sr_monitor.prompts.prompt_set import PromptSet
from tests.saved import save_model, save_tokenizer

FEW = ("--num-pairs", "3", "--num-steps", "5", "--num-slices", "1", "--slice-resolution", "4")
PICTURES = {"curves.png", "slopes.png", "slice-0.png"}

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lead into a folder of the test, and names lead to no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def measure(model: Path, *options: str) -> dict[str, Any]:
    """Run the command into the folder `out`; the numbers it wrote."""
    assert main(["measure", str(model), "--out", "out", "--device", "cpu", *FEW, *options]) == 0
    numbers = json.loads(Path("out/measurement.json").read_text())
    assert isinstance(numbers, dict)
    return numbers


def refusal(capsys: Capture, model: Path, *options: str) -> str:
    """Run a command that has to be refused; the one line it says."""
    capsys.readouterr()
    assert main(["measure", str(model), "--device", "cpu", *FEW, *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("sr-monitor: error: ")
    return err


def test_numbers_pictures_prompts_and_a_table_are_left(saved: Path, capsys: Capture) -> None:
    numbers = measure(saved, "--layer", "2", "--sampling", "grid", "--way", "plain")
    prompts = PromptSet.load("out/prompts.json")
    assert numbers["prompts_fingerprint"] == prompts.fingerprint
    model = load_model(str(saved), device="cpu")
    paths = measure_paths(model, *prompts.pairs(3), layer=2, num_steps=5, engine="plain")
    assert numbers["max_slope"]["median"] == summarise(paths.max_slope, paths.kept).median
    assert numbers["pairs"]["end_distance"] == paths.end_distance.tolist()
    assert (numbers["curve"]["median"][0], numbers["curve"]["median"][-1]) == (0, 1)
    assert (numbers["layer"], numbers["engine"], numbers["num_steps"]) == (2, "plain", 5)
    out, err = capsys.readouterr()
    assert err == ""
    for words in (
        "LlamaForCausalLM, float32 on cpu",
        "3 pairs of 10 tokens, the help topics of Python",
        *("maximum slope", "quartiles", "95% interval", "noise floor", "pairs left out"),
        *("seconds", "points"),
    ):
        assert words in out, words
    written = {path.name for path in Path("out").iterdir()}
    assert all(name in out for name in written)
    assert written == {*PICTURES, "prompts.json", "measurement.json"}
    for name in PICTURES:
        with Image.open(Path("out") / name) as image:
            assert len(image.convert("L").getcolors() or ()) > 10


def test_probes_add_their_lines_pictures_and_parts(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    about = tmp_path / "others-1.0.dist-info"  # another package, with a probe as an entry point
    about.mkdir()
    (about / "METADATA").write_text("Name: others\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[sr_monitor.probes]\nrise = tests.made:Rise\n")
    monkeypatch.syspath_prepend(tmp_path)
    plain = measure(saved)
    numbers = measure(saved, "--probe", "divergence", "--probe", "rise")
    out = capsys.readouterr().out
    for words in (
        "divergence end",
        "rise median",
        "slice-0.png, divergence-curves.png, rise-picture.png",
    ):
        assert words in out
    with Image.open("out/rise-picture.png") as image:
        assert image.size == (3, 1)
    kl, rise = numbers.pop("divergence")["kl"], numbers.pop("rise")
    assert (len(kl), len(kl[0])) == (3, numbers["num_steps"])
    assert kl.pop(1) == [None] * numbers["num_steps"]
    assert all(row[0] < 1e-6 < row[-1] for row in kl)
    assert (len(rise["rise"]), rise["at"]) == (3, 0.5)
    assert numbers["probes"] == {"divergence": {"every": 2}, "rise": {"at": 0.5}}
    assert {**numbers, "seconds": 0, "probes": []} == {**plain, "seconds": 0}
    told = refusal(capsys, saved, "--probe", "risen")
    assert "did you mean 'rise'? available: " in told
    assert " divergence, " in told


def test_earlier_results_are_replaced_and_links_not_followed(saved: Path) -> None:
    measure(saved, "--num-slices", "2")
    names = ["slice-0.png", "slice-1.png", "curves.png", "prompts.json", "measurement.json"]
    for name in names:
        Path(f"mine-{name}").write_text("mine")
        Path("out", name).unlink()
        Path("out", name).symlink_to(Path(f"mine-{name}").absolute())
    measure(saved, "--num-slices", "0")
    assert list(Path("out").glob("slice-*.png")) == []
    assert {path.read_text() for path in Path().glob("mine-*")} == {"mine"}
    assert not any(path.is_symlink() for path in Path("out").iterdir())


def test_the_folder_is_named_after_the_model_and_shown_as_it_is(
    saved: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = shutil.copytree(saved, tmp_path / "tiny\33[31m\nred")
    half = ("--device", "cpu", "--dtype", "bfloat16")
    assert main(["measure", str(model), *half, *FEW]) == 0
    assert Path("stable-regions", model.name, "curves.png").is_file()
    out = capsys.readouterr().out
    assert "bfloat16 on cpu" in out
    assert "stable-regions/tiny\\x1b[31m\\nred: curves.png" in out
    assert "\33" not in out


def test_the_seed_chooses_prompts_and_a_saved_set_needs_no_tokenizer(
    saved: Path, tmp_path: Path
) -> None:
    expected, other = (measure(saved, "--num-tokens", "7", "--seed", seed) for seed in "10")
    assert other["prompts_fingerprint"] != expected["prompts_fingerprint"]
    shutil.copytree(saved, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copy("out/prompts.json", "prompts.json")
    found = measure(tmp_path / "bare", "--prompts", "prompts.json")
    assert (found["num_tokens"], found["pairs"]) == (7, other["pairs"])


def test_a_pair_that_is_left_out_is_null(saved: Path) -> None:
    chain = torch.tensor([0, 1, 1, 2])  # the second pair is a prompt and itself
    PromptSet.from_token_ids(torch.arange(15).reshape(3, 5)[chain]).save("prompts.json")
    numbers = measure(saved, "--prompts", "prompts.json")
    assert numbers["pairs"]["kept"] == [True, False, True]
    assert [slope is None for slope in numbers["pairs"]["max_slope"]] == [False, True, False]
    assert numbers["max_slope"]["num_left_out"] == 1


def test_text_lines_and_folders_are_read(saved: Path) -> None:
    words = [f"word{number} means something {number * 7}" for number in range(60)]
    Path("corpus.txt").write_text("\n".join(words))
    Path("data").mkdir()
    Path("data/train.jsonl").write_text("\n".join(json.dumps({"text": word}) for word in words))
    text, folder = (measure(saved, "--prompts", source) for source in ("corpus.txt", "data"))
    assert (text["prompts"], folder["prompts"]) == ("corpus.txt", "data set data train")
    assert text["prompts_fingerprint"] == folder["prompts_fingerprint"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--layer 4", "layer=4: LlamaForCausalLM has layers 0"),
        ("--num-pairs 100000", "the text has "),
        ("--device gpu", "name one that can: cpu"),
        ("--dtype int8", "--dtype='int8': pass one of auto, float32, bfloat16, float16"),
        ("--prompts taken", "the file is empty"),
        ("--prompts missing.txt", "--prompts 'missing.txt': there is no such file"),
        ("--prompts somebody/text", "there is no file 'somebody/text' here, and the hub cannot be"),
        ("--prompts broken", "cannot open 'broken'"),
    ],
)
def test_mistakes_are_one_line(saved: Path, capsys: Capture, options: str, told: str) -> None:
    Path("taken").touch()
    Path("broken").mkdir()
    Path("broken/train.jsonl").write_text('{"text": ')
    assert told in refusal(capsys, saved, *options.split())
    assert not Path("stable-regions").exists()


def test_an_encoder_a_model_of_nan_and_a_taken_name_are_refused(
    saved: Path, tmp_path: Path, capsys: Capture
) -> None:
    model: Any = load_model(str(saved), device="cpu")
    next(model.parameters()).data.fill_(float("nan"))
    shutil.copytree(saved, tmp_path / "nan")
    model.save_pretrained(tmp_path / "nan")
    told = refusal(capsys, tmp_path / "nan", "--out", "out")
    assert "nan' cannot be measured: not one output of 3 pairs is finite" in told
    assert not Path("out").exists()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = save_model(tmp_path / "bert", "Bert", "ForMaskedLM", intermediate_size=32, **sizes)
    assert "BertLMHeadModel is not causal" in refusal(capsys, save_tokenizer(bert))
    Path("out/curves.png").mkdir(parents=True)
    assert "cannot write to 'out'" in refusal(capsys, saved, "--out", "out")
