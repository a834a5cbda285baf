"""Rows in object stores: shards by URL, patterns and folders, and what is said of keys and credentials.

S3 is tried with the real s3fs against a local moto server, where both are installed, as in the extra ``dev``.
"""

import http.server
import io
import json
import pickle
import threading
import time
from itertools import islice

import fsspec
import numpy as np
import pytest
import soundfile
import yaml
from helpers.tar_shards import make_tar, open_place, read_values

from uniaudio.data.card import load_card
from uniaudio.data.sampler import iterate_units
from uniaudio.data.skipped_rows import BrokenShard
from uniaudio.data.sources import url_clips
from uniaudio.data.sources.base import BrokenShardError, Place
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.sources.url_files import classify_error, open_onwards, read_store_range
from uniaudio.errors import RowError, UserError, mask_values


@pytest.mark.parametrize("place", ["memory://set/*.tar", "memory://set/", "memory://set/a-{0..1}.tar"])
def test_a_pattern_a_folder_and_braces_name_the_shards_of_a_store(tmp_path, place):
    store = fsspec.filesystem("memory")
    for number in range(2):
        store.pipe(f"/set/a-{number}.tar", make_tar(3 * number, 3))
    store.pipe("/set/README.md", b"x")
    assert read_values(open_place(tmp_path, place)) == list(range(6))


@pytest.mark.parametrize("place", ["memory://nothing/*.tar", "memory://nothing/"])
def test_nothing_there_is_a_mistake(tmp_path, place):
    with pytest.raises(UserError, match=r"load\.webdataset: .*memory://nothing/"):
        open_place(tmp_path, place)


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, scheme, extra):
    def refuse(protocol):
        raise ImportError("Install the package to access it")

    monkeypatch.setattr(fsspec, "get_filesystem_class", refuse)
    with pytest.raises(
        UserError, match=rf"{scheme}://b/a.tar needs a package .*; pip install 'uniaudio\[{extra}\]'"
    ):
        open_place(tmp_path, f"{scheme}://b/a.tar")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pass@host/a.tar", "https://***@host/a.tar"),
        ("https://hf_abc@host/a.tar", "https://***@host/a.tar"),
        (
            "https://h/a.tar?X-Amz-Credential=AK%2Fx&X-Amz-Date=2026&X-Amz-Signature=f00&part=1",
            "https://h/a.tar?X-Amz-Credential=***&X-Amz-Date=***&X-Amz-Signature=***&part=1",
        ),
        ("https://h/a.tar?access_token=abc", "https://h/a.tar?access_token=***"),
        ("https://h/a.tar?sig=a%3D&sv=2", "https://h/a.tar?sig=***&sv=2"),
        ("hf://datasets/me/set@main/a.tar", "hf://datasets/me/set@main/a.tar"),
    ],
)
def test_secrets_in_urls_are_never_shown(url, shown):
    assert mask_values(f"{url}: 404") == f"{shown}: 404"
    assert shown in str(UserError(f"{url} is gone"))
    assert RowError("broken shard", f"{url}: 404").detail == f"{shown}: 404"
    skip = BrokenShard.estimate("d", url, 3, 0, RowError("broken shard", url))
    assert shown in skip.row


def test_rows_are_not_named_after_the_signature_of_a_url(tmp_path):
    source = open_place(tmp_path, "https://127.0.0.1:1/part.0/a-1.tar?X-Amz-Signature=s.e/cret")
    assert source.names == ["a-1"]


@pytest.mark.parametrize("problem", [PermissionError("Forbidden"), OSError(22, "Bad Request")])
def test_refused_credentials_are_not_tried_again(problem):
    error = classify_error(problem, "s3://b/a.tar")
    assert isinstance(error, BrokenShardError)
    assert "check that the credentials of the environment or profile are set" in str(error)
    assert not isinstance(
        classify_error(OSError(16, "Service Unavailable"), "s3://b/a.tar"), BrokenShardError
    )


