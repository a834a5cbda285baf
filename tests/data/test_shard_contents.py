"""Files behind shards that changed under their names: what is known of both is compared, and nothing else."""

import os
import re
from types import SimpleNamespace

import pytest
from helpers.files import card, write_parquet, write_tar
from helpers.range_server import serve_ranges
from helpers.sources import Rows, Shards

from uniaudio.data import shard_contents
from uniaudio.data.shard_contents import (
    describe_contents,
    describe_rewritten_files,
    explain_change,
    merge_contents,
    read_write_times,
)
from uniaudio.data.sources.file_fingerprints import ENDS, name_places
from uniaudio.data.sources.http import VERSIONS
from uniaudio.data.sources.source_kinds import open_source


def mix(*sources):
    """What a mixture states of its data sets, which are called set0, set1 and so on."""
    entries = [
        SimpleNamespace(name=f"set{i}:train", dataset=SimpleNamespace(name=f"set{i}"))
        for i in range(len(sources))
    ]
    return SimpleNamespace(recipe=SimpleNamespace(train=entries), sources=sources)


def overwrite(file, place, content):
    with file.open("r+b") as stream:
        stream.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
        stream.write(content)


@pytest.fixture
def tar(tmp_path):
    """A tar whose both ends leave a middle."""
    file = tmp_path / "data" / "set.tar"
    write_tar(file, range(100))
    assert file.stat().st_size > 3 * ENDS
    return file


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(shard_contents, "AT_ONCE", 1)  # the server serves one address at a time
    with serve_ranges() as serving:
        serving.files = {"/a.tar": b"a" * 100, "/b.tar": b"b" * 200}
        yield serving
    VERSIONS.clear()


def open_urls(tmp_path, server, *names, kind="webdataset"):
    return open_source(card(tmp_path, {kind: [f"{server.root}/{name}" for name in names]}), "train")


@pytest.mark.parametrize("place", [600, -2000])
def test_an_edit_of_equal_size_at_an_end_of_a_tar_is_named(tar, tmp_path, place):
    mixture = mix(Rows(3), open_source(card(tmp_path, {"webdataset": str(tar.parent)}), "train"))
    before = describe_contents(mixture)
    assert [*before] == ["set1:train"]
    assert explain_change(mixture, before, describe_contents(mixture)) == ""
    size, fingerprint = tar.stat().st_size, mixture.sources[1].fingerprint(set())
    overwrite(tar, place, b"edited")
    assert tar.stat().st_size == size
    assert mixture.sources[1].fingerprint(set()) == fingerprint  # older runs go on
    assert explain_change(mixture, before, describe_contents(mixture)) == (
        f"dataset set1: {tar} is not what it was at the checkpoint (the first or last 64 KiB changed): put it back as "
        "it was, or start a new run from the checkpoint's weights"
    )


def test_each_of_several_parquet_files_is_compared_once(tmp_path):
    write_parquet(tmp_path / "data")
    mixture = mix(open_source(card(tmp_path, {"parquet": str(tmp_path / "data")}), "train"))
    before = describe_contents(mixture)
    assert len(mixture.sources[0].shards) == 4  # two row groups of each
    assert len(before["set0:train"]) == 2
    second = max((tmp_path / "data").iterdir())
    overwrite(second, 100, bytes(8))
    assert str(second) in explain_change(mixture, before, describe_contents(mixture))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = mix(open_source(card(tmp_path, {"parquet": str(tmp_path / "elsewhere")}), "train"))
    assert explain_change(moved, describe_contents(moved), describe_contents(moved)) == ""


def test_data_that_were_moved_hold_the_same(tar, tmp_path):
    before = describe_contents(mix(open_source(card(tmp_path, {"webdataset": str(tar)}), "train")))
    tar.rename(tmp_path / "set.tar")
    moved = mix(open_source(card(tmp_path, {"webdataset": str(tmp_path / "set.tar")}), "train"))
    assert describe_contents(moved) == before
    assert None not in before["set0:train"]


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_another_length_on_a_web_server_is_named(tmp_path, server, kind):
    server.files = {"/a.parquet": b"a" * 100, "/b.parquet": b"b" * 200, **server.files}
    suffix = "tar" if kind == "webdataset" else kind
    mixture = mix(open_urls(tmp_path, server, f"a.{suffix}", f"b.{suffix}", kind=kind))
    before = describe_contents(mixture)
    assert before == {"set0:train": ["100", "200"]}
    assert [request["Range"] for request in server.requests] == ["bytes=0-0"] * 2
    server.files[f"/b.{suffix}"] += b"b"
    assert explain_change(mixture, before, describe_contents(mixture)) == (
        f"dataset set0: {server.root}/b.{suffix} is not what it was at the checkpoint (201 bytes instead of 200): put "
        "it back as it was, or start a new run from the checkpoint's weights"
    )


def test_mirrors_with_other_etags_and_dates_are_one_server(tmp_path, server):
    """And whoever reads the file afterwards may be served by either."""
    mixture = mix(open_urls(tmp_path, server, "a.tar"))
    seen = []
    for mirror in ("one", "two"):

        def answer(first, last, mirror=mirror):
            code, headers, body = server.proper(first, last)
            return code, {**headers, "ETag": f'"{mirror}"', "Last-Modified": mirror}, body

        server.answer = answer
        seen.append(describe_contents(mixture))
        assert not VERSIONS
    assert seen == [{"set0:train": ["100"]}] * 2


