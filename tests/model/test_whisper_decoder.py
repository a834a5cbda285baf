"""Whisper's own decoder, packed, against the stock model on every row alone."""

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from uniaudio.errors import UserError
from uniaudio.model.decoding import generate_with_cross_attention
from uniaudio.model.whisper_decoder import LinearBridge, load_whisper_decoder
from uniaudio.ragged import Ragged


def full_whisper():
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        vocab_size=60,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return WhisperForConditionalGeneration(config).eval()


@pytest.fixture
def folder(tmp_path):
    full_whisper().save_pretrained(tmp_path / "whisper")
    return str(tmp_path / "whisper")


def rows():
    torch.manual_seed(1)
    ids = Ragged(torch.randint(3, 60, (12,)), torch.tensor([5, 3, 4]))
    frames = Ragged(torch.randn(9, 32), torch.tensor([2, 6, 1]))
    return ids, frames


def test_loss_and_gradient_equal_the_stock_model_on_each_row_alone(folder):
    stock = full_whisper()
    reader = load_whisper_decoder(folder, train="full")
    ids, frames = rows()
    values = frames.values.clone().requires_grad_()
    hidden = reader.hidden(ids.with_values(reader.embed(ids.values)), frames.with_values(values))
    places = torch.tensor([1, 2, 6, 9])
    labels = torch.tensor([7, 8, 9, 10])
    total, per_token, right = reader.losses(hidden[places], labels, chunk=3)
    total.backward()
    other = frames.values.clone().requires_grad_()
    logits = torch.cat(
        [
            stock(encoder_outputs=(seen[None],), decoder_input_ids=row[None]).logits[0]
            for row, seen in zip(ids.rows(), frames.with_values(other).rows(), strict=True)
        ]
    )[places]
    wanted = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(per_token, wanted.detach(), atol=1e-5, rtol=1e-5)
    assert torch.equal(right, logits.argmax(-1) == labels)
    wanted.sum().backward()
    torch.testing.assert_close(values.grad, other.grad, atol=1e-5, rtol=1e-4)
    single = dict(stock.model.decoder.named_parameters())
    for name, parameter in reader.decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, single[name].grad, atol=1e-5, rtol=1e-4)


def test_a_frozen_decoder_stores_no_logits(folder):
    ids, frames = rows()
    places, labels = torch.tensor([1, 2, 6, 9]), torch.tensor([7, 8, 9, 10])
    results, stored = {}, []

    def pack(tensor):
        stored.extend(tensor.shape[-1:])
        return tensor

    for train in ("full", "frozen", "lora"):
        reader = load_whisper_decoder(folder, train=train)
        values = frames.values.clone().requires_grad_()
        hidden = reader.hidden(ids.with_values(reader.embed(ids.values)), frames.with_values(values))
        stored.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            total, per_token, right = reader.losses(hidden[places], labels, chunk=3)
        assert (60 in stored) == (train == "full")
        total.backward()
        results[train] = (per_token, right, values.grad)
    for train in ("frozen", "lora"):
        for one, other in zip(results[train], results["full"], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_frozen_or_low_rank(folder):
    frozen = load_whisper_decoder(folder).train()
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    lora = load_whisper_decoder(folder, train="lora").train()
    trained = [name for name, p in lora.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert lora.training


def test_rows_that_are_too_long_and_other_folders_are_reported(folder, qwen, tmp_path):
    reader = load_whisper_decoder(folder)
    long = Ragged(torch.zeros(21, 32), torch.tensor([21]))
    with pytest.raises(UserError, match="a row of 21 tokens is longer than Whisper's 20 positions"):
        reader.hidden(long, Ragged(torch.zeros(1, 32), torch.tensor([1])))
    qwen.save_pretrained(tmp_path / "qwen")
    with pytest.raises(
        UserError, match=r"decoder\.path: .* holds a qwen3 model, but decoder\.kind is whisper"
    ):
        load_whisper_decoder(str(tmp_path / "qwen"))
    full_whisper().model.encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match="needs a full checkpoint"):
        load_whisper_decoder(str(tmp_path / "encoder"))


def test_a_bridge_of_equal_widths_changes_nothing_at_first():
    frames = Ragged(torch.randn(3, 8), torch.tensor([1, 2]))
    assert torch.equal(LinearBridge(8, 8)(frames).values, frames.values)
    assert LinearBridge(8, 4)(frames).values.shape == (3, 4)


def test_the_penalty_of_repetitions_equals_a_plain_loop_with_the_stock_model(folder):
    stock, reader, (ids, frames) = full_whisper(), load_whisper_decoder(folder), rows()
    plain = generate_with_cross_attention(reader, ids, frames, 8, end_of_turn=2)
    penalized = generate_with_cross_attention(reader, ids, frames, 8, end_of_turn=2, repetition_penalty=30.0)
    assert penalized != plain
    for row, seen, answer in zip(ids.rows(), frames.rows(), penalized, strict=True):
        said: list[int] = []
        while len(said) < len(answer):
            text = torch.cat([row, torch.tensor(said, dtype=torch.int64)])
            with torch.no_grad():
                logits = stock(encoder_outputs=(seen[None],), decoder_input_ids=text[None]).logits[0, -1]
            for token in set(said):
                logits[token] = logits[token] / 30 if logits[token] > 0 else logits[token] * 30
            said.append(int(logits.argmax()))
        assert answer == said