@pytest.fixture
def s3(monkeypatch):
    """A local S3 with a bucket; gives its client."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    boto3 = pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_shards_of_s3(tmp_path, s3):
    for number in range(2):
        s3.put_object(Bucket="bucket", Key=f"set/a-{number}.tar", Body=make_tar(5 * number, 5))
    for place in ("s3://bucket/set/a-{0..1}.tar", "s3://bucket/set/*.tar", "s3://bucket/set/"):
        assert read_values(open_place(tmp_path, place)) == list(range(10))
    source = open_place(tmp_path, "s3://bucket/set/a-{0..1}.tar")
    (_, place) = list(islice(source.read(1, Place()), 2))[-1]
    rest = [row.columns["label"] for row, _ in source.read(1, place)]
    assert rest == [7, 8, 9]
    assert open_onwards("s3://bucket/set/a-0.tar", 512, 5.0).read(4) == make_tar(0, 5)[512:516]


def test_a_long_clip_of_s3_is_read_in_parts(tmp_path, s3, monkeypatch):
    """A segment of ten minutes takes the beginning, what the segment holds and no more; its text is the row's."""
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    levels = np.repeat(np.arange(600, dtype=np.int16), 16000)
    clip = io.BytesIO()
    soundfile.write(clip, levels, 16000, format="WAV")
    s3.put_object(Bucket="bucket", Key="long.wav", Body=clip.getvalue())
    fetched = []
    monkeypatch.setattr(
        url_clips, "read_store_range", lambda *args: fetched.append(args[2]) or read_store_range(*args)
    )
    row = {"audio": "s3://bucket/long.wav", "label": 1, "offset": 300.0, "duration": 10.0}
    (tmp_path / "m.jsonl").write_text(
        "\n".join(map(json.dumps, [row, {**row, "audio": "s3://bucket/gone.wav"}]))
    )
    card = {"dataset": "m", "load": {"jsonl": "m.jsonl"}, "license": "CC0", "splits": {"train": {}}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(card))
    there, gone = open_source(load_card(str(tmp_path / "m.yaml")), "train").rows()
    samples = there.audio[0].decode(10.0)
    assert (len(samples), samples[0], samples[-1]) == (160_000, 300, 309)
    assert sum(fetched) < 1 << 20
    assert not (tmp_path / "cache").exists()
    with pytest.raises(RowError, match=r"missing file: s3://bucket/gone\.wav"):
        gone.audio[0].decode(10.0)


def test_a_key_or_bucket_that_is_not_there(tmp_path, s3):
    s3.put_object(Bucket="bucket", Key="a-0.tar", Body=make_tar(0, 2))
    *rows, problem = open_place(tmp_path, "s3://bucket/a-{0..1}.tar").rows()
    assert len(rows) == 2
    assert (problem.reason, "s3://bucket/a-1.tar" in problem.detail) == ("broken shard", True)
    with pytest.raises(UserError, match=r"s3://none/\*\.tar"):
        open_place(tmp_path, "s3://none/*.tar")


@pytest.fixture
def odd_s3(monkeypatch):
    """A server that answers every request of S3 as told by its ``answer``: (status, code) or seconds to hang."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            answer = server.answer
            if isinstance(answer, float):
                time.sleep(answer)
                answer = (500, "InternalError")
            body = (
                f"<?xml version='1.0'?><Error><Code>{answer[1]}</Code><Message>no</Message></Error>".encode()
            )
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIASECRETKEY",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    server.shutdown()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ((400, "ExpiredToken"), BrokenShardError, "still valid"),
        ((403, "AccessDenied"), BrokenShardError, "still valid"),
        ((503, "SlowDown"), ConnectionError, ""),
        (1.5, ConnectionError, ""),
    ],
)
def test_what_a_store_refuses_or_delays(odd_s3, answer, kind, words):
    odd_s3.answer = answer
    with pytest.raises(kind, match=f"s3://bucket/a.tar.*{words}") as raised:
        open_onwards("s3://bucket/a.tar", 0, 0.5)
    assert "SECRET" not in str(raised.value).upper()


def test_a_hundred_thousand_shards_open_at_once(tmp_path):
    begun = time.process_time()
    source = open_place(tmp_path, "https://127.0.0.1:1/set/part-{000000..099999}.tar")
    first = next(iterate_units(len(source.shards), 0, 3, 8, seed=1, first=10_000))
    assert time.process_time() - begun < 4.0  # half a second on an idle machine
    assert first == list(iterate_units(len(source.shards), 0, 3, 8, seed=1))[10_000]
    assert source.names[99_999] == "part-099999"
    assert len(pickle.dumps(source)) < 20e6  # what a data worker holds
