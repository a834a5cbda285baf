"""Clips by URL: how many requests they take, what is fetched of long ones, and servers that refuse or fail."""

import io
import json

import numpy as np
import pytest
import soundfile
from helpers.files import card
from helpers.range_server import serve_ranges

from uniaudio.data.long_clips import LongClips, cut_long_clips, read_row_seconds
from uniaudio.data.sources import retries, url_clips
from uniaudio.data.sources.base import decode_clips
from uniaudio.data.sources.clip_cache import shrink_cache
from uniaudio.data.sources.http import VERSIONS
from uniaudio.data.sources.retries import call_patiently
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.sources.url_clips import OPENED, UrlClip
from uniaudio.errors import RowError


def encode(seconds, format="WAV", rate=16000):
    """A clip whose every tenth of a second has a level, its number, encoded; noise of mean zero keeps FLAC from
    shrinking."""
    levels = np.repeat(np.arange(round(seconds * 10), dtype=np.int16) * 4, rate // 10)
    half = np.random.default_rng(0).integers(0, 4000, len(levels) // 2, dtype=np.int16)
    noise = np.stack([half, -half], axis=1).reshape(-1)
    file = io.BytesIO()
    soundfile.write(file, levels + noise, rate, format=format)
    return file.getvalue()


def read_level(samples):
    """The number of the tenth of a second that samples begin with."""
    return round(float(samples[:1600].mean()) / 4)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    forget()
    with serve_ranges() as serving:
        yield serving
    forget()


def forget():
    """Be as a new process."""
    OPENED.clips.clear()
    VERSIONS.clear()
    retries.ANSWERED.clear()


def open_rows(server, tmp_path, *rows):
    """The rows of a manifest; a clip is a path on the server."""
    lines = [json.dumps({"label": "x", **row, "audio": server.root + row["audio"]}) for row in rows]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    source = open_source(card(tmp_path, {"jsonl": str(tmp_path / "m.jsonl")}), "train")
    return [source.row(index) for index in range(source.size)]


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_short_clip_takes_one_request_for_ever(server, tmp_path, format):
    server.files["/a.bin"] = encode(2, format)
    (row,) = open_rows(server, tmp_path, {"audio": "/a.bin"})
    assert read_row_seconds(row) == pytest.approx([2.0], abs=0.1)
    (samples,) = decode_clips(row, 30.0)
    assert len(samples) == pytest.approx(32000, abs=1500)
    assert len(server.requests) == 1
    forget()
    (again,) = decode_clips(row, 30.0)
    assert np.array_equal(again, samples)
    assert len(server.requests) == 1


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_windows_of_a_long_clip_fetch_their_parts_alone(server, tmp_path, format):
    content = encode(600, format)
    server.files["/long"] = content
    assert len(content) > url_clips.SMALL_FILE
    (row,) = open_rows(server, tmp_path, {"audio": "/long"})
    windows = cut_long_clips(row, LongClips("windows", 10, 10))
    assert len(windows) == 60
    (samples,) = decode_clips(windows[42], 10.0)
    assert (len(samples), read_level(samples)) == (160_000, 4200)
    assert sum(part_size(request) for request in server.requests[1:]) < len(content) / 3
    assert len(server.requests) < 20
    # all together in their order: not much more than the file
    server.requests.clear()
    for number, window in enumerate(windows[:20]):
        assert read_level(decode_clips(window, 10.0)[0]) == 100 * number
    assert sum(map(part_size, server.requests)) < 2 * len(content)


def part_size(request):
    first, last = request["Range"].removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1 if last else 0


def test_a_long_clip_of_another_format_is_fetched_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr(url_clips, "SMALL_FILE", 10_000)
    content = encode(60, "MP3")
    server.files["/long"] = content
    (row,) = open_rows(server, tmp_path, {"audio": "/long"})
    for number, window in enumerate(cut_long_clips(row, LongClips("windows", 10, 10))):
        forget()  # as if every piece were drawn by another worker
        assert read_level(decode_clips(window, 11.0)[0][1600:]) == pytest.approx(100 * number + 1, abs=20)
    assert len(server.requests) == 2  # its beginning, which says what it is, and all of it


def test_a_server_without_parts_sends_all_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr(url_clips, "SMALL_FILE", 10_000)
    server.files["/long.wav"] = encode(20)
    server.answer = lambda first, last: (200, {}, server.content)
    (row,) = open_rows(server, tmp_path, {"audio": "/long.wav"})
    windows = cut_long_clips(row, LongClips("windows", 5, 5))
    assert [read_level(decode_clips(window, 5.0)[0]) for window in windows] == [0, 50, 100, 150]
    assert len(server.requests) == 1


def test_answers_that_pass_are_waited_for(server, tmp_path):
    server.files["/a.wav"] = encode(1)
    codes = [503, 429, 500]
    server.answer = lambda first, last: (codes.pop(), {}, b"") if codes else server.proper(first, last)
    (row,) = open_rows(server, tmp_path, {"audio": "/a.wav"})
    assert len(decode_clips(row, 30.0)[0]) == 16000
    assert len(server.requests) == 4


def test_what_is_not_there_costs_its_row_with_one_request(server, tmp_path):
    server.answer = lambda first, last: (404, {}, b"")
    (row,) = open_rows(server, tmp_path, {"audio": "/a.wav?X-Amz-Signature=geheim"})
    with pytest.raises(RowError, match=r"missing file: http://127\.0\.0\.1:\d+/a\.wav\?.*: 404") as problem:
        read_row_seconds(row)
    assert row.key.endswith("/a.wav")
    assert "geheim" not in f"{problem.value} {row.key}"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><title>Log in</title>",
        b"\xef\xbb\xbf\n <html>",
        b'{"error": "quota"}',
        b"<?xml?>" * 99_999,
    ],
)
def test_a_page_in_place_of_a_clip_is_not_kept(server, tmp_path, page):
    server.files["/login.wav"] = page
    (row,) = open_rows(server, tmp_path, {"audio": "/login.wav"})
    with pytest.raises(
        RowError, match=r"login\.wav: the server sends a page or a message, not audio"
    ) as caught:
        decode_clips(row, 30.0)
    assert caught.value.reason == "unreachable file"
    assert len(server.requests) == 1
    forget()
    server.files["/login.wav"] = encode(2)
    (samples,) = decode_clips(row, 30.0)
    assert len(samples) == 32000


