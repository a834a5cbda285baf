"""Labelled folders: their manifests are read as those of training are."""

import json

import pytest
from made_up_files import clip_bytes, write_tar

from uniaudio.errors import UserError
from uniaudio.evaluate.probing.labelled_folder import load_labelled


@pytest.fixture
def folder(tmp_path):
    for n in range(4):
        (tmp_path / f"{n}.wav").write_bytes(clip_bytes(n))
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


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_manifests_of_every_kind(folder, suffix):
    write_rows(folder, suffix)
    read = load_labelled("set", folder)
    assert (read.classes, read.train_labels.tolist(), read.test_labels.tolist()) == (
        ("high", "low"),
        [1, 0],
        [1],
    )
    assert [int(clip[0]) for clip in (*read.train_clips, *read.test_clips)] == [0, 1, 2]


def test_clips_in_archives_and_segments(folder):
    write_tar(folder / "some.tar", [7])
    rows = [
        {"audio": "some.tar::0007.flac", "label": 1.0, "split": "train"},
        {"audio": "1.wav", "label": 2, "split": "train", "offset": 0.05, "duration": 0.05},
        {"audio": {"path": "2.wav"}, "label": "1", "split": "test"},
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = load_labelled("set", folder)
    assert (read.classes, [len(clip) for clip in read.train_clips]) == (("1", "2"), [1607, 800])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "0.wav", "split": "train"}, "has no 'label'; a probe needs audio, label and split"),
        ({"audio": "0.wav", "label": None, "split": "train"}, "'label' has no value"),
        ({"audio": "0.wav", "label": ["a", "b"], "split": "train"}, "a list is no text"),
        ({"audio": "gone.wav", "label": "a", "split": "train"}, r"gone\.wav: missing file"),
        ({"label": "a", "split": "train"}, "no audio column 'audio'"),
    ],
)
def test_rows_that_cannot_be_used_are_named(folder, row, message):
    good = [dict(zip(("audio", "label", "split"), line, strict=True)) for line in ROWS]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*good, row]))
    with pytest.raises(UserError, match=message):
        load_labelled("set", folder)


def test_a_folder_without_manifest(folder):
    with pytest.raises(
        UserError, match=r"--data set=\S+: there is no \S+manifest\.jsonl \(nor manifest\.csv"
    ):
        load_labelled("set", folder)
