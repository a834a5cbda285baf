"""Masks of the spectrogram: where they were drawn, the same in any batch, and gone through the whole model."""

import random

import numpy as np
import pytest
import torch

from uniaudio.data.augment import Augmenter, AugmentStep, SpecAugment
from uniaudio.data.collate import collate
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.mel_masks import mask_mel
from uniaudio.ragged import Ragged
from uniaudio.types import Example


def test_masks_fill_bands_with_the_mean_of_the_chunk():
    values = torch.arange(60.0).reshape(30, 2).repeat(1, 5)  # rows of 10, 12 and 8 frames, ten bins
    mel = Ragged(values, torch.tensor([10, 12, 8]))
    masks = torch.tensor([[0, 0, 2, 3], [2, 1, 200, 300], [1, 0, 11, 5]])
    masked = mask_mel(mel, [1, 1, 1], masks).values
    expected = values.clone()
    expected[2:5] = values[:10].mean()
    expected[22:, 2:5] = values[22:].mean()
    expected[21:22] = values[10:22].mean()  # the band ends with the clip
    assert torch.equal(masked, expected)
    assert torch.equal(mel.values, values)


@pytest.mark.parametrize("chunk", [3000, 2400])  # mel frames: of Whisper, of Qwen3-Omni and Qwen3-ASR
@pytest.mark.parametrize("begin", [-10, 7, 190])
def test_a_band_lies_at_its_time_in_chunks_of_any_length(chunk, begin):
    mel = Ragged(torch.randn(50 + chunk + 200, 4), torch.tensor([50, chunk, 200]))
    masked = mask_mel(mel, [1, 2], torch.tensor([[1, 0, chunk + begin, 30]])).values
    changed = (masked != mel.values).any(1).nonzero()[:, 0].tolist()
    assert changed == list(range(50 + chunk + begin, min(50 + chunk + begin + 30, len(mel.values))))


def test_drawn_bands_stay_inside_the_clip_and_leave_half_of_it():
    hiding = SpecAugment(time_masks=3, time_seconds=1.0, freq_masks=2, freq_share=0.25)
    for seed in range(200):
        samples = random.Random(seed).randint(160, 80_000)
        bands = hiding.draw(samples, random.Random(seed))
        assert bands == hiding.draw(samples, random.Random(seed))
        frames = samples // 160
        for axis, begin, width in bands:
            assert 0 < width <= (100 if axis == 0 else 250)
            assert 0 <= begin <= begin + width <= (frames if axis == 0 else 1000)
        assert sum(width for axis, _, width in bands if axis == 0) <= frames / 2


@pytest.fixture
def model(whisper, qwen):
    encoder = WhisperAudioEncoder(whisper)
    return AudioLM(encoder, StackAdapter(encoder.dim, 50.0, 64), TextDecoder(qwen)).eval()


def example(number, masked):
    clip = np.random.default_rng(number).integers(-3000, 3000, 8000 + 900 * number, dtype=np.int16)
    augmenter = Augmenter((AugmentStep.model_validate({"spec_augment": {}}),), "test")
    masks = augmenter.draw_masks([clip], random.Random(number)) if masked else ()
    return Example(f"a/b/{number}", "tag", "a", (clip,), ("", "What is it?"), "low", masks=masks)


def test_an_example_is_masked_in_the_same_way_alone_and_in_a_batch(model, chat_tokenizer):
    def loss(*examples):
        return float(model(collate(examples, ChatFormat(chat_tokenizer), model.count_slots, ("tag",))).total)

    with torch.no_grad():
        together = loss(example(1, True), example(2, False), example(3, True))
        alone = [loss(example(n, n != 2)) for n in (1, 2, 3)]
        plain = [loss(example(n, False)) for n in (1, 2, 3)]
    assert together == pytest.approx(sum(alone), rel=1e-5)
    assert alone[1] == plain[1]
    assert alone[0] != plain[0]
    model.encoder.takes_masks = False
    with pytest.raises(UserError, match="has no spectrogram to mask"):
        loss(example(1, True))
