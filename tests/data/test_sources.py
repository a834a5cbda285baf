import io
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import soundfile

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.audio import decode
from uniaudio.data.card import load_card
from uniaudio.data.source import open_source
from uniaudio.errors import UserError


def card(tmp_path, load, **more):
    content = {"dataset": "set", "load": load, "license": "CC0-1.0", "splits": {"train": {}}, **more}
    path = tmp_path / "set.yaml"
    path.write_text(dump_yaml(content))
    return load_card(str(path))


def clip_bytes(value):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(1600, value, np.int16), 16000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def parquet(tmp_path):
    """Ten rows in two files with row groups of three, audio embedded as the Hub has it."""
    folder = tmp_path / "data"
    folder.mkdir()
    for part in range(2):
        rows = [
            {
                "audio": {"bytes": clip_bytes(i), "path": f"{i}.wav"},
                "label": "even" if i % 2 == 0 else "odd",
                "n": i,
            }
            for i in range(part * 5, part * 5 + 5)
        ]
        pq.write_table(
            pyarrow.Table.from_pylist(rows), folder / f"train-{part:05d}-of-00002.parquet", row_group_size=3
        )
    return tmp_path


def numbers(rows):
    return [(row.columns["n"], int(decode(row.audio[0].source, 1, row.key)[0])) for row in rows]


def test_parquet_by_index_and_as_a_stream(parquet):
    source = open_source(card(parquet, {"parquet": "data"}), "train")
    assert source.size == 10
    assert numbers(source.row(i) for i in (7, 0, 4, 9)) == [(7, 7), (0, 0), (4, 4), (9, 9)]
    assert numbers(source.stream(8)) == [(8, 8), (9, 9)]


def test_keep_is_applied_before_audio_is_read(parquet):
    odd = {"train": {"keep": "label == 'odd'"}}
    source = open_source(card(parquet, {"parquet": "data"}, splits=odd), "train")
    assert numbers(source.stream(0)) == [(i, i) for i in (1, 3, 5, 7, 9)]
    with pytest.raises(UserError, match="the rows have no column 'fold'"):
        open_source(card(parquet, {"parquet": "data"}, splits={"train": {"keep": "fold == 1"}}), "train")
    with pytest.raises(UserError, match="split 'train' keeps no rows"):
        open_source(card(parquet, {"parquet": "data"}, splits={"train": {"keep": "n > 99"}}), "train")


def test_a_hub_dataset_is_streamed(parquet):
    source = open_source(card(parquet, {"hub": str(parquet / "data")}), "train")
    assert source.size is None
    assert numbers(source.stream(0)) == [(i, i) for i in range(10)]
    assert numbers(source.stream(7)) == [(i, i) for i in (7, 8, 9)]


def test_audiofolder_labels_come_from_folders_and_metadata(tmp_path):
    for label in ("dog", "cat"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        soundfile.write(tmp_path / "clips" / label / "1.flac", np.zeros(1600, np.int16), 16000)
    (tmp_path / "clips" / "metadata.csv").write_text("file_name,age\ndog/1.flac,3\n")
    source = open_source(card(tmp_path, {"audiofolder": "clips"}), "train")
    rows = [source.row(i) for i in range(source.size)]
    assert [(row.columns["label"], row.columns.get("age")) for row in rows] == [("cat", None), ("dog", "3")]
    assert rows[0].audio[0].known_seconds() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"jsonl": "nothing"}, "there is no manifest"),
        ({"audiofolder": "nothing"}, "there is no folder"),
        ({"parquet": "nothing"}, "there is no parquet file"),
        ({"hub": "/nothing/here/at/all"}, "cannot be opened"),
    ],
)
def test_places_that_do_not_exist(tmp_path, load, message):
    with pytest.raises(UserError, match=message):
        open_source(card(tmp_path, load), "train")


def test_broken_manifests_name_the_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"audio": "a.wav"}\n{"audio": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl: line 2: not JSON"):
        open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train")
    (tmp_path / "rows.jsonl").write_text('{"path": "a.wav"}\n')
    with pytest.raises(UserError, match="no audio column 'audio'; columns: path"):
        open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train").row(0)
    shutil.rmtree(tmp_path)
