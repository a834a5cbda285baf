"""Clips that a library would read in part, or only from some places: told or read whole, from everywhere alike."""

import gzip
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from uniaudio.data.audio import ANTI_PHASE, CLIPPED, SILENT, decode, parse_plain_wave
from uniaudio.data.audio_files import probe_seconds
from uniaudio.data.containers import flac, mpeg
from uniaudio.data.encoded_audio import FilePart, encode_samples
from uniaudio.data.sources.audio_columns import parse_audio
from uniaudio.errors import RowError

RATE = 16000


def noisy_tone(seconds=2.0, rate=RATE, channels=1, seed=0):
    """A tone with noise, quiet in its first half, so that encoders use frames of several sizes."""
    count = round(seconds * rate)
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(count) / rate)
    wave += 0.05 * np.random.default_rng(seed).standard_normal(count)
    wave[: count // 2] *= 0.02
    return np.stack([wave * (1 - 0.3 * channel) for channel in range(channels)], 1).astype(np.float32)


def encoded(wave, rate=RATE, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, **options)
    return buffer.getvalue()


WAV = encoded(noisy_tone(), format="WAV")
FLAC = encoded(noisy_tone(), format="FLAC")
MP3 = encoded(noisy_tone(), format="MP3", bitrate_mode="VARIABLE")
CBR = encoded(noisy_tone(), format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
OGG = encoded(noisy_tone(), format="OGG", subtype="VORBIS")
OPUS = encoded(noisy_tone(), format="OGG", subtype="OPUS")


def ways(data, folder, suffix=".bin"):
    """The same file by path, as bytes, as a view of bytes and as a part of an archive."""
    (folder / f"clip{suffix}").write_bytes(data)
    (folder / "archive").write_bytes(b"before" + data + b"behind" * 999)
    return {
        "path": folder / f"clip{suffix}",
        "bytes": data,
        "view": memoryview(data),
        "part": FilePart(folder / "archive", 6, len(data)),
    }


def result(source, span=None, suffix=""):
    """The samples, or the reason why there are none."""
    try:
        return decode(source, 60.0, "clip", span, suffix=suffix).tolist()
    except RowError as problem:
        return str(problem)


def the_one_result(data, folder, span=None, suffix=".bin"):
    """What all ways of reading a file give: they must give the same."""
    results = [result(source, span, suffix) for source in ways(data, folder, suffix).values()]
    assert all(other == results[0] for other in results[1:])
    return results[0]


KINDS = [
    (format, subtype)
    for format in sorted(set(soundfile.available_formats()) - {"SD2", "RAW"})  # SD2 has a second file
    for subtype in soundfile.available_subtypes(format)
]


@pytest.mark.parametrize(("format", "subtype"), KINDS)
def test_every_kind_reads_the_same_from_everywhere(format, subtype, tmp_path):
    rate = 8000 if subtype.startswith(("NMS", "G72", "GSM")) or format == "WVE" else RATE
    try:
        data = encoded(noisy_tone(1.0, rate), rate, format=format, subtype=subtype)
    except soundfile.LibsndfileError:
        pytest.skip("cannot be written here")
    whole = the_one_result(data, tmp_path)
    assert not isinstance(whole, str), whole
    assert probe_seconds(data, "clip") == pytest.approx(len(whole) / RATE, abs=1e-3)
    assert probe_seconds(tmp_path / "clip.bin") == probe_seconds(data)
    if format == "XI" or (format, subtype) == ("VOC", "PCM_U8"):
        return  # they cannot state this rate
    part = the_one_result(data, tmp_path, (0.25, 0.75))
    assert len(part) == pytest.approx(RATE / 2, abs=1)
    inner = np.array(whole[RATE // 4 + 400 : RATE // 4 + 7000])
    if rate == RATE:
        np.testing.assert_array_equal(part[400:7000], inner)


@pytest.mark.parametrize(("format", "subtype"), KINDS)
def test_every_kind_that_is_cut_is_refused(format, subtype, tmp_path):
    if format in ("IRCAM", "PAF", "PVF", "XI"):
        pytest.skip("their headers state no length")
    rate = 8000 if subtype.startswith(("NMS", "G72", "GSM")) or format == "WVE" else RATE
    try:
        data = encoded(noisy_tone(2.0, rate), rate, format=format, subtype=subtype)
    except soundfile.LibsndfileError:
        pytest.skip("cannot be written here")
    message = the_one_result(data[: len(data) * 9 // 20], tmp_path)
    assert isinstance(message, str), len(message)
    unopened = format in ("CAF", "HTK") or (format, subtype) == ("VOC", "PCM_U8")
    assert message.startswith("broken audio" if unopened else "truncated audio")
    with pytest.raises(RowError):
        probe_seconds(data[: len(data) * 9 // 20])


@pytest.mark.parametrize(
    ("suffix", "subtype", "same"),
    [(".gsm", "GSM610", True), (".ul", "ULAW", True), (".AL", "ALAW", True), (".vox", "VOX_ADPCM", True)],
)
def test_files_without_a_header_are_known_by_their_suffix_everywhere(suffix, subtype, same, tmp_path):
    data = encoded(noisy_tone(1.0, 8000), 8000, format="RAW", subtype=subtype)
    assert len(the_one_result(data, tmp_path, suffix=suffix)) == pytest.approx(RATE, abs=700)
    assert the_one_result(data, tmp_path, suffix=".raw").startswith(
        "broken audio: clip (Format not recognised"
    )
    ref = parse_audio({"bytes": data, "path": f"a/b{suffix}"}, {}, tmp_path, "clip")
    assert ref.decode(9.0).tolist() == result(data, suffix=suffix)
    assert ref.read_seconds() == pytest.approx(len(ref.decode(9.0)) / RATE)
    assert the_one_result(WAV, tmp_path, suffix=suffix) == result(WAV)  # the content decides


def wave_file(samples=WAV[44:], data_size=None, riff_size=None, before=b"", behind=b"", mark=b"RIFF"):
    order = ">" if mark == b"RIFX" else "<"
    facts = struct.pack(f"{order}HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    size = len(samples) if data_size is None else data_size
    chunks = struct.pack(f"{order}4sI", b"fmt ", 16) + facts + before
    chunks += struct.pack(f"{order}4sI", b"data", size) + samples + behind
    size = len(chunks) + 4 if riff_size is None else riff_size
    return struct.pack(f"{order}4sI4s", mark, size, b"WAVE") + chunks


CHUNK = b"LIST" + (9).to_bytes(4, "little") + b"INFOIENG\0\0"


@pytest.mark.parametrize(
    "data",
    [
        wave_file(),
        wave_file(data_size=0, riff_size=0),
        wave_file(data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF),
        wave_file(data_size=0xFFFFFFDB, riff_size=0xFFFFFFFF),
        wave_file(data_size=0x7FFFF000, riff_size=0x7FFFF024),
        wave_file(data_size=0x80000000, riff_size=0x80000024),
        wave_file(data_size=64044),  # the header counted as samples
        wave_file(before=CHUNK, behind=CHUNK),
        wave_file(behind=b"LIST" + (50000).to_bytes(4, "little") + bytes(range(250)) * 200),
        wave_file(behind=bytes(30000)),
        wave_file(behind=b"ID3\x04\0\0\0\0\x7f\x7f" + b"\x01" * 20000),
        wave_file(riff_size=36),
        wave_file(mark=b"RIFX", samples=np.frombuffer(WAV[44:], "<i2").astype(">i2").tobytes()),
    ],
)
def test_wave_files_with_odd_headers_are_read_to_their_end(data, tmp_path):
    assert the_one_result(data, tmp_path) == np.frombuffer(WAV[44:], "<i2").tolist()
    assert probe_seconds(data) == pytest.approx(2.0)


def test_wave_files_that_lie_are_refused(tmp_path):
    for data, reason in [
        (wave_file(samples=WAV[44:32000]), None),
        (WAV[:32000], "truncated audio: clip: 64000 bytes of samples are stated, 31956 are present"),
        (
            wave_file(data_size=20000),
            "truncated audio: clip: 20000 bytes of samples are stated, 44000 more follow",
        ),
        (wave_file(samples=b"", data_size=0, behind=CHUNK), "empty audio"),
    ]:
        if reason is None:
            assert not isinstance(the_one_result(data, tmp_path), str)
            continue
        assert the_one_result(data, tmp_path).startswith(reason)
        with pytest.raises(RowError, match=reason[:15]):
            probe_seconds(data)


@pytest.mark.parametrize("length", range(12, 64))
def test_a_wave_file_cut_or_damaged_in_its_header_is_a_row_error(length, tmp_path):
    """A short ``fmt `` chunk at the end of a file ended runs."""
    short = (
        struct.pack("<4sI4s4sI", b"RIFF", 40, b"WAVE", b"junk", 16) + bytes(16) + b"fmt \x04\0\0\0\1\0\1\0"
    )
    assert parse_plain_wave(short) is None
    for data in (WAV[:length], short[:length], WAV[:16] + bytes([length - 12]) + WAV[17:]):
        outcome = the_one_result(data, tmp_path)
        assert not isinstance(outcome, str) or outcome.split(":")[0] in (
            *("broken audio", "empty audio", "truncated audio"),
        )


def with_flac_total(total, data=FLAC):
    return flac.state_total(data, total)


@pytest.mark.parametrize("total", [0, 1, 16000, 31999])
def test_flac_that_states_less_than_it_holds_is_read_whole(total, tmp_path):
    assert the_one_result(with_flac_total(total), tmp_path) == result(FLAC)
    assert the_one_result(with_flac_total(total), tmp_path, (1.5, 1.75)) == result(FLAC, (1.5, 1.75))
    assert probe_seconds(with_flac_total(total)) == 2.0


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_flac_of_any_layout_without_a_length_is_read_whole(channels, rate, subtype, tmp_path):
    data = encoded(noisy_tone(1.3, rate, channels), rate, format="FLAC", subtype=subtype)
    tagged = with_flac_total(0, data) + b"TAG" + bytes(125)
    assert result(with_flac_total(0, data)) == result(data) == result(tagged)
    assert probe_seconds(data) == probe_seconds(with_flac_total(0, data)) == pytest.approx(1.3)


@pytest.mark.parametrize("length", [5000, 20000, 40000, len(FLAC) - 1])
@pytest.mark.parametrize("total", [None, 0, 40000])
def test_flac_that_is_cut_is_refused(length, total, tmp_path):
    data = (FLAC if total is None else with_flac_total(total))[:length]
    assert the_one_result(data, tmp_path).startswith(("truncated audio: clip: ", "broken audio: clip"))
    assert the_one_result(with_flac_total(32001), tmp_path).startswith(
        "truncated audio: clip: 32001 samples are"
    )


@pytest.mark.parametrize("place", range(2000, len(FLAC) - 1000, 4001))
def test_a_damaged_frame_in_the_middle_is_refused(place, tmp_path):
    for data in (
        FLAC[:place] + bytes([FLAC[place] ^ 16]) + FLAC[place + 1 :],
        FLAC[:place] + bytes(500) + FLAC[place + 500 :],
        FLAC[:place] + FLAC[place + 500 :],
    ):
        assert the_one_result(data, tmp_path).startswith("broken audio")


def without_tag(data):
    return data[mpeg.parse_frame(data, 0).size :]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_a_length_is_read_whole(mode, rate, channels, tmp_path):
    data = encoded(
        noisy_tone(3.0, rate, channels), rate, format="MP3", bitrate_mode=mode, compression_level=0.4
    )
    bare = without_tag(data)
    samples = np.array(the_one_result(bare, tmp_path), float)
    assert len(samples) / RATE == pytest.approx(probe_seconds(bare), abs=1e-3)
    assert len(samples) / RATE == pytest.approx(3.0, abs=0.2)
    assert np.abs(samples[: RATE // 2]).mean() * 5 < np.abs(samples[2 * RATE : 2 * RATE + RATE // 2]).mean()
    assert the_one_result(bare + b"TAG" + bytes(125), tmp_path) == result(bare)
    assert len(the_one_result(data, tmp_path)) == 3 * RATE


@pytest.mark.parametrize(
    "data", [MP3, CBR, without_tag(MP3), without_tag(CBR)], ids=["vbr", "cbr", "bare", "bare cbr"]
)
def test_mp3_behind_tags_and_junk_is_the_same(data, tmp_path):
    tag = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)
    for begin in (tag, tag + tag, b"\0" * 700, b"<html>some junk</html>" * 9):
        for suffix in (".mp3", ".bin", ".wav"):
            assert the_one_result(begin + data, tmp_path, suffix=suffix) == result(data)
        assert probe_seconds(begin + data) == probe_seconds(data)


@pytest.mark.parametrize("data", [MP3, CBR], ids=["vbr", "cbr"])
def test_mp3_that_is_cut_or_damaged_is_refused(data, tmp_path):
    for share in (0.2, 0.45, 0.8):
        cut = data[: int(len(data) * share)]
        assert the_one_result(cut, tmp_path).startswith("truncated audio: clip: ")
        with pytest.raises(RowError, match="truncated audio"):
            probe_seconds(cut)
    bare = without_tag(data)
    size = mpeg.parse_frame(bare, 0).size
    assert (
        the_one_result(bare[: len(bare) - size // 2], tmp_path)
        == "truncated audio: clip: the last MP3 frame is incomplete"
    )
    middle = len(data) // 2
    for damaged in (
        data[:middle] + bytes(900) + data[middle + 900 :],
        data[:middle] + b"junk" * 99 + data[middle:],
    ):
        for file in (damaged, damaged[len(data) - len(bare) :]):
            assert "are not MP3 frames" in the_one_result(file, tmp_path)


def test_mp3_files_put_behind_each_other_are_read_whole(tmp_path):
    assert len(the_one_result(MP3 + CBR, tmp_path)) / RATE == pytest.approx(4.0, abs=0.3)
    assert probe_seconds(MP3 + CBR) == pytest.approx(4.0, abs=0.3)


@pytest.mark.parametrize("data", [OGG, OPUS], ids=["vorbis", "opus"])
def test_ogg_that_is_cut_or_damaged_is_refused(data, tmp_path):
    last_page = data.rfind(b"OggS")
    for cut in (data[:last_page], data[: last_page + 40], data[:-1]):
        assert the_one_result(cut, tmp_path).startswith("truncated audio: clip: ")
        with pytest.raises(RowError, match="truncated audio"):
            probe_seconds(cut)
    assert the_one_result(data + b"TAG" + bytes(125), tmp_path) == result(data)
    middle = last_page - 100
    assert "is damaged" in the_one_result(data[:middle] + bytes(9) + data[middle + 9 :], tmp_path)


def test_pages_that_are_missing_are_reported(tmp_path):
    data = encoded(noisy_tone(20.0), format="OGG", subtype="VORBIS")
    pages = [place for place in range(len(data)) if data.startswith(b"OggS", place)]
    assert len(pages) > 4
    assert "pages are missing" in the_one_result(data[: pages[3]] + data[pages[4] :], tmp_path)


@pytest.mark.parametrize("second", [OGG, OPUS, encoded(noisy_tone(1.0, 8000, 2), 8000, format="OGG")])
def test_chained_streams_are_read_one_after_another(second, tmp_path):
    whole = result(OGG) + result(second)
    assert the_one_result(OGG + second, tmp_path) == whole
    assert probe_seconds(OGG + second) == pytest.approx(len(whole) / RATE)
    assert the_one_result(OGG + second, tmp_path, (1.5, 2.5)) == whole[24000:40000]
    with pytest.raises(RowError, match="clip too long"):
        decode(OGG + second, 2.5, "clip")
    assert the_one_result(OGG + second[:-5], tmp_path).startswith("truncated audio")


def notices_of(wave, **options):
    notices = []
    samples = decode(encoded(wave, format="WAV", subtype="FLOAT", **options), 60.0, "clip", notices=notices)
    return samples, notices


@pytest.mark.parametrize("quiet", [1.0, 0.9, 1.1])
def test_channels_that_cancel_each_other_are_not_silence(quiet):
    left = noisy_tone()[:, 0]
    samples, notices = notices_of(np.stack([left, -quiet * left], 1))
    assert notices == [ANTI_PHASE]
    loudest = left if quiet <= 1 else -quiet * left
    np.testing.assert_allclose(samples, loudest * 32768, atol=1)


def test_channels_that_do_not_cancel_are_averaged():
    noise = np.random.default_rng(0).standard_normal((16000, 8)).astype(np.float32) * 0.1
    for wave in (noise, noise[:, :2], np.stack([noise[:, 0], 0 * noise[:, 0]], 1), 0 * noise):
        samples, notices = notices_of(wave)
        assert notices == ([] if wave.any() else [SILENT])
        np.testing.assert_allclose(samples, wave.mean(axis=1) * 32768, atol=1)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "RF64"])
@pytest.mark.parametrize("factor", [32767, 128, 2**31])
def test_floats_in_the_range_of_whole_numbers_are_refused(format, subtype, factor, tmp_path):
    data = encoded(noisy_tone() * factor, format=format, subtype=subtype)
    assert the_one_result(data, tmp_path).startswith("samples out of range: clip: floats up to ")


def test_a_small_overshoot_is_limited_and_much_of_it_noted():
    tone = np.sin(np.arange(16000) / 10).astype(np.float32)
    tone[8000] = 1.4
    samples, notices = notices_of(tone)
    assert notices == []
    assert samples[8000] == 32767
    assert notices_of(1.5 * tone)[1] == [CLIPPED]


def test_clips_of_which_sixteen_bits_hold_nothing_are_noted():
    tone = noisy_tone()[:, 0]
    small = encoded(np.rint(tone * 32767).astype(np.int32), format="WAV", subtype="PCM_32")
    for data in (
        small,
        encoded(tone / 32768, format="WAV", subtype="FLOAT"),
        encoded(0 * tone, format="WAV"),
    ):
        notices = []
        assert not decode(data, 60.0, "clip", notices=notices).any()
        assert notices == [SILENT]
    assert notices_of(tone)[1] == []


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS; fetch"),
        (b"<!DOCTYPE html><html>", "a web page or XML"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "MP4 (M4A, AAC); convert it to WAV or FLAC"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81", "WebM or Matroska; convert it"),
        (b"\xff\xf1\x50\x80\x03\x9f\xfc!", "AAC; convert it"),
        (b"#!AMR\n<", "AMR; convert it"),
        (gzip.compress(WAV), "compressed; decompress it"),
        (b"\0" * 100, "filled with zeros"),
    ],
)
def test_what_is_no_audio_that_can_be_read_is_named(head, message, tmp_path):
    assert the_one_result(head + b"\1" * 400, tmp_path).startswith(f"broken audio: clip (it is {message}")


def test_whole_numbers_of_any_size_keep_their_loudness():
    wave = noisy_tone()
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
        samples = decode(encoded(wave, format="WAV", subtype=subtype), 60.0, "clip")
        np.testing.assert_allclose(samples, wave[:, 0] * 32768, atol=300 if subtype == "PCM_U8" else 2)


@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "i8", "list"])
@pytest.mark.parametrize("shape", ["S", "SC", "CS"])
def test_decoded_samples_are_read(kind, shape, tmp_path):
    wave = noisy_tone(1.0, channels=1 if shape == "S" else 2)
    array = wave if kind in ("f4", "f8", "list") else np.rint(wave * 32767)
    array = array.astype("f8" if kind == "list" else kind)
    array = {"S": array[:, 0], "SC": array, "CS": array.T}[shape]
    value = {"array": array.tolist() if kind == "list" else array, "sampling_rate": RATE, "path": None}
    ref = parse_audio(value, {}, tmp_path, "clip")
    assert ref.read_seconds() == 1.0
    np.testing.assert_allclose(ref.decode(2.0), wave.mean(axis=1) * 32768, atol=2)


@pytest.mark.parametrize(
    ("array", "rate"),
    [([1.0], None), ([1.0], "16k"), ([1.0], True), ([["a"]], RATE), ([[1.0], [1.0, 2.0]], RATE), (3.0, RATE)],
)
def test_what_is_no_array_of_samples_is_a_row_error(array, rate):
    with pytest.raises(RowError, match="broken audio"):
        encode_samples(array, rate, "clip")


def test_a_part_whose_file_shrinks_while_it_is_read_is_a_row_error(tmp_path, capfd, monkeypatch):
    data = encoded(noisy_tone(60.0), format="FLAC")
    (tmp_path / "archive").write_bytes(data)
    plain, calls = FilePart.read, []

    def failing(self, first=0, count=None):
        calls.append(first)
        if len(calls) > 8:
            raise OSError("Stale file handle")
        return plain(self, first, count)

    monkeypatch.setattr(FilePart, "read", failing)
    with pytest.raises(RowError, match=r"broken audio: clip"):
        decode(FilePart(tmp_path / "archive", 0, len(data)), 60.0, "clip", (30.0, 50.0))
    assert "Traceback" not in capfd.readouterr().err


def test_devices_and_pipes_are_no_clips(tmp_path):
    """A device without an end was read until the memory was full."""
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (Path("/dev/zero"), tmp_path / "pipe.wav", tmp_path):
        with pytest.raises(RowError, match="missing file"):
            decode(path, 60.0, "clip")
        with pytest.raises(RowError, match="missing file"):
            probe_seconds(path)
