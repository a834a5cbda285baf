"""Sources over a network that fails: a local server drops connections, refuses, ignores ranges."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from made_up_files import card, numbers, write_parquet, write_tar

from uniaudio.data.source import BrokenShardError, Place, Row, open_source
from uniaudio.data.sources.retry import read_patiently
from uniaudio.errors import UserError


class Handler(BaseHTTPRequestHandler):
    """Serves a folder; ``server.faults`` holds what to do wrong next: a code, "drop", or None for a good answer."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        fault = self.server.faults.pop(0) if self.server.faults else None
        file = self.server.folder / self.path.lstrip("/")
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
    serving.folder, serving.faults, serving.asked, serving.ranges = tmp_path, [], [], True
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    serving.url = f"http://127.0.0.1:{serving.server_port}"
    yield serving
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
    assert server.asked[-1] == ("/set-0.tar", f"bytes={whole[9][1].offset}-")


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
    offsets = [int(asked[1].removeprefix("bytes=").removesuffix("-")) for asked in server.asked]
    assert offsets[0] == 0 < offsets[1] == offsets[2] < offsets[3]


def test_a_server_that_stays_away_ends_the_run_with_names(server, tars):
    server.faults = [503] * 9
    with pytest.raises(
        UserError, match=r"dataset set: http\S+set-0\.tar cannot be read from row 0 on, tried 3 times"
    ):
        patiently(tars, tries=3)


@pytest.mark.parametrize("code", [404, 403, 410])
def test_a_refusal_is_not_tried_again(server, tars, code):
    server.faults = [code]
    with pytest.raises(BrokenShardError, match=str(code)):
        patiently(tars)
    assert len(server.asked) == 1


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
    assert server.asked == []  # footers are read when a shard's turn comes
    assert len(source.shards) == 2
    whole, _ = patiently(source, 1)
    assert numbers(row for row, _ in whole) == [(i, i) for i in range(6, 12)]
    assert numbers(row for row, _ in source.read(1, whole[3][1])) == [(10, 10), (11, 11)]
    server.faults = [None, "drop"]  # the first request only asks for the size
    again, slept = patiently(source, 0)
    assert [row.columns["n"] for row, _ in again if isinstance(row, Row)] == list(range(6))
    assert slept == [1.0]


def test_parquet_needs_a_server_with_ranges(server, tmp_path):
    write_parquet(tmp_path / "far", files=1)
    server.ranges = False
    source = open_source(
        card(tmp_path, {"parquet": f"{server.url}/far/train-00000-of-00001.parquet"}), "train"
    )
    with pytest.raises(BrokenShardError, match="does not serve parts of files"):
        patiently(source)


def test_nobody_there_is_tried_again(tmp_path):
    source = open_source(card(tmp_path, {"webdataset": "http://127.0.0.1:9/a.tar"}), "train")
    with pytest.raises(UserError, match=r"tried 2 times .*refused"):
        patiently(source, tries=2)