def test_a_server_without_ranges_states_the_length_too(tmp_path, server):
    server.answer = lambda first, last: (200, {}, server.content)
    assert describe_contents(mix(open_urls(tmp_path, server, "b.tar"))) == {"set0:train": ["200"]}


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 429, 500, 501, 503])
def test_a_server_that_refuses_leaves_the_names_alone(tmp_path, server, code):
    mixture = mix(open_urls(tmp_path, server, "a.tar"))
    known = describe_contents(mixture)
    server.answer = lambda first, last: (code, {"Retry-After": "100"}, b"")
    refused = describe_contents(mixture)
    assert refused == {"set0:train": [None]}
    assert len(server.requests) == 2  # it is not tried again
    assert explain_change(mixture, known, refused) == explain_change(mixture, refused, known) == ""


def test_a_server_that_states_no_length_or_is_not_there_leaves_the_names_alone(tmp_path, server):
    server.answer = lambda first, last: (206, {"Content-Range": f"bytes {first}-{last}/*"}, b"a")
    assert describe_contents(mix(open_urls(tmp_path, server, "a.tar"))) == {"set0:train": [None]}
    place = re.sub(r":\d+$", ":9", server.root)  # where nobody listens
    gone = open_source(card(tmp_path, {"webdataset": f"{place}/a.tar"}), "train")
    assert describe_contents(mix(gone)) == {"set0:train": [None]}


def test_the_hub_gets_no_request_without_a_network(tmp_path, server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.root)
    mixture = mix(open_urls(tmp_path, server, "a.tar"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert describe_contents(mixture) == {"set0:train": [None]}
    assert not server.requests
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert describe_contents(mixture) == {"set0:train": ["100"]}


def test_nothing_is_looked_at_when_the_time_is_over(tar, tmp_path, server, monkeypatch):
    source = open_urls(tmp_path, server, "a.tar", "b.tar")
    local = open_source(card(tmp_path, {"webdataset": str(tar)}), "train")
    monkeypatch.setattr(shard_contents, "LONGEST", 0.0)
    assert describe_contents(mix(source, local)) == {"set0:train": [None, None], "set1:train": [None]}
    assert not server.requests


def test_what_is_not_known_now_is_remembered():
    before, now = {"a": ["1", "2", None]}, {"a": ["3", None, None], "b": [None, "4"]}
    assert merge_contents(before, now) == {"a": ["3", "2", None], "b": [None, "4"]}
    assert merge_contents({}, now) == now


def test_sources_that_know_their_content_otherwise_are_not_looked_at():
    assert describe_contents(mix(Rows(3), Shards(2, 3))) == {}


URL = "https://host/set/a.tar"


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("", ""),
        ("?file=a.tar&v=2", "?file=a.tar&v=2"),
        ("?expires=never&policy=open&se=5", "?expires=never&policy=open&se=5"),  # nothing signs it
        ("?X-Amz-Algorithm=A&X-Amz-Date=1&versionId=7&X-Amz-Signature=0f", "?versionId=7"),
        ("?x-goog-date=1&x-goog-signature=0f", ""),
        ("?Expires=1&Signature=0f&Key-Pair-Id=K&part=3", "?part=3"),
        ("?AWSAccessKeyId=K&Signature=0f&Expires=1", ""),
        ("?sv=2024&sr=b&se=2026-01-01&sp=r&sig=0f&snapshot=4", "?snapshot=4"),
    ],
)
def test_signatures_are_no_part_of_a_name(query, kept):
    assert name_places([f"{URL}{query}", "/data/b.tar"]) == [f"{URL}{kept}", "b.tar"]


def test_a_url_that_is_signed_anew_is_the_same_data(tmp_path):
    def take(name, query):
        load = {"webdataset": [f"https://host/{name}.tar?X-Amz-Signature={query}", "https://host/z.tar"]}
        return open_source(card(tmp_path, load), "train").fingerprint(set())

    assert take("a", "1") == take("a", "2")
    assert take("b", "1") != take("a", "1")


def test_files_that_were_written_and_look_the_same_are_named(tar, tmp_path, server):
    """An edit in the middle that keeps the size changes neither fingerprint nor ends; a file by URL has no time."""
    write_tar(tar.with_name("other.tar"), range(100))
    mixture = mix(
        open_source(card(tmp_path, {"webdataset": str(tar.parent)}), "train"),
        open_urls(tmp_path, server, "a.tar"),
    )
    for file, second in ((tar, 1_000_000_000), (tar.with_name("other.tar"), 1_000_000_001)):
        os.utime(file, (second, second))
    contents, before = describe_contents(mixture), read_write_times(mixture)
    assert before == {"set0:train": [1_000_000_001, 1_000_000_000], "set1:train": [None]}
    assert describe_rewritten_files(mixture, before, read_write_times(mixture)) == []
    overwrite(tar, tar.stat().st_size // 2, b"edited")
    assert describe_contents(mixture) == contents
    (sentence,) = describe_rewritten_files(mixture, before, read_write_times(mixture))
    assert sentence == (
        f"dataset set0: {tar} has been written since the checkpoint, or copied; sizes and both ends are the same, what "
        "lies between them is not compared"
    )
    os.utime(tar.with_name("other.tar"))
    (sentence,) = describe_rewritten_files(mixture, before, read_write_times(mixture))
    assert f"{tar.with_name('other.tar')} and 1 more of 2 files have been written" in sentence
    assert describe_rewritten_files(mixture, {}, before) == []  # the checkpoint of an earlier version
    tar.unlink()
    assert read_write_times(mixture)["set0:train"][1] is None
