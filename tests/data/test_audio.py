import io

import numpy as np
import pytest
import soundfile

from uniaudio.data.audio import FilePart, decode, plain_wave, probe_seconds
from uniaudio.errors import RowError


def encoded(wave, rate=16000, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, **options)
    return buffer.getvalue()


def sine(seconds, hertz, rate):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"format": "WAV"},
        {"format": "FLAC"},
        {"format": "MP3"},
        {"format": "OGG", "subtype": "VORBIS"},
        {"format": "OGG", "subtype": "OPUS"},
    ],
)
def test_formats(options, tmp_path):
    data = encoded(sine(1.0, 440, 16000), **options)
    samples = decode(data, 10, "clip")
    assert samples.dtype == np.int16
    assert abs(len(samples) - 16000) < 2500  # lossy codecs pad
    spectrum = np.abs(np.fft.rfft(samples[2000:10000].astype(float)))
    assert abs(spectrum.argmax() * 16000 / 8000 - 440) < 4
    file = tmp_path / "clip"
    file.write_bytes(data)
    assert np.array_equal(decode(file, 10, "clip"), samples)


def test_wav_at_16_khz_is_exact():
    wave = np.arange(-1000, 1000, dtype=np.int16)
    assert np.array_equal(decode(encoded(wave, format="WAV"), 10, "clip"), wave)


def test_stereo_is_averaged_and_44_khz_resampled():
    left, right = sine(2.0, 300, 44100), sine(2.0, 900, 44100)
    samples = decode(encoded(np.stack([left, right], 1), 44100, format="FLAC"), 10, "clip").astype(float)
    assert len(samples) == 32000
    spectrum = np.abs(np.fft.rfft(samples)) / len(samples) * 2 / 32768
    assert spectrum[600] == pytest.approx(0.25, abs=0.01)  # half of 0.5 for each channel, bins of 0.5 Hz
    assert spectrum[1800] == pytest.approx(0.25, abs=0.01)
    assert probe_seconds(encoded(left, 44100, format="FLAC")) == pytest.approx(2.0)


def nan_clip():
    wave = sine(0.1, 440, 16000)
    wave[5] = np.nan
    return encoded(wave, format="WAV", subtype="FLOAT")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty audio"),
        (b"this is no audio at all", "broken audio"),
        (encoded(np.zeros(0, np.float32), format="WAV"), "empty audio"),
        (encoded(np.zeros(600 * 16000, np.int16), format="FLAC"), "clip too long"),
        (nan_clip(), "non-finite samples"),
    ],
)
def test_bad_clips_say_why(data, reason):
    with pytest.raises(RowError) as problem:
        decode(data, 30, "clip")
    assert problem.value.reason == reason


def test_files_that_are_missing_or_empty(tmp_path):
    with pytest.raises(RowError, match=r"missing file: .*nothing\.wav"):
        decode(tmp_path / "nothing.wav", 30, "clip")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(RowError, match="empty audio"):
        probe_seconds(tmp_path / "empty.wav")


@pytest.mark.parametrize("format", ["WAV", "WAVEX", "AIFF"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_the_short_way_for_plain_waves_gives_what_the_library_gives(
    format, subtype, channels, rate, monkeypatch
):
    samples = np.random.default_rng(0).integers(-30000, 30000, (800, channels), dtype=np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    short = decode(buffer.getvalue(), 1.0, "clip")
    monkeypatch.setattr("uniaudio.data.audio.plain_wave", lambda data: None)
    assert np.array_equal(decode(buffer.getvalue(), 1.0, "clip"), short)
    plain = (format, subtype, channels) == ("WAV", "PCM_16", 1)
    monkeypatch.undo()
    assert (plain_wave(buffer.getvalue()) is not None) == plain
    assert plain_wave(buffer.getvalue()[:-3]) is None  # a cut file is the library's to judge


def test_parts_of_files(tmp_path):
    (tmp_path / "two").write_bytes(b"xx" + clip(1600, 7) + clip(3200, 8))
    size = len(clip(1600, 7))
    part = FilePart(tmp_path / "two", 2, size)
    assert probe_seconds(part) == pytest.approx(0.1)
    assert decode(part, 1.0, "part").tolist() == [7] * 1600
    with pytest.raises(RowError, match=r"broken audio|empty audio"):
        decode(FilePart(tmp_path / "two", 10**6, 50), 1.0, "part")
    with pytest.raises(RowError, match="missing file"):
        decode(FilePart(tmp_path / "none", 0, 50), 1.0, "part")


def clip(count, value):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(count, value, np.int16), 16000, format="WAV")
    return buffer.getvalue()
