"""The packed log-mel against the stock feature extractor."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from uniaudio.model.mel import LogMel, count_encoder_frames
from uniaudio.ragged import Ragged

LENGTHS = [1, 399, 1600, 12345, 16000, 16001, 159_840, 479_800, 479_999, 480_000]


def clip(samples: int) -> np.ndarray:
    return (
        (np.random.default_rng(samples).standard_normal(samples) * 3000).clip(-32768, 32767).astype(np.int16)
    )


@pytest.mark.parametrize("bins", [80, 128])
def test_equals_the_stock_extractor(bins):
    extractor = WhisperFeatureExtractor(feature_size=bins)
    mel = LogMel(bins)(Ragged.from_rows([torch.from_numpy(clip(n)) for n in LENGTHS]))
    for samples, frames in zip(LENGTHS, mel.rows(), strict=True):
        wave = clip(samples).astype(np.float32) / 32768
        stock = extractor(wave, sampling_rate=16000, return_tensors="pt").input_features[0].T
        assert len(frames) == 2 * count_encoder_frames(samples)
        torch.testing.assert_close(frames, stock[: len(frames)], atol=1e-6, rtol=0)


def test_float_samples_give_the_same():
    wave = clip(5000)
    one = LogMel(80)(Ragged.from_rows([torch.from_numpy(wave)])).values
    other = LogMel(80)(Ragged.from_rows([torch.from_numpy(wave.astype(np.float32) / 32768)])).values
    assert torch.equal(one, other)


def test_a_clip_beyond_the_reach_is_refused():
    with pytest.raises(ValueError, match="30 s"):
        LogMel(80)(Ragged.from_rows([torch.zeros(480_001, dtype=torch.int16)]))
