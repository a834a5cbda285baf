"""Answers and label scores against the plain way."""

import copy
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from uniaudio.data.collate import collate_prompts
from uniaudio.data.jinja import Wording
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import RowError, UserError
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.serve.answering import answer_upload, cut_question, score_labels
from uniaudio.serve.limits import Limits
from uniaudio.serve.tasks import TrainedTask
from uniaudio.types import Example

LABELS = ("low", "high", "neither of them")
TASK = TrainedTask("tone", "sound", ("<audio>Which tone is it?",), LABELS)


@pytest.fixture
def loaded(whisper, qwen, chat_tokenizer):
    torch.manual_seed(3)
    model = AudioLM(WhisperAudioEncoder(whisper), StackAdapter(64, 12.5, 64), TextDecoder(qwen)).eval()
    return SimpleNamespace(model=model, format=ChatFormat(chat_tokenizer))


def clip(seconds=0.5):
    return np.random.default_rng(0).integers(-9000, 9000, int(seconds * 16000), dtype=np.int16)


def wav(samples):
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="PCM_16")
    return file.getvalue()


@torch.no_grad()
def plain_likelihood(loaded, samples, pieces, label):
    """Sum of log-probabilities of the answer, token by token through the stock model."""
    example = Example("x", "ask", "ask", (samples,), pieces, "-")
    batch = collate_prompts([example], loaded.format, loaded.model.count_slots, ("ask",))
    row = loaded.model.embed_batch(batch)[0].values
    total, said = 0.0, []
    for token in loaded.format.answer(label):
        embeds = torch.cat([row, loaded.model.decoder.embed(torch.tensor(said, dtype=torch.long))])
        logits = loaded.model.decoder.lm(inputs_embeds=embeds[None]).logits[0, -1]
        total += float(logits.log_softmax(0)[token])
        said.append(token)
    return total


def test_label_scores_are_the_likelihoods_of_whole_answers(loaded):
    pieces = ("", "Which tone is it?")
    scores = score_labels(loaded, clip(), pieces, TASK)
    likelihoods = [plain_likelihood(loaded, clip(), pieces, label) for label in LABELS]
    expected = torch.tensor(likelihoods, dtype=torch.float64).softmax(0)
    np.testing.assert_allclose([scores[label] for label in LABELS], expected, atol=1e-5)
    lengths = [len(loaded.format.answer(label)) for label in LABELS]
    assert len(set(lengths)) > 1
    shared = torch.tensor([value / length for value, length in zip(likelihoods, lengths, strict=True)])
    scores = score_labels(loaded, clip(), pieces, replace(TASK, likelihood="mean"))
    np.testing.assert_allclose(list(scores.values()), shared.double().softmax(0), atol=1e-5)


def test_a_reply_holds_all_that_is_shown(loaded):
    reply = answer_upload(loaded, wav(clip()), "Which tone is it?", TASK, Limits(max_new_tokens=4))
    assert isinstance(reply.answer, str)
    assert set(reply.labels) == set(LABELS)
    assert sum(reply.labels.values()) == pytest.approx(1)
    assert reply.spectrogram.axes[0].get_xlim() == (0, 0.5)
    question = "<audio>Which tone is it?"
    assert answer_upload(loaded, wav(clip()), question, None, Limits(max_new_tokens=4)).labels == {}


def test_a_trained_question_keeps_the_special_tokens_of_its_template(loaded):
    """As Whisper's own decoder is asked; the same text of the user's own has none."""
    tokens = ("<|en|>", "<|transcribe|>")
    wordings = (Wording("<|en|> <audio><|transcribe|>", tokens), "<audio>Which tone?")
    task = replace(TASK, wordings=wordings)
    first, second = cut_question("<|en|> <audio><|transcribe|>", task)
    assert ((first, first.tokens), (second, second.tokens)) == (
        ("<|en|> ", tokens[:1]),
        ("<|transcribe|>", tokens[1:]),
    )
    for question, known in ((wordings[0] + "?", task), (wordings[0], None), (wordings[1], task)):
        assert not any(isinstance(piece, Wording) for piece in cut_question(str(question), known))
    tokenizer = copy.deepcopy(loaded.format.tokenizer)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|startoftranscript|>", *tokens]})
    format = ChatFormat(tokenizer, "<|startoftranscript|>")
    ids = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", *tokens])
    before, after = format.encode_prompt((first, second))
    assert [*before, *after] == [*ids[:2], *format.encode(" "), ids[2]]
    with pytest.raises(RowError, match="special token in text"):
        format.encode_prompt(cut_question(str(wordings[0]), None))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (" ", "the question is empty"),
        ("<audio><audio>Same?", "the question contains 2 <audio> marks"),
        ("x" * 2001, "longer than 2000 characters"),
        ("say <|im_end|>", "the question cannot be used: special token in text"),
    ],
)
def test_questions_that_are_refused(loaded, question, message):
    with pytest.raises(UserError) as problem:
        answer_upload(loaded, wav(clip()), question, None, Limits())
    assert message in str(problem.value)


def test_a_model_that_takes_too_long_is_ended(loaded):
    with pytest.raises(UserError, match="the model took too long"):
        answer_upload(loaded, wav(clip()), "Which?", TASK, Limits(timeout=0.0))
