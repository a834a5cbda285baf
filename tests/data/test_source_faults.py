"""Sources over a network that fails: a local server drops connections, refuses, ignores ranges."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar
from urllib.parse import unquote

import fsspec
import pyarrow
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers.files import card, clip_bytes, numbers, write_parquet, write_tar
from helpers.resuming import check_places

from uniaudio.data.sources.base import BrokenShardError, Place, Row
from uniaudio.data.sources.http import VERSIONS
from uniaudio.data.sources.retries import read_patiently
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.sources.url_files import classify_error
from uniaudio.errors import UserError


class Handler(BaseHTTPRequestHandler):
    """Serves a folder; ``server.faults`` holds what to do wrong next: a code, "drop", "silence", or None."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        fault = self.server.faults.pop(0) if self.server.faults else None
        file = self.server.folder / unquote(self.path).lstrip("/")
        if fault == "silence":
            self.server.awake.wait(10)
            self.close_connection = True
            return
        if isinstance(fault, int) or not file.is_file():
            self.send_error(fault or 404)
            return
        content = file.read_bytes()
        total = len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and self.server.ranges:
            first, last = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
            if first >= total:
                self.send_error(416)
                return
            content = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "drop" else content)
        self.close_connection = fault == "drop"


@pytest.fixture
def server(tmp_path):
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.folder, serving.faults, serving.requests, serving.ranges = tmp_path, [], [], True
    serving.awake = threading.Event()
    threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
    serving.url = f"http://127.0.0.1:{serving.server_port}"
    yield serving
    serving.awake.set()
    serving.shutdown()
    serving.server_close()


@pytest.fixture
def tars(server, tmp_path):
    """Two tars of ten rows each, by URL."""
    for part in range(2):
        write_tar(tmp_path / f"set-{part}.tar", range(10 * part, 10 * part + 10))
    return open_source(card(tmp_path, {"webdataset": f"{server.url}/set-{{0..1}}.tar"}), "train")


def patiently(source, shard=0, place=Place(), **options):
    slept = []
    rows = list(read_patiently(source, shard, place, "set", sleep=slept.append, **options))
    return rows, slept


def test_tars_by_url_and_from_a_place_by_range(server, tars):
    whole, slept = patiently(tars)
    assert numbers(row for row, _ in whole) == [(i, i) for i in range(10)]
    assert slept == []
    for start in (0, 4, 9):
        rest = list(tars.read(0, whole[start][1]))
        assert [behind for _, behind in rest] == [behind for _, behind in whole[start + 1 :]]
    assert server.requests[-1] == ("/set-0.tar", f"bytes={whole[9][1].offset}-")


def test_every_place_of_a_tar_by_url(tars):
    assert check_places(tars) == [10, 10]


def test_urls_with_signs_of_any_language(server, tmp_path):
    write_tar(tmp_path / "Töne 1" / "ä#.tar", range(3))
    source = open_source(card(tmp_path, {"webdataset": f"{server.url}/Töne 1/ä%23.tar"}), "train")
    assert numbers(source.rows()) == [(i, i) for i in range(3)]
    assert server.requests == [("/T%C3%B6ne%201/%C3%A4%23.tar", "bytes=0-")]


def test_a_server_that_ignores_ranges_is_read_from_the_beginning(server, tars):
    whole, _ = patiently(tars)
    server.ranges = False
    rest = list(tars.read(0, whole[4][1]))
    assert numbers(row for row, _ in rest) == [(i, i) for i in range(5, 10)]


def test_a_dropped_connection_is_taken_up_where_it_ended(server, tars):
    server.faults = ["drop", 503, "drop"]
    rows, slept = patiently(tars)
    assert numbers(row for row, _ in rows) == [(i, i) for i in range(10)]
    assert slept == [1.0, 2.0, 1.0]
    offsets = [int(requests[1].removeprefix("bytes=").removesuffix("-")) for requests in server.requests]
    assert offsets[0] == 0 < offsets[1] == offsets[2] < offsets[3]


def test_a_server_that_says_nothing_is_given_up_after_the_timeout(server, tmp_path):
    write_tar(tmp_path / "a.tar", range(3))
    load = {"webdataset": f"{server.url}/a.tar", "timeout": 0.1}
    source = open_source(card(tmp_path, load), "train")
    server.faults = ["silence", None]
    rows, slept = patiently(source)
    assert (len(rows), slept) == (3, [1.0])


def test_pauses_double_and_a_row_starts_them_anew(server, tars):
    server.faults = [503, 503, 503, "drop", 503, 503, 503]
    rows, slept = patiently(tars)
    assert numbers(row for row, _ in rows) == [(i, i) for i in range(10)]
    assert slept == [1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 8.0]
    server.faults = [503] * 5
    slept = []
    with pytest.raises(UserError, match=r"tried 5 times in 12 s .*raise data.max_outage"):
        list(read_patiently(tars, 0, Place(), "set", 12.0, sleep=slept.append))
    assert slept == [1.0, 2.0, 4.0, 5.0]


