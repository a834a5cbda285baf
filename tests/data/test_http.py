"""Servers that send something else than was asked for, and servers that ask for patience."""

import email.utils
import http.client
import time

import pytest
from helpers.files import card, numbers, write_tar
from helpers.range_server import serve_ranges

from uniaudio.data.sources.base import BrokenShardError, Place
from uniaudio.data.sources.http import (
    VERSIONS,
    FileVersion,
    HttpFile,
    HttpStream,
    UnavailableError,
    convert_http_errors,
    request_part,
)
from uniaudio.data.sources.retries import OutageLog, read_patiently
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import UserError
from uniaudio.hub_client import parse_retry_after

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def server():
    with serve_ranges(CONTENT) as serving:
        serving.url = f"{serving.root}/a"
        yield serving
    VERSIONS.clear()


def odd(server, **headers):
    """Let the server answer as it should but for some headers."""

    def answer(first, last):
        code, proper, body = server.proper(first, last)
        return code, proper | {name.replace("_", "-"): value for name, value in headers.items()}, body

    server.answer = answer


def read_both(server):
    """Read the file from byte 100 on in both ways, and return what either raised."""
    raised = []
    for read in (read_onwards, read_in_jumps):
        VERSIONS.clear()
        try:
            assert read(server) == CONTENT[100:]
        except (BrokenShardError, OSError) as problem:
            raised.append(problem)
    return raised


def read_onwards(server):
    with HttpStream(server.url, 100, 5.0) as stream:
        return stream.readall()


def read_in_jumps(server):
    file = HttpFile(server.url, 5.0)
    file.seek(100)
    return file.read(len(CONTENT))


def test_parts_are_read(server):
    assert read_both(server) == []
    assert all(headers["Accept-Encoding"] == "identity" for headers in server.requests)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Range": "bytes 0-1947/2048"},
        {"Content_Range": "bytes 101-2047/2048"},
        {"Content_Range": "bytes 100-2000/2048"},
        {"Content_Range": "bytes 100-99999/100000"},
        {"Content_Range": "bytes -5-2047/2048"},
        {"Content_Range": "bytes 100-2047/" + "9" * 400},
        {"Content_Range": "pages 1-2/3"},
        {"Content_Range": ""},
        {"Content_Range": None},
        {"Content_Length": "-7"},
        {"Content_Length": "many"},
        {"Content_Length": "9" * 400},
        {"Content_Length": "3"},
        {"Content_Encoding": "gzip"},
        {"Content_Encoding": "br, gzip"},
    ],
    ids=str,
)
def test_an_answer_that_is_not_the_part_that_was_requested_is_refused(server, headers):
    odd(server, **headers)
    raised = read_both(server)
    assert [type(problem) for problem in raised] == [BrokenShardError] * 2
    assert all(server.url in str(problem) for problem in raised)


def test_more_than_a_hundred_headers_and_a_long_one_are_refused(server):
    for headers in ({f"X_{i}": "a" for i in range(200)}, {"X": "a" * 100_000}):
        odd(server, **headers)
        assert [type(problem) for problem in read_both(server)] == [BrokenShardError] * 2


def test_redirects_without_end_are_refused(server):
    server.answer = lambda first, last: (302, {"Location": server.url}, b"")
    assert [type(problem) for problem in read_both(server)] == [BrokenShardError] * 2


def test_a_body_that_ends_early_may_be_tried_again(server):
    odd(server, Content_Length=None)
    longer = server.answer
    server.answer = lambda first, last: (*longer(first, last)[:2], CONTENT[first:last])
    for read in (read_onwards, read_in_jumps):
        with pytest.raises(ConnectionError):
            read(server)


