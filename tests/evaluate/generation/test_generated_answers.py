import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from uniaudio.data.collate import collate_prompts
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.evaluate.embedding import embed_clips, encode_clips
from uniaudio.evaluate.generation.generated_answers import answer_all, generate
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.types import Example


@pytest.fixture
def model(whisper, qwen):
    encoder = WhisperAudioEncoder(whisper)
    torch.manual_seed(3)
    return AudioLM(encoder, StackAdapter(64, 50.0, 64), TextDecoder(qwen))


def prompts(model, format, lengths):
    rng = np.random.default_rng(0)
    examples = [
        Example(
            f"{n}",
            "t",
            "d",
            (rng.integers(-9000, 9000, n, dtype=np.int16),),
            ("", "Which?" * (n % 3 + 1)),
            "-",
        )
        for n in lengths
    ]
    return collate_prompts(examples, format, model.count_slots, ("t",))


def test_answers_in_a_batch_equal_answers_alone_and_a_plain_loop(model, chat_tokenizer):
    format = ChatFormat(chat_tokenizer)
    lengths = [3000, 20_000, 999]
    batch = prompts(model, format, lengths)
    together = generate(model, batch, format, 12)
    with torch.no_grad():
        rows = model.eval().embed_batch(batch)[0].rows()
    for row, text in zip(rows, together, strict=True):
        ids: list[int] = []
        while len(ids) < 12 and format.end_of_turn not in ids:
            embeds = torch.cat([row, model.decoder.embed(torch.tensor(ids, dtype=torch.long))])
            ids.append(int(model.decoder.lm(inputs_embeds=embeds[None]).logits[0, -1].argmax()))
        assert text[:2] == (format.answer_text(ids), format.end_of_turn not in ids)


def test_answers_do_not_follow_the_generation_settings_of_the_decoders_folder(whisper, qwen, chat_tokenizer):
    """Qwen2.5's has a penalty of repetitions, which the stock class applies to the tokens behind the padding."""
    format = ChatFormat(chat_tokenizer)
    answers = []
    for settings in ({}, {"repetition_penalty": 50.0}, {"num_beams": 3}, {"suppress_tokens": [*range(300)]}):
        qwen.generation_config = GenerationConfig(**settings)
        torch.manual_seed(3)
        adapter = StackAdapter(64, 50.0, 64)
        model = AudioLM(WhisperAudioEncoder(whisper), adapter, TextDecoder(qwen)).eval()
        answers.append(generate(model, prompts(model, format, [3000, 20_000]), format, 12))
    qwen.config.repetition_penalty = 50.0  # as files of early releases of transformers have it
    model = AudioLM(WhisperAudioEncoder(whisper), adapter, TextDecoder(qwen)).eval()
    answers.append(generate(model, prompts(model, format, [3000, 20_000]), format, 12))
    assert answers[1:] == answers[:1] * 4


def test_the_penalty_of_repetitions_equals_a_plain_loop(model, chat_tokenizer):
    """Of tokens that the answer already holds, and of no others: the prompt is not looked at."""
    format = ChatFormat(chat_tokenizer)
    batch = prompts(model, format, [3000, 20_000])
    limits = (12, format.end_of_turn, format.pad)
    together = model.eval().generate_ids(batch, *limits, repetition_penalty=50.0)
    assert together != model.generate_ids(batch, *limits)
    with torch.no_grad():
        rows = model.embed_batch(batch)[0].rows()
    for row, penalized in zip(rows, together, strict=True):
        ids: list[int] = []
        while len(ids) < 12 and format.end_of_turn not in ids:
            embeds = torch.cat([row, model.decoder.embed(torch.tensor(ids, dtype=torch.long))])
            logits = model.decoder.lm(inputs_embeds=embeds[None]).logits[0, -1].tolist()
            for seen in set(ids):
                logits[seen] = logits[seen] / 50 if logits[seen] > 0 else logits[seen] * 50
            ids.append(max(range(len(logits)), key=logits.__getitem__))
        assert penalized[: len(ids)] == ids


def test_every_row_stops_at_its_end_of_turn(model, chat_tokenizer):
    format = ChatFormat(chat_tokenizer)
    first = model.eval().generate_ids(prompts(model, format, [3000, 9000]), 1, format.end_of_turn, format.pad)
    format.end_of_turn = first[0][0]  # what the first row says first
    assert generate(model, prompts(model, format, [3000, 9000]), format, 6)[0][:2] == ("", False)


def test_an_answer_that_runs_out_of_positions_says_how_long_it_is(model, chat_tokenizer):
    format = ChatFormat(chat_tokenizer)
    batch = prompts(model.eval(), format, [3000])
    (ids,) = model.generate_ids(batch, 12, format.end_of_turn, format.pad)
    format.end_of_turn = next(id for id in range(len(chat_tokenizer)) if id not in ids)
    clip, question = batch.audio.values.numpy()[:3000], ("", "Which?")
    (whole,) = answer_all(model, format, [clip], [question], 12)
    assert whole.endswith(" … (cut after 12 tokens)")
    model.decoder.positions = int(model.embed_batch(batch)[0].lengths) + 5
    (short,) = answer_all(model, format, [clip], [question], 12)
    assert short.endswith(" … (cut after 5 tokens)")


def test_embeddings_are_means_over_real_frames_in_order(whisper):
    encoder = WhisperAudioEncoder(whisper)
    rng = np.random.default_rng(0)
    clips = [rng.integers(-9000, 9000, n, dtype=np.int16) for n in (9000, 500, 40_000)]
    vectors = embed_clips(encoder, clips, batch_seconds=1.0)
    frames = encode_clips(encoder, clips)
    assert [len(f) for f in frames] == [encoder.num_frames(len(c)) for c in clips]
    for vector, alone in zip(vectors, frames, strict=True):
        np.testing.assert_allclose(vector, alone.mean(0), atol=1e-5)
