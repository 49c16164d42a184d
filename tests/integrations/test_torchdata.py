"""Prompts from streams behind torchdata's StatefulDataLoader, which says where it stands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset

from tests.lightning_runs import small, train
from tests.training import Run, equal, prompts_in, records, rows

torchdata = pytest.importorskip("torchdata.stateful_dataloader")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torchdata's, Lightning's


class Resumable(IterableDataset[Any]):
    """Rows from where it stands, shared out to workers, each with noise of its own generator."""

    def __init__(self, given: Any) -> None:
        self.given, self.at = given, 0
        self.chance = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        num, first = (1, 0) if worker is None else (worker.num_workers, worker.id)
        while self.at * num + first < len(self.given):
            row = self.given[self.at * num + first]
            self.at += 1
            ids = (row["input_ids"] + torch.randint(9, (), generator=self.chance)) % 50
            yield {"input_ids": ids, "labels": ids}

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "chance": self.chance.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
        self.chance.set_state(state["chance"])


def hugging_face() -> Any:
    given = rows(60, 24)
    table: Any = datasets.Dataset.from_dict(
        {name: [row["input_ids"].tolist() for row in given] for name in ("input_ids", "labels")}
    )
    return table.to_iterable_dataset(num_shards=4).with_format("torch")


STREAMS = {"resumable": lambda: Resumable(rows(60, 24)), "hugging face": hugging_face}


def saved(folder: Path, step: int) -> Path:
    return folder / "saved" / f"step={step}.ckpt"


def state_of_loader(checkpoint: Path) -> Any:
    loops = torch.load(checkpoint, weights_only=False)["loops"]
    return loops["fit_loop"]["state_dict"]["combined_loader"]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_is_read_ahead_and_its_loader_stays_where_it_is(
    tmp_path: Path, kind: str, num_workers: int
) -> None:
    def run(name: str, resume: str = "") -> Run:
        return train(
            tmp_path / resume / name,
            [small(num_pairs=40)] if name == "watched" else [],
            data=lambda: torchdata.StatefulDataLoader(
                STREAMS[kind](), batch_size=4, num_workers=num_workers
            ),
            save_steps=2,
            resume=saved(tmp_path / name, 2) if resume else None,
        )

    plain, watched = run("plain"), run("watched")
    assert watched.differences(plain) == []
    prompts = prompts_in(watched.folder)
    assert (len(prompts.token_ids), list(records(watched.folder))) == (41, [0, 2, 4])
    for step in (2, 4):
        states = [state_of_loader(saved(each.folder, step)) for each in (watched, plain)]
        assert equal(*states), step
        assert states[0] != [], "Lightning kept no state of the loader"
    plain, watched = run("plain", "resumed"), run("watched", "resumed")
    assert watched.differences(plain) == []
    assert prompts_in(watched.folder).fingerprint == prompts.fingerprint
