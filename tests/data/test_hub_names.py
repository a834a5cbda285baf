"""Datasets by their names on a Hub of this machine, through the real client libraries."""

import email.utils
import io
import shutil
import tarfile
import time
import zipfile

import datasets
import pyarrow.parquet as pq
import pytest
from helpers.files import add, card, clip_bytes, numbers, write_parquet, write_tar
from helpers.resuming import check_places
from huggingface_hub import snapshot_download
from local_hub.clients import connect_clients, go_offline

from uniaudio.data.sources.base import BrokenShardError, Place, Row
from uniaudio.data.sources.http import LOCATIONS, VERSIONS
from uniaudio.data.sources.retries import read_patiently
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError

NAME = "me/birds"
SPECIES = ["wren", "rook"]
README = """---
configs:
- config_name: calls
  default: true
  data_files:
  - {split: train, path: calls/train-*}
  - {split: test, path: calls/test-*}
- config_name: songs
  data_files:
  - {split: train, path: songs/*}
dataset_info:
- config_name: calls
  features:
  - {name: audio, dtype: audio}
  - name: label
    dtype: {class_label: {names: {'0': wren, '1': rook}}}
  - {name: n, dtype: int64}
  splits: [{name: train, num_bytes: 1, num_examples: 4}]
---
# Birds
"""


@pytest.fixture(autouse=True)
def fresh_addresses(monkeypatch):
    """Let no test know what others have seen of a file, and let nobody wait."""
    VERSIONS.clear()
    LOCATIONS.clear()
    pauses = []
    monkeypatch.setattr("uniaudio.hub_client.time.sleep", pauses.append)
    return pauses


@pytest.fixture
def repository(hub, tmp_path):
    folder = tmp_path / "hub" / "datasets" / NAME
    folder.mkdir(parents=True)
    return folder


def open_named(tmp_path, split="train", **more):
    load = {"hub": NAME, **more.pop("load", {})}
    return open_source(card(tmp_path, load, splits={split: {"name": split}}, **more), split)


