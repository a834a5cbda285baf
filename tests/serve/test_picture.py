"""The picture of a clip."""

import io

import numpy as np
from matplotlib import image
from transformers import WhisperFeatureExtractor

from uniaudio.serve.picture import mel_frames, mel_picture


def tone(seconds, hertz):
    return (9000 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 16000)) / 16000)).astype(np.int16)


def test_values_are_those_of_the_stock_extractor():
    samples = tone(1.0, 700)
    stock = WhisperFeatureExtractor()(samples / 32768.0, sampling_rate=16000)["input_features"][0]
    np.testing.assert_allclose(mel_frames(samples), stock[:, :100].T, atol=1e-4)


def test_low_tones_are_at_the_bottom():
    for hertz, lower in ((200, True), (6000, False)):
        picture = image.imread(io.BytesIO(mel_picture(tone(0.5, hertz))), format="png")
        assert picture.shape[:2] == (80, 50)
        brightest = picture[:, 25, :3].sum(1).argmax()  # rows count from the top
        assert (brightest > 60) == lower


def test_long_and_silent_clips():
    long = image.imread(io.BytesIO(mel_picture(tone(40, 440))), format="png")
    assert long.shape[:2] == (80, 1334)  # 4000 frames, three a column
    silent = image.imread(io.BytesIO(mel_picture(np.zeros(1600, np.int16))), format="png")
    assert silent.shape[:2] == (80, 10)
