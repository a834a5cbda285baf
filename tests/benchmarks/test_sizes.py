"""The named sizes are those that were published."""

import pytest
import sizes
import torch


def parameters(model):
    return sum(p.numel() for p in model.parameters())


# millions of parameters of the published encoders (without their decoders) and decoders
@pytest.mark.parametrize(
    ("name", "millions"),
    [("tiny", 8.2), ("base", 20.6), ("small", 88.2), ("medium", 307.2), ("large-v3", 637.0)],
)
def test_encoders_have_the_published_sizes(name, millions):
    assert parameters(sizes.new_whisper(name, "meta")) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(("name", "millions"), [("0.6B", 596.05), ("1.7B", 1720.57)])
def test_decoders_have_the_published_sizes(name, millions):
    assert parameters(sizes.new_qwen3(name, "meta")) / 1e6 == pytest.approx(millions, abs=0.01)


def test_a_decoder_is_frozen_in_its_dtype_with_tied_weights_and_exact_positions():
    lm = sizes.new_qwen3("miniature", dtype=torch.bfloat16)
    assert {p.dtype for p in lm.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in lm.buffers()} == {torch.float32}
    assert not any(p.requires_grad for p in lm.parameters())
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


def test_weights_are_a_function_of_the_seed():
    one, same, other = (sizes.new_whisper("miniature", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.conv1.weight, same.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)
    assert one.layers[0].fc1.weight.std().item() == pytest.approx(0.02, rel=0.2)
