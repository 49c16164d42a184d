"""Token ids in rows and batches of training data: what is found, and what is not."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from sr_monitor.prompts.corpora import WindowRequest
from sr_monitor.prompts.token_ids import count_tokens, token_ids_of
from sr_monitor.prompts.training_data import prompts_from_batch, prompts_from_dataset

_ROW = [5, 6, 7]
_BATCH = [[5, 6, 7], [8, 9, 3]]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (_ROW, [_ROW]),
        (_BATCH, _BATCH),
        (torch.tensor(_ROW), [_ROW]),
        (torch.tensor(_BATCH, dtype=torch.int32), _BATCH),
        (np.array(_BATCH, dtype=np.uint16), _BATCH),
        (list(np.array(_ROW)), [_ROW]),
        ({"text": "abc", "tokens": torch.tensor(_ROW)}, [_ROW]),
        ({"tokens": ["the", "cat"], "ids": _ROW}, [_ROW]),
        ({"x": [1, 1], "input_ids": _ROW}, [_ROW]),
        ({"input_ids": [torch.tensor([5, 6]), torch.tensor([7])]}, [[5, 6], [7]]),
        ({"input_ids": []}, [[]]),
        (BatchEncoding({"input_ids": torch.tensor(_BATCH)}), _BATCH),
        ([torch.rand(3), torch.tensor([True] * 3), torch.tensor(_BATCH)], _BATCH),
        (("a name", 3, {"input_ids": _ROW}), [_ROW]),
        ([{"input_ids": _ROW}, {"input_ids": [8]}], [_ROW, [8]]),
        ([5, -200, 7], [[5, 7]]),
        ({"input_ids": [0, 5, 6, 7, 0], "attention_mask": [0, 1, 1, 1, 0]}, [_ROW]),
        ({"input_ids": _ROW, "attention_mask": torch.tensor([0.0, 1.0, 1.0])}, [[6, 7]]),
        (
            {
                "input_ids": torch.tensor(_BATCH, dtype=torch.int16),
                "attention_mask": torch.tensor([[1, 1, 0], [0, 1, 1]]),
            },
            [[5, 6], [9, 3]],
        ),
        ({"input_ids": _ROW, "attention_mask": [1, 1, 2]}, [_ROW]),  # packed: documents 1 and 2
        ({"input_ids": _ROW, "attention_mask": torch.zeros(3, 3)}, [_ROW]),  # no mask of tokens
    ],
)
def test_token_ids_are_found_and_counted(item: Any, expected: list[list[int]]) -> None:
    assert token_ids_of(item) == expected
    assert int(count_tokens(item)) == sum(map(len, expected))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "item",
    [
        None,
        "some text",
        torch.rand(4),
        torch.tensor([True, False]),
        torch.tensor(3),
        torch.zeros(2, 3, 4, dtype=torch.uint8),  # a picture
        np.array(["a", "b"]),
        [1, 2.5],
        [True, False],
        [1, "b"],
        [1, 2**70],
        [[[1, 2], [3, 4]]],
        (torch.rand(3, 8, 8), 7),
        {"text": "some text", "label": 1},
        {"pixel_values": torch.rand(3), "labels": torch.tensor([1, 2])},
        [{"text": "a"}, {"text": "b"}],
        (),
    ],
)
def test_where_there_are_no_token_ids_none_are_found(item: Any) -> None:
    request = WindowRequest("test", num_tokens=2, num_prompts=3, seed=0)
    found = [token_ids_of(item), count_tokens(item), prompts_from_batch(item, request)]
    assert [*found, prompts_from_dataset([item] * 3, request)] == [None] * 4