def test_a_dead_host_is_given_up_and_one_that_answered_is_waited_for():
    paused = []

    def fail():
        raise ConnectionError("no route")

    forget()
    for tries in (4, 1):  # the next clip of the same host is not waited for again
        with pytest.raises(RowError, match=f"unreachable file: https://dead/a.wav: tried {tries} times"):
            call_patiently(fail, "https://dead/a.wav", paused.append)
    assert paused == [1, 2, 4]
    call_patiently(lambda: 1, "https://alive/a.wav")
    with pytest.raises(RowError, match="tried 9 times"):
        call_patiently(fail, "https://alive/b.wav", paused.append)
    assert sum(paused[3:]) <= 200
    forget()


def test_a_scheme_of_fsspec_reads_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    forget()
    (tmp_path / "long.wav").write_bytes(encode(600))
    (tmp_path / "m.jsonl").write_text(json.dumps({"label": "x", "audio": f"file://{tmp_path}/long.wav"}))
    row = open_source(card(tmp_path, {"jsonl": str(tmp_path / "m.jsonl")}), "train").row(0)
    windows = cut_long_clips(row, LongClips("windows", 10, 10))
    assert [read_level(decode_clips(windows[n], 10.0)[0]) for n in (0, 30, 59)] == [0, 3000, 5900]
    assert not (tmp_path / "cache").exists()  # nothing was fetched whole
    gone = UrlClip(f"file://{tmp_path}/gone.wav", 5.0)
    with pytest.raises(RowError, match="missing file"):
        gone.read(0, 12)


def test_the_cache_forgets_what_was_not_used_for_longest(tmp_path):
    for number in range(10):
        path = tmp_path / "ab" / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        url_clips.os.utime(path, (number, number))
    shrink_cache(tmp_path, 1000)
    assert len(list(tmp_path.glob("*/*"))) == 10
    shrink_cache(tmp_path, 500)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["6", "7", "8", "9"]


def test_without_room_on_the_disk_clips_stay_in_memory(server, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_CLIP_CACHE_GIB", "0")
    server.files["/a.wav"] = encode(1)
    (row,) = open_rows(server, tmp_path, {"audio": "/a.wav"})
    assert [len(decode_clips(row, 30.0)[0]) for _ in range(2)] == [16000, 16000]
    assert (len(server.requests), (tmp_path / "cache").exists()) == (1, False)
