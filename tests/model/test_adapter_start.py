"""The closed-form start of an adapter."""

import numpy as np
import pytest
import torch

from uniaudio.config.run_files import load_run
from uniaudio.data.collate import collate
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.model.adapter_start import solve_ridge, spread_answers, standardise, start_adapter
from uniaudio.model.adapters.pool import PoolAdapter
from uniaudio.model.adapters.stack import LinearAdapter, StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.types import Example

ANSWERS = ("low", "high")


def make_model(whisper, qwen, adapter):
    encoder = WhisperAudioEncoder(whisper)
    return AudioLM(encoder, adapter(encoder.dim, 50.0, 64), TextDecoder(qwen))


def make_batches(model, format, count=24, answers=ANSWERS):
    """Batches of one row: tones of two pitches, named by their answers."""
    for i in range(count):
        pitch = (200, 2000)[i % 2] * (1 + 0.02 * (i // 2))
        wave = 8000 * np.sin(2 * np.pi * pitch * np.arange(4000 + 320 * i) / 16000)
        clip = (wave.astype(np.int16),)
        example = Example(f"a/b/{i}", "tag", "a", clip, ("", "Which tone is it?"), answers[i % 2])
        yield collate([example], format, model.count_slots, ("tag",))


@pytest.mark.parametrize("adapter", [PoolAdapter, StackAdapter, LinearAdapter])
def test_tokens_begin_near_the_embeddings_of_the_answers(whisper, qwen, chat_tokenizer, adapter):
    model, format = make_model(whisper, qwen, adapter), ChatFormat(chat_tokenizer)
    start_adapter(model, make_batches(model, format), 24, format.encode_in_text)
    table = model.decoder.lm.get_input_embeddings().weight.detach()
    said = torch.stack([table[torch.tensor(format.encode(f" {answer}"))].mean(0) for answer in ANSWERS])
    for i, batch in enumerate(make_batches(model, format)):
        with torch.no_grad():
            tokens = model.adapter(model.encode(batch, None).frames).values
        distances = torch.cdist((tokens.mean(0) - table.mean(0))[None], said - said.mean(0))[0]
        assert distances.argmin() == i % 2
    assert tokens.std() < 3 * table.std()  # of the size that the decoder knows


def test_only_so_many_rows_are_read_and_the_mode_stays(whisper, qwen, chat_tokenizer):
    model, format = make_model(whisper, qwen, PoolAdapter), ChatFormat(chat_tokenizer)
    model.train()
    batches = make_batches(model, format)
    start_adapter(model, batches, 4, format.encode_in_text)
    assert len(list(batches)) == 24 - 4
    assert model.training
    assert not any(p.grad is not None for p in model.parameters())


def test_an_adapter_that_the_first_stage_does_not_train_is_refused(whisper, qwen):
    model = make_model(whisper, qwen, PoolAdapter)
    model.adapter.requires_grad_(False)
    with pytest.raises(
        UserError, match=r"adapter\.start: ridge is for an adapter that is trained in the first stage"
    ):
        start_adapter(model, iter(()), 4, list)


def test_the_tokens_of_an_answer_are_spread_over_those_of_the_clip(whisper, qwen, chat_tokenizer):
    model, format = make_model(whisper, qwen, PoolAdapter), ChatFormat(chat_tokenizer)
    batch = next(make_batches(model, format, answers=("a much longer answer, of words", "b")))
    tokens = model.adapter(model.encode(batch, None).frames)
    ids = torch.tensor(format.encode(" a much longer answer, of words"))
    table, count = model.decoder.lm.get_input_embeddings().weight, len(tokens.values)
    places = [j * len(ids) // count for j in range(count)]
    spread = spread_answers(model, batch, tokens, format.encode_in_text)
    torch.testing.assert_close(spread, table[ids[torch.tensor(places)]])


def test_questions_about_one_clip_share_its_tokens(whisper, qwen, chat_tokenizer):
    model, format = make_model(whisper, qwen, PoolAdapter), ChatFormat(chat_tokenizer)
    clip = (np.ones(4000, np.int16),)
    some = [
        Example("a/b/0", "tag", "a", clip, ("", "Which?"), "x"),
        Example("a/b/0", "tag", "a", clip, ("", "What?"), "y", shares_clips=True),
    ]
    batch = collate(some, format, model.count_slots, ("tag",), share=True)
    tokens = model.adapter(model.encode(batch, None).frames)
    table = model.decoder.lm.get_input_embeddings().weight
    one, other = (table[batch.labels[place]] for place in (0, 2))
    torch.testing.assert_close(
        spread_answers(model, batch, tokens, list), ((one + other) / 2).expand(len(tokens.values), -1)
    )


def test_a_norm_gives_features_of_one_size_around_zero():
    torch.manual_seed(0)
    scales = torch.logspace(-1, 1, 16)
    frames = 5 + torch.randn(500, 16) * scales
    norm, shares = torch.nn.LayerNorm(16), torch.full((500,), 1 / 500)
    standardise(norm, frames, shares)
    features = norm(frames).detach()
    torch.testing.assert_close(features.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0, correction=0)[4:], torch.ones(12), atol=1e-3, rtol=0)


def test_the_slope_is_that_of_a_ridge_regression():
    torch.manual_seed(0)
    features, slope = torch.randn(400, 5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    targets = features @ slope + 7
    estimate = solve_ridge(features, targets, torch.full((400,), 1 / 400, dtype=torch.float64))
    # the penalty is a tenth of a feature's square
    torch.testing.assert_close(estimate, slope / 1.1, atol=0.08, rtol=0)


def test_a_decoder_without_an_adapter_is_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "encoders: {w: {path: openai/whisper-tiny}}\nadapter: {start: ridge}\n"
        "decoder: {kind: whisper, path: openai/whisper-tiny}\n"
        "stages: [{name: s, recipe: uniwhisper, steps: 1, budget: {audio_seconds: 10}}]\n"
    )
    with pytest.raises(UserError, match=r"adapter\.start: ridge is for causal decoders"):
        load_run(str(file))
