import gc
import io
import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile

from uniaudio.data.audio import decode, parse_plain_wave
from uniaudio.data.audio_files import probe_seconds
from uniaudio.data.encoded_audio import FilePart
from uniaudio.errors import RowError

STATM = Path("/proc/self/statm")  # the memory of this process


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
    if subtype == "FLOAT":  # whole numbers would be written as they are, beyond what floats allow
        samples = samples.astype(np.float32) / 32768
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    short = decode(buffer.getvalue(), 1.0, "clip")
    monkeypatch.setattr("uniaudio.data.audio.parse_plain_wave", lambda data: None)
    assert np.array_equal(decode(buffer.getvalue(), 1.0, "clip"), short)
    plain = (format, subtype, channels) == ("WAV", "PCM_16", 1)
    monkeypatch.undo()
    assert (parse_plain_wave(buffer.getvalue()) is not None) == plain
    assert parse_plain_wave(buffer.getvalue()[:-3]) is None  # a cut file is the library's to judge


def test_parts_of_files(tmp_path):
    (tmp_path / "two").write_bytes(b"xx" + clip(1600, 7) + clip(3200, 8))
    size = len(clip(1600, 7))
    part = FilePart(tmp_path / "two", 2, size)
    assert probe_seconds(part) == pytest.approx(0.1)
    assert decode(part, 1.0, "part").tolist() == [7] * 1600
    with pytest.raises(RowError, match="missing file"):
        decode(FilePart(tmp_path / "none", 0, 50), 1.0, "part")
    with pytest.raises(RowError, match="empty audio"):
        decode(FilePart(tmp_path / "two", 2, 0), 1.0, "part")


@pytest.mark.parametrize(
    ("offset", "size"), [(10**6, 50), (2, 10**13), (2, 3244 + 6444 + 1), (-1, 50), (2, -5)]
)
@pytest.mark.parametrize("span", [None, (0.0, 0.1)])
def test_a_part_that_the_file_does_not_have_is_broken_and_nothing_is_read(tmp_path, offset, size, span):
    (tmp_path / "two").write_bytes(b"xx" + clip(1600, 7) + clip(3200, 8))
    part = FilePart(tmp_path / "two", offset, size)
    with pytest.raises(RowError, match=r"broken audio: part \(.*two does not have"):
        decode(part, 1.0, "part", span)
    with pytest.raises(RowError, match="broken audio"):
        probe_seconds(part)


def steps(rate=16000):
    """Ten levels of a tenth of a second each."""
    return np.repeat(np.arange(10, dtype=np.int16) * 100, rate // 10)


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
@pytest.mark.parametrize("kind", ["bytes", "file", "part"])
def test_spans_of_longer_recordings(tmp_path, format, kind, monkeypatch):
    data = encoded(steps(), format=format)
    (tmp_path / "long").write_bytes(b"before" + data + b"behind")
    (tmp_path / "alone").write_bytes(data)
    source = {
        "bytes": data,
        "file": tmp_path / "alone",
        "part": FilePart(tmp_path / "long", 6, len(data)),
    }[kind]
    assert decode(source, 0.1, "clip", (0.3, 0.4)).tolist() == [300] * 1600  # the limit is the span's
    assert decode(source, 1.0, "clip", (0.85, 1.005)).tolist() == [800] * 800 + [900] * 1600
    with pytest.raises(RowError, match=r"clip too long: clip: 0\.2 s, allowed 0\.1 s"):
        decode(source, 0.1, "clip", (0.3, 0.5))
    for span in ((0.9, 1.2), (1.2, 1.3), (-0.1, 0.2), (0.3, 0.3)):
        with pytest.raises(RowError, match=r"span outside of the recording: clip: \S+ to \S+ s of 1\.00 s"):
            decode(source, 5.0, "clip", span)


def test_a_span_at_another_rate_and_with_two_channels():
    wave = np.stack([steps(8000), steps(8000) + 10], 1)
    samples = decode(encoded(wave, 8000, format="FLAC"), 1.0, "clip", (0.3, 0.4))
    assert len(samples) == 1600
    assert samples[400:1200].tolist() == pytest.approx([305] * 800, abs=1)


def test_a_span_of_a_part_reads_little_of_the_rest(tmp_path, monkeypatch):
    data = encoded(np.zeros(16000 * 60, np.int16), format="WAV")
    (tmp_path / "long").write_bytes(data)
    read = []
    plain = FilePart.read
    monkeypatch.setattr(FilePart, "read", lambda *args: read.append(len(plain(*args))) or plain(*args))
    decode(FilePart(tmp_path / "long", 0, len(data)), 1.0, "clip", (30.0, 31.0))
    assert 32000 <= sum(read) < 64000


def header_says(frames=None, rate=None):
    """A clip of a tenth of a second whose FLAC header says something else."""
    data = bytearray(encoded(np.arange(1600, dtype=np.int16), format="FLAC"))
    info = int.from_bytes(data[18:26], "big")
    if frames is not None:
        info = info >> 36 << 36 | frames
    if rate is not None:
        info = info & (1 << 44) - 1 | rate << 44
    data[18:26] = info.to_bytes(8, "big")
    return bytes(data)


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux")
@pytest.mark.parametrize("max_seconds", [30.0, 1e9])
def test_a_header_that_overstates_the_frames_costs_no_memory(max_seconds):
    """Of 2**36 frames, 128 GiB would be wanted."""
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used_memory() + (1 << 30), limit[1]))
    try:
        with pytest.raises(
            RowError,
            match=r"truncated audio: clip: 68719476735 samples are stated, the last FLAC frame ends at 1600",
        ):
            decode(header_says(frames=2**36 - 1), max_seconds, "clip")
        with pytest.raises(
            RowError, match=r"truncated audio: clip: 16000 samples are stated, the last FLAC frame"
        ):
            decode(header_says(frames=16000), max_seconds, "clip")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def used_memory():
    return int(STATM.read_text().split()[0]) * resource.getpagesize()


def test_a_rate_that_cannot_be_is_damage():
    data = bytearray(clip(1600, 7))
    data[24:28] = (2**31 - 1).to_bytes(4, "little")
    with pytest.raises(RowError, match=r"broken audio: clip .the header states 1600 frames at 2147483647 Hz"):
        decode(bytes(data), 30.0, "clip")


@pytest.mark.parametrize("rate", [16000, 22050])
def test_files_are_closed(tmp_path, rate, recwarn):
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, sine(0.1, 440, rate), rate)
        decode(tmp_path / name, 30.0, "clip")
        probe_seconds(tmp_path / name)
    (tmp_path / "a.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:500])
    with pytest.raises(RowError, match=r"(truncated|broken) audio"):
        decode(tmp_path / "a.flac", 30.0, "clip")
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def clip(count, value):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(count, value, np.int16), 16000, format="WAV")
    return buffer.getvalue()
