"""How a model is called, where its forward takes more than token ids."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sr_monitor import InputError, MonitorConfig, PromptSet, measure_paths, measure_slices
from sr_monitor.watch.measure import take_record
from tests.zoo import build

IDS = torch.arange(28).view(4, 7)
PAIRS = IDS[:-1], IDS[1:]


class Positioned(nn.Module):
    """As torchtitan's models: positions have to be passed."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = build("nano_gpt").model

    def forward(self, tokens: Tensor, positions: Tensor, scale: float = 1.0) -> Any:
        assert positions.tolist() == list(range(tokens.shape[1]))
        return self.model(tokens)


def with_positions(model: nn.Module, ids: Tensor) -> Any:
    return model(ids, torch.arange(ids.shape[1]))


def test_a_forward_that_takes_more_than_token_ids_is_called_as_the_user_says() -> None:
    model = Positioned()
    found = measure_paths(model, *PAIRS, num_steps=5, call=with_positions)
    assert torch.equal(found.distance, measure_paths(model.model, *PAIRS, num_steps=5).distance)
    corners = IDS[:1], IDS[1:2], IDS[2:3]
    plane = measure_slices(model, *corners, resolution=3, call=with_positions)
    exact = measure_slices(model.model, *corners, resolution=3)
    assert torch.equal(plane.distance, exact.distance)
    config = MonitorConfig(num_pairs=3, num_steps=5, num_slices=0, call=with_positions)
    record = take_record(model, PromptSet.from_token_ids(IDS), config, step=0)
    assert torch.equal(record.paths.distance, found.distance)
    assert "call" not in record.metadata["config"]


def test_a_hugging_face_model_is_called_as_the_user_says() -> None:
    """Then its cache is not used: only the user knows what the call does with it."""
    model = build("llama").model
    found = measure_paths(model, *PAIRS, num_steps=5, call=lambda model, ids: model(input_ids=ids))
    exact = measure_paths(model, *PAIRS, num_steps=5)
    assert found.engine == "plain"
    torch.testing.assert_close(found.distance, exact.distance, rtol=1e-4, atol=1e-5)


def test_without_it_the_error_names_what_is_missing_and_the_fix() -> None:
    with pytest.raises(InputError, match=r"Positioned.forward.*tokens, positions; pass call="):
        measure_paths(Positioned(), *PAIRS)


def test_a_random_forward_is_called_random() -> None:
    model: Any = build("nano_gpt").model
    model.transformer["wte"].register_forward_hook(
        lambda _module, _args, output: output + torch.rand_like(output)
    )
    with pytest.raises(InputError, match="NanoGPT is random"):
        measure_paths(model, *PAIRS)
