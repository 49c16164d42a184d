"""Whatever a stranger's file causes is one line on the command line, and never a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest

from sr_monitor.cli import main
from sr_monitor.errors import InputError, describe, explained
from tests.replays import checkpoints, some_prompts

DEEP = "[" * 100_000
FEW = ("--num-pairs", "3", "--num-steps", "4", "--num-slices", "0", "--device", "cpu")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint to be damaged, with all its files."""
    monkeypatch.chdir(tmp_path)
    return checkpoints(Path("run"), 1)


def config(**entries: Any) -> str:
    """The config.json of a small Llama, but for some entries."""
    small = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 300}
    return json.dumps(small | entries)


def prompts(**entries: Any) -> str:
    return json.dumps(json.loads(some_prompts().to_json()) | entries)


def replayed(runs: str) -> str:
    return f'{{"schema": 1, "options": {{}}, "runs": {runs}}}'


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", DEEP, "run/checkpoint-1' cannot be loaded: RecursionError"),
        ("config.json", "[1]", "run/checkpoint-1' cannot be loaded: "),
        ("config.json", config(num_hidden_layers="12"), "num_hidden_layers"),
        ("config.json", config(model_type=["olmo"]), "cannot be loaded: TypeError: unhashable"),
        ("config.json", config(text_config="x"), "cannot be loaded: AttributeError"),
        ("config.json", config(num_attention_heads=0), "cannot be loaded: ZeroDivisionError"),
        ("config.json", config(rope_scaling={"type": 5}), "cannot be loaded: KeyError"),
        ("tokenizer.json", "{}", "run/checkpoint-1' cannot be loaded: "),
        ("tokenizer.json", DEEP, "run/checkpoint-1' cannot be loaded: "),
        ("tokenizer_config.json", '{"model_max_length": "x"}', "the tokenizer fails (TypeError"),
        ("../../p.json", DEEP, "line 1 is '[[[["),
        ("../../p.json", prompts(source=5), "PromptSet: source is 5; pass text"),
        ("../../p.json", prompts(labels=[5, 5, 5]), "PromptSet: labels is 5; pass text for each"),
        ("../../p.json", prompts(prompts=[{"tokens": "x", "text": 5}]), "p.json"),
        ("../../data/a.json", '{"text": [', "cannot open 'data' (config=None, split='train'): "),
        ("../../data/a.json", "null", "'data/a.json' holds no rows; leave it out"),
    ],
)
@pytest.mark.parametrize("command", ["measure", "replay"])
def test_a_damaged_file_is_one_line(
    run: Path, capsys: Capture, command: str, file: str, content: str, told: str
) -> None:
    path = run / "checkpoint-1" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    given = next((name for name in ("p.json", "data") if Path(name).exists()), None)
    words = [command, "run/checkpoint-1", "--out", "out", *FEW]
    assert main([*words, *(["--prompts", given] if given else [])]) in (1, 2)
    err = capsys.readouterr().err
    assert told in err
    assert err.splitlines()[-1].startswith("sr-monitor: error: ")
    assert len(err.splitlines()) <= 2, "at a checkpoint's failure, and in the end"


@pytest.mark.parametrize(
    "content",
    [
        *(DEEP, "[]", '{"schema": 1e999, "options": {}, "runs": {}}'),
        *map(replayed, ("[1]", '{"a\\u0000": "x"}', '{"\\ud800": "x"}')),
    ],
)
def test_a_damaged_replay_json_is_one_line(run: Path, capsys: Capture, content: str) -> None:
    Path("out").mkdir()
    Path("out/replay.json").write_text(content)
    Path("p.json").write_text(some_prompts().to_json())
    assert main(["replay", "run", "--out", "out", "--prompts", "p.json", *FEW]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--out 'out' holds a replay.json that is damaged (" in line
    assert line.endswith("; delete it and what was measured, or name another folder")


def test_what_was_explained_already_stays_and_memory_is_no_damage() -> None:
    for error in (InputError("as it is"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, explained("a file"):
            raise error
        assert caught.value is error
    memory = r"^a file: memory ran out .*; pass dtype='bfloat16'"
    for full in (MemoryError(), RuntimeError("CUDA error: out of memory")):
        with pytest.raises(InputError, match=memory), explained("a file", "copy it again"):
            raise full
    with pytest.raises(InputError) as told, explained("a file", "copy it again"):
        raise ValueError("Validation error:\n    expected int\n")
    assert (
        describe(told.value) == "a file (ValueError: Validation error: expected int); copy it again"
    )
