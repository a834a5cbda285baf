"""Low-rank updates on every family of encoders: they train, and merged they are the same function."""

import pytest
import torch
from helpers.checkpoints import MINIATURES, save_miniature

from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.lora import add_lora, find_lora_targets, merge_lora
from uniaudio.ragged import Ragged

WITH_ATTENTION = [kind for kind in MINIATURES if kind != "encodec"]


def clips():
    generator = torch.Generator().manual_seed(0)
    return Ragged(torch.randn(24_000, generator=generator) * 0.1, torch.tensor([16_000, 8_000]))


def load(kind, folder):
    save_miniature(kind, folder)
    return load_audio_encoder(EncoderConfig(path=str(folder)), "encoders.a").eval()


@pytest.mark.parametrize("kind", WITH_ATTENTION)
def test_they_train_and_merge_to_the_same_function(kind, tmp_path):
    encoder = load(kind, tmp_path)
    plain = {name for name, _ in encoder.named_parameters()}
    start = encoder(clips()).frames.values.detach()
    add_lora(encoder, rank=3, alpha=6, dropout=0.0, targets="qkv")
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    torch.testing.assert_close(encoder(clips()).frames.values, start, atol=1e-6, rtol=1e-5)  # B is 0
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.3)
    frames = encoder(clips()).frames.values
    assert (frames - start).abs().max() > 1e-4
    (frames * torch.randn_like(frames)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    merge_lora(encoder)
    assert {name for name, _ in encoder.named_parameters()} == plain
    torch.testing.assert_close(encoder(clips()).frames.values, frames.detach(), atol=1e-4, rtol=1e-3)


def test_the_update_is_alpha_over_rank_b_a():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    first, second = (linear.weight.clone() for linear in model)
    biases = [linear.bias.clone() for linear in model]
    add_lora(model, rank=2, alpha=6, dropout=0.0, targets=["^1$"])
    a, b = (getattr(model[1], f"lora_{side}")["default"].weight for side in "AB")
    torch.nn.init.normal_(b)
    wanted = (x @ first.T + biases[0]) @ (second + 6 / 2 * b @ a).T + biases[1]
    torch.testing.assert_close(model(x), wanted)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "1.lora_A.default.weight",
        "1.lora_B.default.weight",
    ]


def test_targets_that_match_nothing_are_reported_with_what_there_is(tmp_path):
    encoder = load("whisper", tmp_path)
    assert len(find_lora_targets(encoder, "qkv")) == 2 * 3
    assert len(find_lora_targets(encoder, "all")) == 2 * 6
    assert len(find_lora_targets(encoder, [r"layers\.1\.fc"])) == 2
    with pytest.raises(UserError, match=r"'nothing' matches no linear layer; there are fc1, fc2, k_proj"):
        find_lora_targets(encoder, ["fc1", "nothing"])
    with pytest.raises(UserError, match="'qkv' matches no linear layer"):
        find_lora_targets(load("encodec", tmp_path / "e"), "qkv")


def test_the_start_is_a_function_of_the_seed(tmp_path):
    starts = []
    for seed in (1, 1, 2):
        encoder = load("whisper", tmp_path)
        add_lora(encoder, 2, 4, 0.0, "qkv", seed)
        starts.append(torch.cat([p.flatten() for n, p in encoder.named_parameters() if "lora_A" in n]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
