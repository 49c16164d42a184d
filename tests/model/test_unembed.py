"""Logits of final vectors are those that the model's own forward makes of them."""

import pytest
import torch

from sr_monitor.errors import InputError
from sr_monitor.model.session import SessionOptions, open_session
from tests import zoo
from tests.oracle import run


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_the_logits_are_the_model_s_own(name: str) -> None:
    """Soft-capping and scaling included; no hook or forward of ours is left behind."""
    specimen = zoo.build(name)
    prompts = specimen.prompts(3, 6)
    before = [(dict(m._forward_hooks), "forward" in vars(m)) for m in specimen.model.modules()]
    with open_session(specimen.model, (prompts, prompts.flip(0)), SessionOptions()) as session:
        stream = session.stream
        logits = stream.unembed(stream.continue_plain(prompts, stream.read(prompts)))
    expected = torch.stack([run(specimen, prompt, 1, "logits")[1] for prompt in prompts])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    after = [(dict(m._forward_hooks), "forward" in vars(m)) for m in specimen.model.modules()]
    assert after == before


def test_what_the_unembedding_does_not_read_is_refused() -> None:
    specimen = zoo.build("llama")
    prompts = specimen.prompts(2, 6)
    options = SessionOptions(output="resid_final")
    with (
        pytest.raises(InputError, match=r"resid_final.*output='final_norm'"),
        open_session(specimen.model, (prompts, prompts.flip(0)), options) as session,
    ):
        session.stream.unembed(torch.zeros(2, zoo.WIDTH))
