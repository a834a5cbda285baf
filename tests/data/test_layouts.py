"""Layouts of files: metadata as the Hub's AudioFolder allows them, links, splits by name, what is skipped."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest
from helpers.files import card, clip_bytes, numbers, write_parquet, write_tar

from uniaudio.data.sources.base import Row
from uniaudio.data.sources.folder_walk import describe_left_out, walk_files
from uniaudio.data.sources.paths import TARS
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.sources.split_files import list_split_files
from uniaudio.data.sources.split_names import choose_files, find_named_splits, has_words
from uniaudio.errors import UserError


def write_clips(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(clip_bytes(1))


def audiofolder(tmp_path, split="train", **more):
    splits = {"train": {}, "test": {"name": "test"}, "valid": {"name": "validation"}}
    return open_source(card(tmp_path, {"audiofolder": "data"}, **{"splits": splits, **more}), split)


def labels(source):
    return [(row.key, row.columns.get("label")) for row in source.rows() if isinstance(row, Row)]


def write_metadata(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        names = list(rows[0])
        lines = [",".join(names), *(",".join(str(row[name] or "") for name in names) for row in rows)]
        file.write_text("\n".join(lines) + "\n")
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pyarrow.Table.from_pylist(rows), file)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_in_sub_folders(tmp_path, suffix):
    data = tmp_path / "data"
    write_clips(data, "a/0.wav", "a/1.wav", "b/0.wav", "b/2.wav")
    write_metadata(data / "a" / f"metadata.{suffix}", [{"file_name": "0.wav", "label": "low"}])
    rows = [{"file_name": "./0.wav", "label": "mid"}, {"file_name": "2.wav", "label": None}]
    write_metadata(data / "b" / f"metadata.{suffix}", rows)
    source = audiofolder(tmp_path)
    # a clip without metadata has no label where metadata give labels, least of all the name of its folder
    assert labels(source) == [("a/0.wav", "low"), ("a/1.wav", None), ("b/0.wav", "mid"), ("b/2.wav", None)]
    assert source.left_out == {"clip without metadata": 1}
    assert source.row(2).audio[0].read_seconds() == pytest.approx(0.1)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_at_the_root_beside_folders_of_splits(tmp_path, suffix):
    data = tmp_path / "data"
    write_clips(data, "train/0.wav", "train/1.wav", "test/0.wav")
    names = {"train/0.wav": "low", "train\\1.wav": "mid", "./test/0.wav": "high", "train/gone.wav": "none"}
    write_metadata(data / f"metadata.{suffix}", [{"file_name": n, "label": v} for n, v in names.items()])
    train = audiofolder(tmp_path)
    assert labels(train) == [("0.wav", "low"), ("1.wav", "mid"), ("gone.wav", "none")]
    assert train.left_out == {"folder beside train/": 1, "metadata row of another folder": 1}
    assert labels(audiofolder(tmp_path, "test")) == [("0.wav", "high")]
    # what lies nearer to a clip counts
    write_metadata(data / "train" / "metadata.csv", [{"file_name": "0.wav", "label": "near"}])
    assert labels(audiofolder(tmp_path))[0] == ("0.wav", "near")


def test_paths_that_begin_with_the_folder_of_their_metadata(tmp_path):
    data = tmp_path / "data"
    write_clips(data, "train/0.wav", "train/1.wav", "2.wav")
    rows = [{"file_name": name, "label": name[-5]} for name in ("train/0.wav", "train\\1.wav", "2.wav")]
    write_metadata(data / "train" / "metadata.jsonl", rows)
    assert labels(audiofolder(tmp_path)) == [("0.wav", "0"), ("1.wav", "1"), ("2.wav", "2")]
    gone = audiofolder(tmp_path).row(2).audio[0]  # the clip above is another one
    assert gone.source == data / "train" / "2.wav"


def test_suffixes_in_another_case_are_the_same_clip(tmp_path):
    data = tmp_path / "data"
    write_clips(data, "0.wav", "1.WAV", "2.wav", "2.WAV")
    rows = [{"file_name": f"{name}", "label": name[0]} for name in ("0.WAV", "1.wav", "2.WAV", "2.wav")]
    write_metadata(data / "metadata.jsonl", rows)
    source = audiofolder(tmp_path)
    assert labels(source) == [("0.wav", "0"), ("1.WAV", "1"), ("2.WAV", "2"), ("2.wav", "2")]
    assert source.left_out == {}


def test_names_of_clips_are_found_however_they_are_composed(tmp_path):
    write_clips(tmp_path / "data", "to\u0308ne.wav")
    write_metadata(tmp_path / "data" / "metadata.jsonl", [{"file_name": "t\u00f6ne.wav", "label": "x"}])
    assert labels(audiofolder(tmp_path)) == [("to\u0308ne.wav", "x")]


def test_two_clips_in_a_row_of_metadata(tmp_path):
    data = tmp_path / "data"
    write_clips(data, "a/0.wav", "b/0.wav", "c.wav")
    rows = [{"first_file_name": "a/0.wav", "second_file_name": "b/0.wav", "label": "same"}]
    write_metadata(data / "metadata.csv", rows)
    source = audiofolder(tmp_path, audio=["first", "second"])
    assert labels(source) == [("a/0.wav", "same")]
    assert [ref.source for ref in source.row(0).audio] == [data / "a" / "0.wav", data / "b" / "0.wav"]
    assert source.left_out == {"clip without metadata, not used": 2}
    with pytest.raises(
        UserError, match=r"metadata\.csv has clips for the audio columns first, second; name them"
    ):
        audiofolder(tmp_path)
    write_metadata(data / "metadata.csv", [{"path": "c.wav"}])
    with pytest.raises(UserError, match="every row of the metadata file needs a `file_name`"):
        audiofolder(tmp_path)


def test_bad_rows_of_metadata_are_rows_that_cannot_be_used(tmp_path):
    write_clips(tmp_path / "data", "0.wav")
    lines = ['{"file_name": "0.wav", "label": "a"}', "no json", '{"file_name": null, "label": "b"}']
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
    rows = list(audiofolder(tmp_path).rows())
    assert [getattr(row, "reason", "") for row in rows] == ["", "broken metadata", "missing column"]


@pytest.mark.parametrize(
    ("name", "content"), [("0.json", b"[1, 2]"), ("0.json", b"{"), ("0.txt", "Geräusch".encode("latin-1"))]
)
def test_a_file_beside_a_clip_that_holds_no_columns_does_not_cost_the_clip(tmp_path, name, content):
    write_clips(tmp_path / "data", "bird/0.wav", "bird/1.wav")
    (tmp_path / "data" / "bird" / name).write_bytes(content)
    source = audiofolder(tmp_path)
    assert labels(source) == [("bird/0.wav", "bird"), ("bird/1.wav", "bird")]
    suffix = name.partition(".")[2]
    assert source.left_out == {f".{suffix} next to a clip, not readable as columns": 1}


def test_texts_beside_clips_are_opened_only_where_something_uses_them(tmp_path):
    write_clips(tmp_path / "data", "bird/0.wav", "bird/1.wav", "dog/2.wav")
    (tmp_path / "data" / "bird" / "0.txt").write_text("a robin")
    (tmp_path / "data" / "bird" / "1.lab").write_bytes(
        "Geräusch".encode("latin-1")
    )  # whoever opens it counts it
    (tmp_path / "data" / "dog" / "2.json").write_text('{"label": "wolf", "speaker": 7}')
    unreadable = {".lab next to a clip, not readable as columns": 1}
    splits = {"train": {}, "robins": {"name": "train", "keep": "text == 'a robin'"}}
    whole = card(tmp_path, {"audiofolder": "data"}, splits=splits)

    def read(split="train", *used):
        source = open_source(replace(whole, used=frozenset(used)) if used else whole, split)
        rows = [row for row in source.rows() if isinstance(row, Row)]
        columns = [{k: v for k, v in row.columns.items() if k not in ("file_name", "audio")} for row in rows]
        return columns, source.left_out, source.fingerprint({"label"})

    named, wolf = {"label": "bird"}, {"label": "wolf", "speaker": 7}
    columns, left_out, fingerprint = read()
    assert (columns, left_out) == ([{**named, "text": "a robin"}, named, wolf], unreadable)
    assert read("train", "label") == ([named, named, wolf], {}, fingerprint)
    assert read("train", "label", "text")[:2] == (columns, unreadable)
    assert read("robins", "label")[:2] == ([{**named, "text": "a robin"}], unreadable)
    assert read("train", "missing")[:2] == (
        columns,
        unreadable,
    )  # the message about it names all that are there


def test_every_suffix_that_is_read_is_taken_and_others_are_left_out_by_number(tmp_path):
    names = ("a.WAV", "b.aif", "c.W64", "d.caf", "e.oga", "f.MP3", "g.sph")
    write_clips(tmp_path / "data", *names, "h.txt", "i.raw", "j", ".k.wav", ".git/l.wav")
    source = audiofolder(tmp_path)
    assert [row.key for row in source.rows()] == sorted(names)
    assert describe_left_out(source.left_out) == (
        "file with suffix .raw (1), file with suffix .txt (1), file without suffix (1), hidden file or folder (2)"
    )
    for name in names:
        (tmp_path / "data" / name).unlink()
    with pytest.raises(UserError, match=r"keeps no rows of \S+; skipped: file with suffix \.raw \(1\)"):
        audiofolder(tmp_path)


def test_links_to_folders_are_followed_once_and_never_in_circles(tmp_path):
    data, far = tmp_path / "data", tmp_path / "far"
    write_clips(data, "high/0.wav")
    write_clips(far, "low/0.wav", "low/1.wav", "clip.wav")
    (data / "low").symlink_to(far / "low")
    (data / "one.wav").symlink_to(far / "clip.wav")
    (data / "gone.wav").symlink_to(far / "nothing.wav")
    (data / "high" / "up").symlink_to(data)
    (data / "again").symlink_to(far / "low")
    source = audiofolder(tmp_path)
    assert labels(source) == [
        ("again/0.wav", "again"),
        ("again/1.wav", "again"),
        ("gone.wav", None),
        ("high/0.wav", "high"),
        ("one.wav", None),
    ]
    assert source.left_out["link to a folder that is already read"] == 2


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_shards_behind_links(tmp_path, kind):
    if kind == "parquet":
        write_parquet(tmp_path / "far", files=1, rows=3)
    else:
        write_tar(tmp_path / "far" / "train-0.tar", [1, 2])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "en").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "README.md").write_text("x")
    source = open_source(card(tmp_path, {kind: "data"}), "train")
    assert numbers(source.rows()) == ([(0, 0), (1, 1), (2, 2)] if kind == "parquet" else [(1, 1), (2, 2)])
    suffix = {"parquet": ".parquet", "webdataset": ".tar"}[kind]
    assert source.left_out == {f"no {suffix} file": 1}


def test_files_of_a_folder_that_is_read_under_two_names_come_once(tmp_path):
    write_clips(tmp_path, "a/0.wav")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    left_out = Counter()
    assert [str(file.relative_to(tmp_path)) for file in walk_files(tmp_path, left_out)] == ["a/0.wav"]
    assert left_out == {"link to a folder that is already read": 1}


@pytest.mark.parametrize(
    ("files", "name", "single"),
    [
        (["esc_train.tar", "esc_test.tar"], "train", ["esc_train.tar"]),
        (["esc_train.tar", "esc_test.tar"], "test", ["esc_test.tar"]),
        (["0000-train.parquet", "0000-test.parquet"], "test", ["0000-test.parquet"]),
        (["train-00000-of-00002.parquet", "test-0.parquet"], "train", ["train-00000-of-00002.parquet"]),
        (["a/dev-0.tar", "a/train-0.tar"], "validation", ["a/dev-0.tar"]),
        (["a_val.tar", "a_train.tar"], "validation", ["a_val.tar"]),
        (["a_val.tar", "a_valid.tar", "a_train.tar"], "val", ["a_val.tar"]),
        (["a_eval.tar", "a_train.tar"], "test", ["a_eval.tar"]),
        (["set-train/0.tar", "set-test/0.tar"], "train", ["set-train/0.tar"]),
        (["test/a_train.tar", "test/a.tar"], "train", ["test/a_train.tar"]),
        (["ESCTrain.tar", "ESC-TEST.tar"], "test", ["ESC-TEST.tar"]),
        (["train.clean.100/0.parquet", "test.clean/0.parquet"], "train", ["train.clean.100/0.parquet"]),
        (["x_train.tar", "x_train_extra.tar"], "train_extra", ["x_train_extra.tar"]),
        (["retrained.tar", "contest.tar"], "train", None),
    ],
)
def test_the_name_of_a_split_is_a_whole_word_of_a_path(files, name, single):
    chosen = choose_files([file.split("/") for file in files], name, {name})
    assert (None if chosen is None else [f for f, c in zip(files, chosen, strict=True) if c]) == single


def test_words_of_names():
    assert has_words("train-clean-100", "train.clean")
    assert not has_words("constrain", "train")
    assert find_named_splits("esc_train_v2") == {"train"}
    assert find_named_splits("dev-test") == {"validation", "test"}
    assert choose_files([["x_train.tar"], ["x_train_extra.tar"]], "train", {"train", "train_extra"}) == [
        True,
        False,
    ]


def split_card(tmp_path, load, *names):
    splits = {name: {"name": name} for name in ("train", "test", "validation")}
    for name in names:
        write_tar(tmp_path / "data" / name, [1])
    return card(tmp_path, {"webdataset": load}, splits=splits)


def chosen_names(card, split, left_out=None):
    return [Path(place).name for place in list_split_files(card, split, (".tar",), left_out)]


def test_files_that_name_other_splits_are_never_train(tmp_path):
    mixed = split_card(tmp_path, "data", "esc_train.tar", "esc_test.tar", "notes.tar")
    left_out = Counter()
    assert chosen_names(mixed, "train", left_out) == ["esc_train.tar"]
    assert left_out == {"file of another split": 1, "file whose path names no split": 1}
    with pytest.raises(UserError, match="has no split 'validation'"):
        list_split_files(mixed, "validation", (".tar",))
    (tmp_path / "data" / "esc_train.tar").unlink()
    with pytest.raises(
        UserError, match=r"splits\.train: \S+esc_test\.tar names another split \(test\) and no file"
    ):
        list_split_files(mixed, "train", (".tar",))
    # but what a card names itself, it means
    assert chosen_names(split_card(tmp_path, "data/esc_test.tar"), "train") == ["esc_test.tar"]
    both = split_card(tmp_path, "data", "a_train_test.tar", "b_train.tar")
    with pytest.raises(
        UserError, match=r"a_train_test\.tar names several splits \(test, train\); write {split}"
    ):
        list_split_files(both, "train", (".tar",))


def test_folders_of_splits_by_other_words_and_classes_that_are_called_train(tmp_path):
    data = tmp_path / "data"
    write_clips(data, "train_horn/0.wav", "dog/0.wav")
    assert labels(audiofolder(tmp_path)) == [("dog/0.wav", "dog"), ("train_horn/0.wav", "train_horn")]
    write_clips(data, "dev/low/0.wav", "Test/low/0.wav")
    assert labels(audiofolder(tmp_path, "valid")) == [("low/0.wav", "low")]
    assert labels(audiofolder(tmp_path, "test")) == [("low/0.wav", "low")]
    write_clips(tmp_path / "data", "train_clean/0.wav")
    with pytest.raises(
        UserError, match=r"several folders of \S+ name the split 'train' \(train_clean, train_horn\)"
    ):
        audiofolder(tmp_path)


def test_folders_of_other_splits_alone_are_refused(tmp_path):
    write_clips(tmp_path / "data", "test/a/0.wav", "dev/a/0.wav")
    with pytest.raises(UserError, match=r"has folders of other splits \(dev, test\) but none for 'train'"):
        audiofolder(tmp_path)


def test_patterns_take_files_by_suffix_in_any_depth(tmp_path):
    for name in ("a/x.tar", "a/b/y.TAR", "z.tar"):
        write_tar(tmp_path / "data" / name, [1])
    (tmp_path / "data" / "a" / "notes.txt").write_text("x")
    deep = card(tmp_path, {"webdataset": "data/**/*"})
    assert sorted(map(str.lower, chosen_names(deep, "train"))) == ["x.tar", "y.tar", "z.tar"]
    (tmp_path / "data" / "z.tar.xz").write_bytes(b"x")
    packed = card(tmp_path, {"webdataset": "data/z.tar.xz"})
    with pytest.raises(UserError, match=r"z\.tar\.xz has an unsupported compression; decompress it"):
        list_split_files(packed, "train", TARS)
    left_out = Counter()
    list_split_files(card(tmp_path, {"webdataset": "data"}), "train", TARS, left_out)
    assert left_out == {"compressed archive": 1, "no .tar file": 1}


def test_a_compressed_tar_beside_its_unpacked_one_is_not_read_twice(tmp_path):
    for name in ("x.tar", "x.tar.gz", "y.tgz"):
        write_tar(tmp_path / "data" / name, [1])
    left_out = Counter()
    for place in ("data", "data/*"):
        files = list_split_files(card(tmp_path, {"webdataset": place}), "train", TARS, left_out)
        assert [Path(file).name for file in files] == ["x.tar", "y.tgz"]
    assert +left_out == {"compressed archive next to the uncompressed one": 2}


def test_manifests_by_other_words_for_a_split(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("dev", "test", "esc_train"):
        (data / f"{name}.csv").write_text(f"audio,n\n{name}.wav,1\n")
    splits = {name: {"name": name} for name in ("train", "validation", "test")}
    for load in ("data", "data/{split}.csv"):
        tables = card(tmp_path, {"csv": load}, splits=splits)
        assert open_source(tables, "test").row(0).key == "test.wav"
    tables = card(tmp_path, {"csv": "data"}, splits=splits)
    assert open_source(tables, "validation").row(0).key == "dev.wav"
    assert open_source(tables, "train").row(0).key == "esc_train.wav"
    (data / "esc_train.csv").unlink()
    with pytest.raises(
        UserError, match=r"there is no manifest \S+manifest\.csv; there are dev\.csv, test\.csv"
    ):
        open_source(tables, "train")