@pytest.mark.parametrize("before", [{"ETag": '"1"'}, {"Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, {}])
@pytest.mark.parametrize("read", [read_onwards, read_in_jumps])
def test_a_file_that_changes_between_two_requests_is_refused(server, before, read):
    odd(server, **before)
    assert read(server) == CONTENT[100:]
    server.content = CONTENT if before else CONTENT + b"more"
    odd(server, **{name: value.replace("1", "2") for name, value in before.items()})
    with pytest.raises(BrokenShardError, match="changed while it was being read"):
        read(server)
    assert ("If-Range" in server.requests[-1]) == ("ETag" in before)


def test_an_end_that_is_none_is_refused(server):
    server.answer = lambda first, last: (416, {"Content-Range": "bytes */2048"}, b"")
    with pytest.raises(BrokenShardError, match="does not send byte 100 of 2048"):
        read_onwards(server)
    assert HttpStream(server.url, 2048, 5.0).readall() == b""


def test_versions_are_compared_by_what_both_answers_say():
    assert not FileVersion(5, '"a"').is_other_than(FileVersion(None, 'W/"a"', "today"))
    assert FileVersion(5).is_other_than(FileVersion(6))
    assert FileVersion(5, '"a"').is_other_than(FileVersion(5, '"b"'))


def test_retry_after_is_understood():
    assert parse_retry_after("120") == 120
    later = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < parse_retry_after(later) <= 60
    assert parse_retry_after("Mon, 01 Jan 2024 00:00:00 GMT") == 0
    assert [parse_retry_after(odd) for odd in (None, "", "-5", "soon", "9" * 400)] == [None] * 5


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (http.client.IncompleteRead(b""), ConnectionError),
        (http.client.BadStatusLine("x"), ConnectionError),
        (http.client.LineTooLong("header"), BrokenShardError),
        (http.client.HTTPException("got more than 100 headers"), BrokenShardError),
        (ValueError("chunk"), BrokenShardError),
        (TimeoutError("slow"), TimeoutError),
    ],
)
def test_what_the_library_raises_becomes_one_of_two_errors(raised, kind):
    with pytest.raises(kind), convert_http_errors("u"):
        raise raised


class Faulty:
    """A source whose every reading fails as told, until the list is empty."""

    shards = ("s",)

    def __init__(self, faults):
        self.faults = faults

    def read(self, shard, place):
        if self.faults:
            raise self.faults.pop(0)
        yield None, Place(place.row + 1)


def outage(faults, max_outage=600.0):
    slept, said, waited = [], [], []
    log = OutageLog(said.append)
    rows = read_patiently(Faulty(faults), 0, Place(), "set", max_outage, slept.append, waited.append, log)
    return rows, slept, said, waited


def test_a_server_that_sends_retry_after_gets_it_within_the_limit():
    rows, slept, said, waited = outage([UnavailableError("503", 120.0), UnavailableError("503", 0.0)])
    assert len(list(rows)) == 1
    assert slept == waited == [120.0, 2.0]
    assert said == [
        "dataset set: cannot be read at the moment (503); retrying for up to 600 s (data.max_outage)",
        "dataset set: can be read again",
    ]


def test_a_pause_beyond_the_limit_is_named_before_it_begins():
    refused = [ConnectionError("refused")] * 2
    rows, slept, said, _ = outage([*refused, UnavailableError("503", 900.0), UnavailableError("503", 900.0)])
    with pytest.raises(UserError, match="tried 4 times in 600 s"):
        list(rows)
    assert slept == [1.0, 2.0, 597.0]
    assert said == [
        "dataset set: cannot be read at the moment (503); retrying for up to 600 s (data.max_outage)",
        "dataset set: the server asks to wait 900 s, longer than data.max_outage (600 s) allows; the last try is in "
        "597 s",
    ]


def test_the_last_try_is_said_once_for_all_readers_of_a_dataset_and_again_in_the_next_outage():
    said = []
    log = OutageLog(said.append)
    for _ in range(2):
        for _ in range(3):
            log.begin("set", "503", 30.0)
            log.note_last_try("set", 100.0, 30.0, 30.0)
        for _ in range(3):
            log.end("set", over=True)
    kinds = ["cannot be read", "the server asks to wait 100 s", "can be read again"] * 2
    assert [kind in sentence for kind, sentence in zip(kinds, said, strict=True)] == [True] * 6


@pytest.mark.parametrize(("header", "shown"), [("100", ", Retry-After: 100 s"), (None, ""), ("soon", "")])
def test_retry_after_is_part_of_the_refusal(server, header, shown):
    server.answer = lambda first, last: (503, {"Retry-After": header}, b"")
    with pytest.raises(UnavailableError, match=rf"/a\.tar: 503 Service Unavailable{shown}$"):
        request_part(f"{server.root}/a.tar", 0, 9, 5.0)


def test_an_outage_is_waited_out_for_ten_minutes_and_said_once():
    rows, slept, said, _ = outage([ConnectionError("refused")] * 99)
    with pytest.raises(UserError, match=r"in 600 s \(refused\); raise data.max_outage"):
        list(rows)
    assert sum(slept) == 600
    assert max(slept) == 60
    assert len(said) == 1


def test_pauses_stay_at_a_minute_over_a_day():
    rows, slept, _, _ = outage([ConnectionError("refused")] * 1500, max_outage=1e5)
    assert len(list(rows)) == 1
    assert slept[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert slept[7:] == [60.0] * 1493


def test_a_short_disturbance_is_not_said():
    rows, slept, said, _ = outage([ConnectionError("refused")] * 3)
    assert len(list(rows)) == 1
    assert (slept, said) == ([1.0, 2.0, 4.0], [])


def test_rows_of_a_tar_whose_server_sends_other_parts_are_a_broken_shard(server, tmp_path):
    write_tar(tmp_path / "a.tar", range(6))
    server.content = (tmp_path / "a.tar").read_bytes()
    source = open_source(card(tmp_path, {"webdataset": server.url}), "train")
    whole = list(source.read(0, Place()))
    assert numbers(row for row, _ in whole) == [(i, i) for i in range(6)]
    odd(server, Content_Range=f"bytes 0-{len(server.content) - 1}/{len(server.content)}")
    with pytest.raises(BrokenShardError, match="instead of"):
        list(source.read(0, whole[2][1]))
