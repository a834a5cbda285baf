"""Rows in Google Cloud Storage, with the real gcsfs against a small server, where the extra ``gcs`` is installed."""

import http.server
import json
import threading
import time
import types
from itertools import islice
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from google.auth.exceptions import RefreshError
from google.oauth2.credentials import Credentials
from helpers.tar_shards import make_tar, open_place, read_values

from uniaudio.console import silence_known_warnings
from uniaudio.data.sources.base import BrokenShardError, Place
from uniaudio.data.sources.url_files import find_store_size, open_onwards, read_store_range
from uniaudio.errors import UserError

gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed")
SECRET = "very-secret"


class StorageHandler(http.server.BaseHTTPRequestHandler):
    """The requests of the JSON API that reading takes: facts of an object, its bytes, and the names in a bucket."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.tokens.add(self.headers.get("Authorization"))
        if isinstance(server.fault, float):
            time.sleep(server.fault)
        if isinstance(server.fault, tuple):
            status, message = server.fault
            return self.answer(status, {"error": {"code": status, "message": message}})
        url = urlsplit(self.path)
        parts = url.path.removeprefix("/download").split("/")  # "", storage, v1, b, BUCKET, o, OBJECT
        bucket, name = parts[4], unquote(parts[6]) if len(parts) > 6 else None
        if name is None:
            return self.list_names(bucket, parse_qs(url.query))
        content = server.objects.get((bucket, name))
        if content is None:
            return self.answer(404, {"error": {"code": 404, "message": "No such object"}})
        if url.path.startswith("/download"):
            return self.send_content(content)
        return self.answer(200, describe_object(bucket, name, content))

    def list_names(self, bucket, query):
        prefix = query.get("prefix", [""])[0]
        names = sorted(name for at, name in self.server.objects if at == bucket and name.startswith(prefix))
        if not any(at == bucket for at, _ in self.server.objects):
            return self.answer(404, {"error": {"code": 404, "message": "No such bucket"}})
        if "delimiter" not in query:
            return self.answer(200, {"items": [self.describe(bucket, name) for name in names]})
        plain = [name for name in names if "/" not in name[len(prefix) :]]
        folders = {prefix + name[len(prefix) :].split("/")[0] + "/" for name in names if name not in plain}
        items = [self.describe(bucket, name) for name in plain]
        return self.answer(200, {"items": items, "prefixes": sorted(folders)})

    def describe(self, bucket, name):
        return describe_object(bucket, name, self.server.objects[bucket, name])

    def send_content(self, content):
        first, last = 0, len(content) - 1
        if stated := self.headers.get("Range"):
            first, last = (int(x or last) for x in stated.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.server.sent += len(part)
        self.send_response(206 if stated else 200)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.finish_answer(part)

    def answer(self, status, content):
        self.send_response(status)
        self.finish_answer(json.dumps(content).encode())

    def finish_answer(self, body):
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def describe_object(bucket, name, content):
    facts = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content))}
    return facts | {
        "generation": "1",
        "updated": "2026-01-01T00:00:00Z",
        "timeCreated": "2026-01-01T00:00:00Z",
    }


@pytest.fixture
def storage(monkeypatch):
    """A server with objects by (bucket, name); ``fault`` is (status, message), or seconds that it waits."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StorageHandler)
    server.objects, server.fault, server.sent, server.tokens = {}, None, 0, set()
    server.handle_error = lambda *args: None  # of clients that do not wait
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("google.auth.default", lambda **options: (Credentials(SECRET), "project"))

    async def skip(seconds):
        pass

    async def know_nothing(store, bucket):  # or it would be asked of another address, by gRPC
        return gcsfs.extended_gcsfs.BucketType.UNKNOWN

    monkeypatch.setattr(gcsfs.extended_gcsfs.ExtendedGcsFileSystem, "_get_bucket_type", know_nothing)

    monkeypatch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=skip))
    gcsfs.GCSFileSystem.clear_instance_cache()
    silence_known_warnings()
    yield server
    server.shutdown()
    gcsfs.GCSFileSystem.clear_instance_cache()


def test_shards_of_a_bucket(tmp_path, storage, caplog):
    storage.objects = {("bucket", f"set/a-{n}.tar"): make_tar(5 * n, 5) for n in range(2)}
    storage.objects["bucket", "README.md"] = b"x"
    for place in ("gs://bucket/set/a-{0..1}.tar", "gs://bucket/set/*.tar", "gs://bucket/set/"):
        assert read_values(open_place(tmp_path, place)) == list(range(10))
    source = open_place(tmp_path, "gs://bucket/set/a-{0..1}.tar")
    (_, place) = list(islice(source.read(1, Place()), 2))[-1]
    assert [row.columns["label"] for row, _ in source.read(1, place)] == [7, 8, 9]
    storage.sent = 0
    assert read_store_range("gs://bucket/set/a-0.tar", 512, 4, 5.0) == make_tar(0, 5)[512:516]
    assert storage.sent == 4
    assert find_store_size("gs://bucket/set/a-0.tar", 5.0) == len(make_tar(0, 5))
    assert caplog.messages == []


def test_an_object_or_bucket_that_is_not_there(tmp_path, storage):
    storage.objects["bucket", "a-0.tar"] = make_tar(0, 2)
    *rows, problem = open_place(tmp_path, "gs://bucket/a-{0..1}.tar").rows()
    assert len(rows) == 2
    assert problem.reason == "broken shard"
    assert "gs://bucket/a-1.tar: there is no such file" in problem.detail
    with pytest.raises(UserError, match=r"gs://none/\*\.tar .*there is no such"):
        open_place(tmp_path, "gs://none/*.tar")


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ((401, "Invalid Credentials"), BrokenShardError, "still valid"),
        ((403, "no access for me@host"), BrokenShardError, "still valid"),
        ((503, "Backend Error"), ConnectionError, "Backend Error"),
        ((429, "Slow down"), ConnectionError, "Slow down"),
        (1.5, ConnectionError, ""),
    ],
)
def test_what_the_store_refuses_or_delays(storage, fault, kind, words, caplog):
    storage.objects["bucket", "a.tar"] = make_tar(0, 1)
    storage.fault = fault
    begun = time.monotonic()
    caplog.set_level("INFO")
    with pytest.raises(kind, match=rf"gs://bucket/a\.tar.*{words}") as raised:
        open_onwards("gs://bucket/a.tar", 0, 0.3)
    assert storage.tokens == {f"Bearer {SECRET}"}
    assert SECRET not in str(raised.value) + caplog.text
    assert time.monotonic() - begun < 10.0
    with pytest.raises(kind, match=r"gs://bucket/a\.tar"):
        read_store_range("gs://bucket/a.tar", 0, 10, 0.3)
    assert caplog.messages == []


def test_credentials_that_have_expired(storage, monkeypatch):
    async def refuse(*args, **options):
        raise RefreshError("invalid_grant: Token has been expired or revoked.", {"error": "invalid_grant"})

    monkeypatch.setattr(gcsfs.GCSFileSystem, "_call", refuse)
    with pytest.raises(BrokenShardError, match=r"gs://bucket/a\.tar: .*expired or revoked.*still valid"):
        find_store_size("gs://bucket/a.tar", 1.0)
