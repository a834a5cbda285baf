"""The spectrogram of a clip."""

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from uniaudio.serve.spectrogram import compute_log_mel, draw_spectrogram


def tone(seconds, hertz):
    return (9000 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 16000)) / 16000)).astype(np.int16)


def drawn(samples):
    """The image of a figure and where its ticks are, in kHz."""
    axes = draw_spectrogram(samples).axes[0]
    ticks = {
        float(text.get_text()): place
        for text, place in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    }
    return axes.images[0], ticks


def test_values_are_those_of_the_stock_extractor():
    samples = tone(1.0, 700)
    stock = WhisperFeatureExtractor()(samples / 32768.0, sampling_rate=16000)["input_features"][0]
    np.testing.assert_allclose(compute_log_mel(samples), stock[:, :100].T, atol=1e-4)


@pytest.mark.parametrize("kilohertz", [0.5, 1, 2, 4])
def test_a_tone_is_at_its_frequency(kilohertz):
    image, ticks = drawn(tone(0.5, 1000 * kilohertz))
    assert image.get_array().shape == (80, 50)
    assert image.get_extent() == [0, 0.5, 0, 80]
    assert image.get_array()[:, 25].argmax() + 0.5 == pytest.approx(ticks[kilohertz], abs=1)


def test_long_and_silent_clips():
    assert drawn(tone(40, 440))[0].get_array().shape == (80, 1334)  # 4000 frames, three a column
    assert drawn(np.zeros(1600, np.int16))[0].get_array().shape == (80, 10)