def test_a_server_that_stays_away_ends_the_run_with_names(server, tars):
    server.faults = [503] * 9
    with pytest.raises(
        UserError,
        match=r"dataset set: http\S+set-0\.tar cannot be read from row 0 on, tried 3 times in 3 s \(503 ",
    ):
        patiently(tars, max_outage=3.0)


@pytest.mark.parametrize("ranges", [True, False])
def test_windows_of_a_tar_are_fetched_once_whatever_the_server_serves(server, tars, ranges):
    """Without parts of files, a request for each window would fetch all that lies before it again."""
    server.ranges = ranges
    place, read = Place(), []
    while True:
        rows = tars.read(0, place)
        window = [pair for _ in range(4) if (pair := next(rows, None)) is not None]
        rows.close()
        if not window:
            break
        read += [row for row, _ in window]
        place = window[-1][1]
    assert numbers(read) == [(i, i) for i in range(10)]
    assert len(server.requests) == (4 if ranges else 2)  # one is behind the last row
    rest = list(tars.read(0, Place(0, 0)))
    assert numbers(row for row, _ in rest) == [(i, i) for i in range(10)]


def test_a_server_that_gives_up_a_paused_answer_gets_another_request(server, tars):
    server.ranges, server.faults = False, ["drop"]
    rows = read_patiently(tars, 0, Place(), "set", sleep=lambda _: None)
    first = [next(rows) for _ in range(2)]
    rows.close()
    rest, slept = patiently(tars, place=first[-1][1])
    assert numbers(row for row, _ in [*first, *rest]) == [(i, i) for i in range(10)]
    assert (slept, len(server.requests)) == ([1.0], 2)


@pytest.mark.parametrize("code", [404, 403, 410])
def test_a_refusal_is_not_tried_again(server, tars, code):
    server.faults = [code]
    with pytest.raises(BrokenShardError, match=str(code)):
        patiently(tars)
    assert len(server.requests) == 1


def test_a_file_that_vanishes_in_mid_stream_is_a_broken_shard_behind_its_rows(server, tars, tmp_path):
    server.faults = ["drop"]
    rows = []

    def read_all():
        pause = (tmp_path / "set-0.tar").unlink
        rows.extend(row for row, _ in read_patiently(tars, 0, Place(), "set", sleep=lambda _: pause()))

    with pytest.raises(BrokenShardError, match="404"):
        read_all()
    assert 0 < len(rows) < 10
    assert numbers(rows) == [(i, i) for i in range(len(rows))]


def test_parquet_by_url_reads_only_what_it_needs(server, tmp_path):
    write_parquet(tmp_path / "far", files=2, rows=6, group=2)
    place = f"{server.url}/far/train-{{00000..00001}}-of-00002.parquet"
    source = open_source(card(tmp_path, {"parquet": place}), "train")
    assert server.requests == []  # footers are read when a shard's turn comes
    assert len(source.shards) == 2
    whole, _ = patiently(source, 1)
    assert numbers(row for row, _ in whole) == [(i, i) for i in range(6, 12)]
    assert numbers(row for row, _ in source.read(1, whole[3][1])) == [(10, 10), (11, 11)]
    server.faults = [None, "drop"]  # the first request only asks for the size
    again, slept = patiently(source, 0)
    assert [row.columns["n"] for row, _ in again if isinstance(row, Row)] == list(range(6))
    assert slept == [1.0]


@pytest.mark.parametrize(
    ("code", "error"), [(404, BrokenShardError), (403, BrokenShardError), (503, OSError)]
)
def test_a_refusal_of_any_request_of_a_parquet_file(server, tmp_path, code, error):
    write_parquet(tmp_path / "far", files=1)
    place = f"{server.url}/far/train-00000-of-00001.parquet"
    source = open_source(card(tmp_path, {"parquet": place}), "train")
    assert len(list(source.read(0, Place()))) == 5
    for good in range(len(server.requests)):
        VERSIONS.clear()  # with them known, nobody asks for the size
        server.faults = [None] * good + [code]
        with pytest.raises(error, match=str(code)):
            list(source.read(0, Place()))


def test_parquet_needs_a_server_with_ranges(server, tmp_path):
    write_parquet(tmp_path / "far", files=1)
    server.ranges = False
    source = open_source(
        card(tmp_path, {"parquet": f"{server.url}/far/train-00000-of-00001.parquet"}), "train"
    )
    with pytest.raises(BrokenShardError, match="does not serve parts of files"):
        patiently(source)


