"""Frames on disk and clips that bring them along; writers are killed and meet each other in real processes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from uniaudio.feature_cache import Clips, FeatureStore, clip_key, look_up_frames, read_cached, write_cached
from uniaudio.ragged import Ragged

# writes the frames of clips "000...", "001...", ... without an end; a clip's frames hold its number
WRITER = """
import itertools, torch
from uniaudio.feature_cache import FeatureStore
store = FeatureStore("an_encoder")
for number in itertools.count():
    store.write(f"{number % 40:03d}", torch.full((2000, 256), float(number % 40)))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path))
    return tmp_path / "features"


def clips(*lengths):
    torch.manual_seed(sum(lengths))
    return Ragged.from_rows([torch.randint(-9000, 9000, (n,), dtype=torch.int16) for n in lengths])


def test_frames_come_back_bit_by_bit(cache):
    store = FeatureStore("an_encoder")
    frames = torch.randn(5, 3)
    assert store.read("ab12") is None
    store.write("ab12", frames)
    assert torch.equal(store.read("ab12"), frames)
    assert store.read("ab13") is None
    assert FeatureStore("another").read("ab12") is None
    assert [file.name for file in cache.glob("*/*/*")] == ["ab12.safetensors"]
    assert (cache / "an_encoder" / "ab" / "ab12.safetensors").stat().st_mode & 0o044 == 0o044 & ~umask()


def test_a_file_that_cannot_be_written_leaves_nothing_behind(cache, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_cached(cache / "a" / "b.safetensors", {"x": torch.zeros(2)})
    assert not list((cache / "a").iterdir())


def umask():
    now = os.umask(0)
    os.umask(now)
    return now


def test_half_precision_takes_half_the_room():
    whole, half = FeatureStore("whole"), FeatureStore("half", torch.bfloat16)
    frames = torch.randn(500, 64)
    for store in (whole, half):
        store.write("ab", frames)
    assert torch.equal(half.read("ab"), frames.bfloat16())
    sizes = [store.locate_file("ab").stat().st_size for store in (half, whole)]
    assert sizes[0] == pytest.approx(500 * 64 * 2, abs=200)
    assert sizes[1] == pytest.approx(500 * 64 * 4, abs=200)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:100], lambda b: b[:-4], lambda b: b"", lambda b: bytes(len(b))]
)
def test_a_damaged_file_counts_as_missing_and_is_written_anew(damage):
    store = FeatureStore("an_encoder")
    store.write("ab12", torch.ones(50, 3))
    file = store.locate_file("ab12")
    file.write_bytes(damage(file.read_bytes()))
    assert store.read("ab12") is None
    store.write("ab12", torch.ones(50, 3))
    assert torch.equal(store.read("ab12"), torch.ones(50, 3))


def test_a_clip_is_known_by_its_samples_alone():
    one = torch.arange(100, dtype=torch.int16)
    assert clip_key(one) == clip_key(torch.cat([one, one])[:100])
    changed = one.clone()
    changed[50] += 1
    names = {clip_key(one), clip_key(changed), clip_key(one[:99]), clip_key(torch.cat([one, one[:1] * 0]))}
    assert len(names) == 4


def test_clips_bring_what_is_known_of_them():
    audio = clips(40, 30, 20)
    first, second = FeatureStore("first"), FeatureStore("second")
    keys = [clip_key(row) for row in audio.rows()]
    first.write(keys[1], torch.full((3, 2), 1.0))
    first.write(keys[2], torch.full((2, 2), 2.0))
    result = look_up_frames(audio, (first, second))
    assert torch.equal(result.values, audio.values)
    assert result.keys == tuple(keys)
    assert result.known["first"].lengths.tolist() == [0, 3, 2]
    assert result.known["first"].values[:, 0].tolist() == [1, 1, 1, 2, 2]
    assert result.known["second"].lengths.tolist() == [0, 0, 0]
    assert result.looked_up == (2, 6)


def test_chosen_clips_keep_their_frames():
    audio = clips(40, 30, 20)
    store = FeatureStore("first")
    for number, row in enumerate(audio.rows()):
        if number != 1:
            store.write(clip_key(row), torch.full((number + 1, 2), float(number)))
    result = look_up_frames(audio, (store,)).select([2, 1, 0])
    assert isinstance(result, Clips)
    assert result.lengths.tolist() == [20, 30, 40]
    assert result.keys == tuple(clip_key(row) for row in result.rows())
    assert result.known["first"].lengths.tolist() == [3, 0, 1]
    assert result.known["first"].values[:, 0].tolist() == [2, 2, 2, 0]
    assert isinstance(result.to("cpu"), Clips)
    assert look_up_frames(audio, (store,)).select([1]).looked_up == (0, 1)
    assert len(look_up_frames(audio, (store,)).select([]).keys) == 0


def writer():
    return subprocess.Popen([sys.executable, "-c", WRITER], env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_killed_writers_leave_whole_files_only(cache):
    """Two processes write the same clips at once; both are killed in the midst of it, and this one goes on."""
    store = FeatureStore("an_encoder")
    pair = [writer(), writer()]
    last = time.monotonic() + 60
    while len(list(cache.glob("*/*/*.safetensors"))) < 25:
        assert time.monotonic() < last
        time.sleep(0.002)
    for process in pair:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert_all_are_whole(store, cache)
    for number in range(40):
        if store.read(f"{number:03d}") is None:
            store.write(f"{number:03d}", torch.full((2000, 256), float(number)))
    assert_all_are_whole(store, cache)
    assert store.read_all([f"{n:03d}" for n in range(40)]).lengths.tolist() == [2000] * 40


def assert_all_are_whole(store, cache):
    for file in cache.glob("*/*/*.safetensors"):
        frames = read_cached(file)["frames"]
        assert frames.shape == (2000, 256)
        assert (frames == float(file.stem)).all()
        assert store.read(file.stem) is not None
