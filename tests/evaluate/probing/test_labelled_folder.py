"""Labelled folders: their manifests are read as those of training are."""

import json

import pytest
from helpers.files import clip_bytes, write_tar

from uniaudio.errors import UserError
from uniaudio.evaluate.probing.labelled_folder import build_folder_suite, hold_folders
from uniaudio.evaluate.probing.lost_classes import UnmeasurableTaskError


@pytest.fixture
def folder(tmp_path):
    for n in range(4):
        (tmp_path / f"{n}.wav").write_bytes(clip_bytes(n + 1))
    return tmp_path


ROWS = [
    ("0.wav", "low", "train"),
    ("1.wav", "high", "train"),
    ("2.wav", "low", "test"),
    ("3.wav", "x", "other"),
]


def write_rows(folder, suffix, rows=ROWS, encoding="utf-8-sig"):
    names = ("audio", "label", "split")
    if suffix == ".jsonl":
        text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    else:
        sign = {".csv": ",", ".tsv": "\t"}[suffix]
        text = "".join(sign.join(map(str, row)) + "\r\n" for row in [names, *rows])
    (folder / f"manifest{suffix}").write_text(text, encoding=encoding, newline="")


def read_folder(folder):
    """The rows of a labelled folder, and what was said of them."""
    sentences = []
    (rows,) = hold_folders({"set": folder}, sentences.append)
    return rows, sentences


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_manifests_of_every_kind(folder, suffix):
    write_rows(folder, suffix)
    rows, sentences = read_folder(folder)
    assert (rows.classes, rows.answers) == (("high", "low"), ("low", "high", "low"))
    assert {part: members.tolist() for part, members in rows.parts.items()} == {"train": [0, 1], "test": [2]}
    assert [int(clip[0]) for clip in rows.clips] == [1, 2, 3]  # the row of another split is none of its rows
    assert sentences == []


def test_clips_in_archives_and_segments(folder):
    write_tar(folder / "some.tar", [7])
    lines = [
        {"audio": "some.tar::0007.flac", "label": 1.0, "split": "train"},
        {"audio": "1.wav", "label": 2, "split": "train", "offset": 0.05, "duration": 0.05},
        {"audio": {"path": "2.wav"}, "label": "1", "split": "test"},
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    rows, _ = read_folder(folder)
    assert (rows.classes, [len(clip) for clip in rows.clips[:2]]) == (("1", "2"), [1607, 800])


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"audio": "0.wav", "split": "train"}, "missing column", "no column 'label'; columns: audio, split"),
        ({"audio": "0.wav", "label": "a"}, "missing column", "no column 'split'"),
        ({"audio": "0.wav", "label": None, "split": "train"}, "missing column", "'label' has no value"),
        ({"audio": "0.wav", "label": ["a", "b"], "split": "train"}, "broken metadata", "a list is not text"),
        ({"audio": "0.wav", "label": "a", "split": ["train"]}, "broken metadata", "'split' must be one text"),
        ({"audio": "gone.wav", "label": "low", "split": "test"}, "missing file", "gone.wav"),
        ({"label": "a", "split": "train"}, "missing column", "no audio column 'audio'"),
        (
            {"audio": "0.wav", "label": "low", "split": "train", "duration": 9.0},
            "stated duration is wrong",
            "9.00 s stated",
        ),
    ],
)
def test_unusable_rows_are_skipped_and_reported(folder, row, reason, detail):
    good = [dict(zip(("audio", "label", "split"), line, strict=True)) for line in ROWS]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*good, row]))
    rows, (sentence,) = read_folder(folder)
    (skip,) = rows.skipped
    assert (skip.source, skip.reason) == ("set", reason)
    assert detail in skip.detail
    assert sentence.startswith(f"set: 1 row skipped: 1 {reason}; first skipped row: ")
    assert rows.answers == ("low", "high", "low")


def test_a_folder_whose_test_clips_are_all_unusable_ends_with_the_first_reason(folder):
    write_rows(folder, ".csv")
    (folder / "2.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"task set: no row of 'test' can be used; first skipped row: 2\.wav"):
        read_folder(folder)


def write_named(folder, labels, splits=("train", "train", "test", "test")):
    """Write a folder beside it with a row for each of its four clips."""
    folder.mkdir()
    rows = [(f"../{i}.wav", *pair) for i, pair in enumerate(zip(labels, splits, strict=True))]
    write_rows(folder, ".csv", rows)
    return folder


def test_folders_with_too_few_classes_are_left_out(folder):
    folders = {
        "one": write_named(folder / "one", "aaaa"),
        "good": write_named(folder / "good", "abab"),
        "apart": write_named(folder / "apart", "aaba"),
        "untested": write_named(folder / "untested", "abab", ("train",) * 4),
    }
    sentences = []
    held = hold_folders(folders, sentences.append)
    assert [(rows.name, rows.answers) for rows in held] == [("good", ("a", "b", "a", "b"))]
    assert sentences == [
        "one is left out: 'label' names 1 class, too few to probe",
        "apart is left out: too few classes are left: none of the training rows has class 'b'",
        "untested is left out: split 'test' holds no usable rows",
    ]
    del folders["good"]
    with pytest.raises(UnmeasurableTaskError) as raised:
        hold_folders(folders, sentences.append)
    assert str(raised.value) == (
        "task one: 'label' names 1 class, too few to probe; task apart: too few classes are left: none of the "
        "training rows has class 'b'; task untested: split 'test' holds no usable rows"
    )
    assert len(sentences) == 3


def test_a_folder_whose_clips_cannot_be_decoded_is_left_out(folder):
    folders = {"bad": write_named(folder / "bad", "abab"), "good": write_named(folder / "good", "abab")}
    (folder / "bad" / "manifest.csv").write_text(
        (folder / "bad" / "manifest.csv").read_text(encoding="utf-8").replace("../", "")
    )
    for number in range(4):
        (folder / "bad" / f"{number}.wav").write_bytes(b"no audio")
    sentences = []
    assert [rows.name for rows in hold_folders(folders, sentences.append)] == ["good"]
    (sentence,) = sentences
    assert sentence.startswith("bad is left out: no clip can be used; first skipped row: ")


def test_a_folder_with_other_columns_is_refused_beside_a_good_one(folder):
    good = write_named(folder / "good", "abab")
    other = write_named(folder / "other", "abab")
    text = (other / "manifest.csv").read_text(encoding="utf-8-sig").replace("label", "class")
    (other / "manifest.csv").write_text(text)
    with pytest.raises(
        UserError, match=r"^task other: no row can be used; first skipped row: .* \(no column 'label'"
    ):
        hold_folders({"good": good, "other": other}, print)


@pytest.mark.parametrize(
    ("takes_suite", "advice"),
    [
        (False, "write one"),
        (
            True,
            "to probe data through their card, write a suite with "
            "`tasks: {set: {dataset: CARD, domain: null}}` and give it as --suite FILE",
        ),
    ],
)
def test_a_folder_without_manifest(folder, takes_suite, advice):
    with pytest.raises(UserError) as raised:
        build_folder_suite({"set": folder}, takes_suite=takes_suite)
    assert str(raised.value) == (
        f"--data set={folder}: there is no {folder}/manifest.jsonl (nor manifest.csv, manifest.tsv) with the "
        f"columns audio, label and split; {advice}"
    )


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"^guard\.sets old=\S+/gone: there is no such folder$"):
        build_folder_suite({"old": tmp_path / "gone"}, "guard.sets")