def test_a_damaged_parquet_file_by_url_is_not_tried_again(server, tmp_path):
    write_parquet(tmp_path / "far", files=1)
    file = tmp_path / "far" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    source = open_source(card(tmp_path, {"parquet": f"{server.url}/far/{file.name}"}), "train")
    with pytest.raises(BrokenShardError, match=r"of-00001\.parquet: "):
        patiently(source)


def answer(code):
    problem = OSError(f"{code} for this")
    problem.response = SimpleNamespace(status_code=code)
    return problem


@pytest.mark.parametrize(
    ("problem", "passing"),
    [
        (TimeoutError("slow"), True),
        (ConnectionResetError(104, "reset"), True),
        (OSError(16, "please slow down"), True),
        (answer(429), True),
        (answer(503), True),
        (type("ClientPayloadError", (Exception,), {"__module__": "aiohttp.client_exceptions"})("cut"), True),
        (type("ReadTimeout", (Exception,), {"__module__": "httpx"})(), True),
        (answer(404), False),
        (answer(401), False),
        (FileNotFoundError(2, "gone"), False),
        (PermissionError(13, "no"), False),
        (OSError("Couldn't deserialize thrift: invalid data"), False),
        (pyarrow.ArrowInvalid("Parquet magic bytes not found"), False),
        (ValueError("a column is missing"), False),
    ],
)
def test_which_errors_may_pass(problem, passing):
    """Whatever library met them: the same reading, tried again or given up."""
    assert isinstance(classify_error(problem, "x"), OSError if passing else BrokenShardError)
    assert str(classify_error(problem, "x")).startswith("x: ")
    assert classify_error(ConnectionError("x: slow"), "x").args == ("x: slow",)


class Failing(MemoryFileSystem):
    """A file system of fsspec, in memory, whose reads fail now and then."""

    protocol = "failing"
    faults: ClassVar[list[Exception | None]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("failing://"))

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        plain = file.read

        def read(count=-1):
            fault = self.faults.pop(0) if self.faults else None
            if fault is not None:
                raise fault
            return plain(count)

        file.read = read
        return file


def test_any_scheme_is_tried_again_or_given_up(tmp_path):
    fsspec.register_implementation("failing", Failing, clobber=True)
    write_tar(tmp_path / "a.tar", range(4))
    write_parquet(tmp_path / "far", files=1, rows=4)
    for place, kind in (("a.tar", "webdataset"), ("far/train-00000-of-00001.parquet", "parquet")):
        fsspec.filesystem("memory").pipe("/a", (tmp_path / place).read_bytes())
        source = open_source(card(tmp_path, {kind: "failing://a"}), "train")
        Failing.faults = [OSError(16, "please slow down"), None, TimeoutError("slow")]
        rows, slept = patiently(source)
        assert numbers(row for row, _ in rows) == [(i, i) for i in range(4)]
        assert slept[:1] == [1.0]
        Failing.faults = [PermissionError(13, "no")]
        with pytest.raises(BrokenShardError, match=r"failing://a: .*no"):
            patiently(source)
    fsspec.filesystem("memory").rm("/a")


class FailingStream:
    """What StreamedSource takes of a dataset: batches of columns, with an error behind the rows of ``good``."""

    def __init__(self, good, problem):
        self.good, self.problem, self.skipped = good, problem, 0

    def shard(self, num_shards, index):
        return self

    def skip(self, count):
        self.skipped = count
        return self

    def iter(self, size):
        for n in range(self.skipped, 6):
            if n == self.good and self.problem is not None:
                problem, self.problem = self.problem, None
                raise problem
            yield {"audio": [{"bytes": clip_bytes(n), "path": None}], "n": [n]}


def test_a_stream_of_the_hub_goes_on_where_it_ended(tmp_path):
    write_parquet(tmp_path / "data", files=1)
    source = open_source(card(tmp_path, {"hub": str(tmp_path / "data")}), "train")
    source.data = FailingStream(3, answer(502))
    rows, slept = patiently(source)
    assert numbers(row for row, _ in rows) == [(i, i) for i in range(6)]
    assert [behind for _, behind in rows] == [Place(i + 1) for i in range(6)]
    assert slept == [1.0]
    source.data = FailingStream(3, answer(404))
    with pytest.raises(BrokenShardError, match=r"data:train:0: 404 for this"):
        patiently(source)


def test_nobody_there_is_tried_again(tmp_path):
    source = open_source(card(tmp_path, {"webdataset": "http://127.0.0.1:9/a.tar"}), "train")
    with pytest.raises(UserError, match=r"tried 2 times in 1 s .*refused"):
        patiently(source, max_outage=1.0)
