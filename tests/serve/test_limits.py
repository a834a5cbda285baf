"""What is refused before it is decoded, and the clock of the model."""

import io
import time

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from uniaudio.data.audio import decode
from uniaudio.errors import UserError
from uniaudio.serve.limits import Limits, decode_upload, limit_time

LIMITS = Limits(max_seconds=2, max_mib=0.25)


def sound(seconds=1.0, rate=16000, channels=1, kind="WAV"):
    """The bytes of a file with a tone in it."""
    wave = 0.3 * np.sin(np.arange(round(seconds * rate)) * 0.1)
    file = io.BytesIO()
    soundfile.write(file, np.repeat(wave[:, None], channels, 1), rate, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_good_clip_is_decoded_as_in_training(kind):
    data = sound(0.5, 44100, 2, kind)
    samples = decode_upload(data, LIMITS)
    assert samples.dtype == np.int16
    np.testing.assert_array_equal(samples, decode(data, 10, "clip"))


def test_what_cannot_be_used_gets_one_sentence():
    flac = sound(1.0, kind="FLAC")
    cases = [
        (sound(2.5), "the clip is 2.5 s long, more than 2 s"),
        (bytes(int(0.25 * 2**20) + 1), "the file is larger than 0.25 MiB"),
        (b"<html>not a sound</html>" * 20, "the file cannot be read as audio"),
        (b"", "the clip is empty"),
        (sound(0), "the clip is empty"),
        (flac[: len(flac) // 50], "the file is truncated"),
        (sound(0.01, 192000, 8), "the clip has 8 channel(s) at 192000 Hz"),
    ]
    for data, message in cases:
        with pytest.raises(UserError) as problem:
            decode_upload(data, LIMITS)
        assert message in str(problem.value)
        assert "\n" not in str(problem.value)


def test_an_hour_of_silence_in_a_small_file_is_never_decoded(monkeypatch):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(3600 * 8000, np.int16), 8000, format="FLAC")
    assert len(file.getvalue()) < 2**20

    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("uniaudio.serve.limits.decode", never)
    with pytest.raises(UserError, match=r"the clip is 3600\.0 s long"):
        decode_upload(file.getvalue(), Limits(max_seconds=60, max_mib=1))


class Slow(nn.Module):
    """Counts its calls, each of which takes a hundredth of a second."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        time.sleep(0.01)
        return x


def test_an_overdue_model_ends_within_one_layer_and_works_again():
    layer = Slow()
    model = nn.Sequential(*[layer] * 100)
    with pytest.raises(UserError, match="the model took too long"), limit_time(0.05, model):
        model(torch.zeros(1))
    assert 1 <= layer.calls <= 10
    with limit_time(60, model):
        assert model(torch.zeros(1)) == 0
    assert not layer._forward_pre_hooks