def write_classes(folder, rows=4, name="train-00000-of-00001.parquet", first=0, features=True, samples=1600):
    """Write clips with classes as numbers, as ``push_to_hub`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(
        {
            "audio": [
                {"bytes": clip_bytes(i, count=samples), "path": f"{i}.wav"}
                for i in range(first, first + rows)
            ],
            "label": [i % 2 for i in range(first, first + rows)],
            "n": list(range(first, first + rows)),
        }
    ).with_format("arrow")[:]
    if features:
        kinds = {
            "audio": datasets.Audio(),
            "label": datasets.ClassLabel(names=SPECIES),
            "n": datasets.Value("int64"),
        }
        table = table.replace_schema_metadata(datasets.Features(kinds).arrow_schema.metadata)
    pq.write_table(table, folder / name, row_group_size=3, compression="none")


def test_a_thousand_shards_open_with_three_requests(hub, repository, tmp_path):
    write_classes(repository / "data", rows=3, name="train-00000-of-01000.parquet")
    first = repository / "data" / "train-00000-of-01000.parquet"
    for number in range(1, 1000):
        shutil.copyfile(first, first.with_name(f"train-{number:05d}-of-01000.parquet"))
    source = open_named(tmp_path)
    assert len(source.shards) == 1000
    row, _ = next(source.read(999, Place()))
    assert str(row.columns["label"]) == "wren"
    sent = hub.list_requests("birds")
    assert len(sent) <= 3, sent
    assert any("train-00999" in line for line in sent)


def test_a_row_group_is_one_request_behind_the_footer(hub, repository, tmp_path):
    write_classes(repository, rows=60, samples=15000)
    source = open_named(tmp_path)
    assert numbers(row for row, _ in source.read(0, Place(3))) == [(i, i) for i in range(3, 60)]
    # the description, the footer at the Hub and where it leads, and one part for each of 19 row groups
    assert (len(hub.list_requests("birds", host="hub")), len(hub.list_requests(host="cdn"))) == (2, 20)


@pytest.mark.parametrize("features", [True, False])
def test_classes_have_the_names_that_the_hub_says(hub, repository, tmp_path, features):
    write_classes(repository / "calls", features=features)
    write_classes(repository / "calls", name="test-0.parquet", first=4, rows=2, features=features)
    write_classes(repository / "songs", name="songs.parquet", first=8, rows=2, features=features)
    (repository / "README.md").write_text(README)
    source = open_named(tmp_path)
    stream = datasets.load_dataset(NAME, split="train", streaming=True)
    plain = [stream.features["label"].int2str(row["label"]) for row in stream.decode(False)]
    assert [str(row.columns["label"]) for row in source.rows()] == plain == ["wren", "rook"] * 2
    assert [str(label) for label in source.classes["label"].values] == stream.features["label"].names
    assert check_places(source) == [4]
    assert numbers(open_named(tmp_path, "test").rows()) == [(4, 4), (5, 5)]
    assert numbers(open_named(tmp_path, load={"config": "songs"}).rows()) == [(8, 8), (9, 9)]
    with pytest.raises(UserError, match=r"no split 'tset' \(did you mean 'test'\?\); it has train, test"):
        open_named(tmp_path, "tset")
    with pytest.raises(
        UserError, match=r"no configuration 'song' \(did you mean 'songs'\?\); it has calls, songs"
    ):
        open_named(tmp_path, load={"config": "song"})
    (repository / "README.md").write_text(README.replace("  default: true\n", ""))
    with pytest.raises(UserError, match=r"several configurations; set `config` to one of calls, songs"):
        open_named(tmp_path)


def write_folder(folder, kind, first=0):
    """Write an audiofolder whose metadata are of a kind."""
    rows = [{"file_name": f"{n}.wav", "n": n + first} for n in range(3)]
    clips = {f"{n}.wav": clip_bytes(n) for n in range(3)}
    table = datasets.Dataset.from_list(rows)
    text = io.BytesIO()
    {"csv": table.to_csv, "zip": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[kind](
        text
    )
    if kind == "zip":
        with zipfile.ZipFile(folder / "train.zip", "w") as archive:
            for name, content in {"metadata.csv": text.getvalue(), **clips}.items():
                archive.writestr(name, content)
        return
    (folder / f"metadata.{kind}").write_bytes(text.getvalue())
    for name, content in clips.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_folders_of_clips_with_metadata(hub, repository, tmp_path, kind):
    write_folder(repository, kind)
    source = open_named(tmp_path)
    assert len(hub.list_requests("birds", host="hub")) == 2  # the description and the metadata
    assert [(int(row.columns["n"]), int(row.audio[0].decode(1)[0])) for row in source.rows()] == [
        (i, i) for i in range(3)
    ]
    assert len(hub.list_requests("birds", host="hub")) == 5  # and each clip once
    again = open_named(tmp_path)
    assert again.fingerprint(["n"]) == source.fingerprint(["n"])
    (repository / f"metadata.{kind}").write_bytes(b"")
    write_folder(repository, kind, first=1)
    assert open_named(tmp_path).fingerprint(["n"]) != source.fingerprint(["n"])


def test_a_zip_of_clips_is_left_to_datasets(repository, tmp_path):
    write_folder(repository, "zip")
    source = open_named(tmp_path)
    assert numbers(source.rows()) == [(i, i) for i in range(3)]
    assert check_places(source) == [3]


def test_class_folders_without_metadata_are_read_in_two_splits(hub, repository, tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for label in ("rook", "wren"):
            folder = repository / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.wav").write_bytes(clip_bytes(number))
    (repository / "README.md").write_text("# Birds\n")
    source = open_named(tmp_path)
    assert len(hub.list_requests("birds")) == 1
    rows = [
        (row.columns["file_name"], row.columns["label"], int(row.audio[0].decode(1)[0]))
        for row in source.rows()
    ]
    assert rows == [(f"{label}/{n}.wav", label, n) for label in ("rook", "wren") for n in range(3)]
    assert [row.columns["label"] for row in open_named(tmp_path, "test").rows()] == ["rook"] * 2 + [
        "wren"
    ] * 2


def test_a_clip_that_metadata_name_and_nobody_has_is_skipped_without_a_request(hub, repository, tmp_path):
    write_folder(repository, "csv")
    (repository / "metadata.csv").write_text("file_name,n\n0.wav,0\n9.wav,9\n")
    source = open_named(tmp_path)
    before = len(hub.requests)
    rows = list(source.rows())
    named = [row.columns["file_name"] for row in rows if not isinstance(row, RowError)]
    assert named == ["0.wav", "1.wav", "2.wav"]
    (error,) = [row for row in rows if isinstance(row, RowError)]
    assert error.reason == "missing file"
    assert len(hub.requests) == before


def test_a_path_that_leads_out_of_the_repository_is_no_clip_in_it(hub, repository, tmp_path):
    write_folder(repository, "csv")
    (repository / "metadata.csv").write_text("file_name,n\n../../0.wav,7\n1.wav,1\n")
    (error,) = [row for row in open_named(tmp_path).rows() if isinstance(row, RowError)]
    assert (error.reason, "holds no ../../0.wav" in error.detail) == ("missing file", True)


def test_tars_have_the_columns_of_both_libraries_and_go_on_within(hub, repository, tmp_path):
    for number in range(2):
        write_tar(repository / f"train-{number}.tar", range(4 * number, 4 * number + 4))
    source = open_named(tmp_path, audio="flac")
    rows = list(source.rows())
    assert numbers(rows) == [(i, i) for i in range(8)]
    assert rows[1].columns["json"] == {"n": 1, "duration": 1601 / 16000}
    assert rows[1].columns["txt"] == rows[1].columns["text"] == "text 1"
    assert len(hub.list_requests("birds", host="hub")) == 3  # the description, and each tar once
    assert check_places(source) == [4, 4]
    before = hub.count_bytes("GET .*/[0-9a-f]{64}")
    place = [behind for _, behind in source.read(1, Place())][2]
    sent = hub.count_bytes("GET .*/[0-9a-f]{64}") - before
    assert numbers(row for row, _ in source.read(1, place)) == [(7, 7)]
    assert hub.count_bytes("GET .*/[0-9a-f]{64}") - before - sent < sent


def test_a_repository_of_tars_and_parquet_is_left_to_datasets(repository, tmp_path):
    write_parquet(repository, files=1, rows=2)
    with tarfile.open(repository / "train-extra.tar", "w") as tar:
        add(tar, "a.wav", clip_bytes(1))
    assert type(open_named(tmp_path)).__name__ == "StreamedSource"


def test_private_and_gated_repositories_open_with_a_token(hub, repository, tmp_path, monkeypatch):
    write_classes(repository)
    hub.private.add(f"datasets/{NAME}")
    private = r"load\.hub: me/birds cannot be opened: there is no such dataset on the Hub, or it is private: .*HF_TOKEN"
    with pytest.raises(UserError, match=private):
        open_named(tmp_path)
    connect_clients(monkeypatch, hub, tmp_path / "hf", token="hf_me")
    assert len(numbers(open_named(tmp_path).rows())) == 4
    hub.private.clear()
    hub.gated[f"datasets/{NAME}"] = {"me"}
    assert len(numbers(open_named(tmp_path).rows())) == 4
    assert all(not r.user for r in hub.requests if r.host == "cdn")
    hub.gated[f"datasets/{NAME}"] = {"someone"}
    gated = r"it is gated; accept its conditions at http://127\.0\.0\.1:\d+/datasets/me/birds$"
    with pytest.raises(UserError, match=gated):
        open_named(tmp_path)
    connect_clients(monkeypatch, hub, tmp_path / "hf")
    with pytest.raises(
        UserError, match=r"datasets/me/birds, and log in with `hf auth login` or set HF_TOKEN"
    ):
        open_named(tmp_path)
    connect_clients(monkeypatch, hub, tmp_path / "hf", token="hf_old")
    with pytest.raises(UserError, match="the Hub does not know your token"):
        open_named(tmp_path)


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, repository, tmp_path):
    write_classes(repository, rows=2)
    old = repository.with_name("birds@v1")
    write_classes(old, rows=1, first=5)
    write_classes(
        repository.with_name("birds@refs%2Fconvert%2Fparquet") / "default" / "train", rows=1, first=7
    )
    assert numbers(open_named(tmp_path).rows()) == [(0, 0), (1, 1)]
    commit = hub.repositories.read_commit(old).sha
    for revision in ("v1", commit):
        assert numbers(open_named(tmp_path, load={"revision": revision}).rows()) == [(5, 5)]
    converted = open_named(tmp_path, load={"revision": "refs/convert/parquet"})
    assert numbers(converted.rows()) == [(7, 7)]
    with pytest.raises(UserError, match="the Hub has no revision 'v2' of it; check its branches"):
        open_named(tmp_path, load={"revision": "v2"})


def test_what_is_read_is_of_one_commit(hub, repository, tmp_path):
    """A file that changes while a run goes on is another one, and the old one is gone with its commit here."""
    write_classes(repository)
    source = open_named(tmp_path)
    before = source.fingerprint(())
    assert open_named(tmp_path).fingerprint(()) == before
    (repository / "README.md").write_text("# words")
    assert open_named(tmp_path).fingerprint(()) == before
    write_classes(repository, first=1)
    assert open_named(tmp_path).fingerprint(()) != before
    VERSIONS.clear()
    with pytest.raises(BrokenShardError, match=r"404 Not Found.*Invalid rev id"):
        next(source.read(0, Place()))


def test_offline_what_was_fetched_is_read(hub, repository, tmp_path, monkeypatch):
    write_classes(repository)
    with monkeypatch.context() as patch:
        go_offline(patch)
        message = r"HF_HUB_OFFLINE is set, and .* not in the cache \S+; run `hf download me/birds --repo-type dataset`"
        with pytest.raises(UserError, match=message):
            open_named(tmp_path)
    snapshot_download(NAME, repo_type="dataset")
    before = len(hub.requests)
    go_offline(monkeypatch)
    rows = list(open_named(tmp_path).rows())
    assert (numbers(rows), str(rows[1].columns["label"])) == ([(i, i) for i in range(4)], "rook")
    assert len(hub.requests) == before


def test_what_passes_is_tried_again(hub, repository, tmp_path, fresh_addresses, capsys):
    write_classes(repository)
    hub.faults.add("api/datasets", 429, headers={"Retry-After": "7"})
    hub.faults.add("api/datasets", 503)
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    hub.faults.add("api/datasets", 503, headers={"Retry-After": date})
    source = open_named(tmp_path)
    assert fresh_addresses[:2] == [7.0, 2.0]
    assert 20 < fresh_addresses[2] <= 30
    assert "the Hub does not answer properly (HTTP 429); tried again in 7 s" in capsys.readouterr().err
    hub.faults.add("GET .*/[0-9a-f]{64}", cut_after=100)
    hub.faults.add("resolve", 429, headers={"Retry-After": "9"})
    slept = []
    rows = [row for row, _ in read_patiently(source, 0, Place(), "birds", sleep=slept.append)]
    assert numbers(rows) == [(i, i) for i in range(4)]
    assert sorted(slept) == [2.0, 9.0]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "the Hub takes no more requests for now .429.; wait a few minutes, or log in"),
        (503, "the Hub answers 503, several times; try again later"),
        (403, "the Hub refuses access .403."),
    ],
)
def test_what_lasts_is_one_sentence(hub, repository, tmp_path, status, message):
    hub.faults.add(".", status, times=None)
    with pytest.raises(UserError, match=f"load.hub: me/birds cannot be opened: {message}"):
        open_named(tmp_path)


def test_a_hub_that_is_not_there_is_named(hub, repository, tmp_path, monkeypatch):
    for server in hub.servers.values():
        server.server_close()
    with pytest.raises(UserError, match=r"the Hub \(http://127\S+\) cannot be reached .*HF_HUB_OFFLINE=1"):
        open_named(tmp_path)


def test_a_name_that_is_none_is_refused(hub, tmp_path):
    with pytest.raises(UserError, match="there is no such dataset on the Hub"):
        open_source(card(tmp_path, {"hub": "me/nothing"}), "train")
    with pytest.raises(UserError, match="no such folder, and names on the Hub are written OWNER/NAME"):
        open_source(card(tmp_path, {"hub": "me/birds/more"}), "train")


def test_an_expired_location_is_looked_up_again(hub, repository, tmp_path):
    write_classes(repository)
    source = open_named(tmp_path)
    list(source.read(0, Place()))
    assert LOCATIONS
    hub.faults.add("GET .*/[0-9a-f]{64}", 403)
    assert all(isinstance(row, Row) for row, _ in source.read(0, Place()))
