"""Rows whose clip is a part of a recording, named by columns."""

import csv
import json

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from uniaudio.data.card import load_card
from uniaudio.data.segment import Segment, list_unused_time_columns
from uniaudio.data.sources.base import open_source
from uniaudio.errors import RowError, UserError


@pytest.fixture
def recording(tmp_path):
    """Ten levels (0, 100, 200 ...) of a tenth of a second each."""
    levels = np.repeat(np.arange(10, dtype=np.int16) * 100, 1600)
    soundfile.write(tmp_path / "long.wav", levels, 16000)
    return tmp_path / "long.wav"


def write_rows(folder, kind, rows):
    if kind == "jsonl":
        (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with (folder / "m.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        bytes_of = {row["audio"]: (folder / row["audio"]).read_bytes() for row in rows}
        rows = [{**row, "audio": {"bytes": bytes_of[row["audio"]], "path": row["audio"]}} for row in rows]
        (folder / "data").mkdir()
        file = "m.parquet" if kind == "parquet" else "data/train-00000-of-00001.parquet"
        pq.write_table(pyarrow.Table.from_pylist(rows), folder / file)


def open_rows(folder, kind, rows, **settings):
    write_rows(folder, kind, rows)
    place = str(folder / "data") if kind == "hub" else f"m.{kind}"
    card = {"dataset": "d", "load": {kind: place}, "license": "CC0", "splits": {"train": {}}, **settings}
    (folder / "d.yaml").write_text(yaml.safe_dump(card))
    return open_source(load_card(str(folder / "d.yaml")), "train")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "hub"])
@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        ({"offset": 0.3, "duration": 0.2}, {}),
        ({"start": 0.3, "stop": 0.5}, {"segment": {"start": "start", "end": "stop"}}),
        ({"begin": "0.3", "long": "0.2"}, {"segment": {"offset": "begin", "duration": "long"}}),
    ],
)
def test_a_segment_is_decoded_and_planned_alone(recording, kind, columns, settings):
    source = open_rows(recording.parent, kind, [{"audio": "long.wav", **columns, "label": "a"}], **settings)
    (row,) = source.rows()
    (ref,) = row.audio
    assert ref.read_seconds() == pytest.approx(0.2)
    assert ref.decode(0.25).tolist() == [300] * 1600 + [400] * 1600


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("columns", "settings", "seconds"),
    [
        ({"duration": 1.0}, {}, 1.0),  # the stated length of a whole clip
        ({"offset": 0, "duration": ""}, {}, 1.0),
        ({"offset": 0.3, "duration": 0.2}, {"segment": "none"}, 1.0),
        ({"start": "", "end": ""}, {"segment": {"start": "start", "end": "end"}}, 1.0),
        ({"start": 0.3, "end": 0.5}, {}, 1.0),  # not named: said by `check`
    ],
)
def test_what_is_no_segment_is_the_whole_recording(recording, kind, columns, settings, seconds):
    (row,) = open_rows(recording.parent, kind, [{"audio": "long.wav", **columns}], **settings).rows()
    assert row.audio[0].span is None
    assert len(row.audio[0].decode(2.0)) == seconds * 16000


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"offset": 0.3},
            {},
            r"broken metadata: long\.wav\.audio: an offset of 0\.3 and no duration; name the",
        ),
        ({"offset": 0.3, "duration": -1}, {}, r"broken metadata: .*a segment from 0\.3 to -0\.7 s"),
        (
            {"offset": float("nan"), "duration": 1},
            {"segment": {"offset": "offset", "duration": "duration"}},
            "brok",
        ),
        ({"s": 1}, {"segment": {"start": "s", "end": "e"}}, "missing column: .*no e beside"),
        ({"s": "x", "e": 2}, {"segment": {"start": "s", "end": "e"}}, r"must be seconds, got 'x' and 2"),
        (
            {"s": [1], "e": True},
            {"segment": {"start": "s", "end": "e"}},
            "broken metadata: .*must be seconds",
        ),
    ],
)
def test_times_that_cannot_be_used_skip_the_row(recording, columns, settings, message):
    good = {"audio": "long.wav", "offset": 0, "duration": 1, "s": 0, "e": 1}
    rows = [{"audio": "long.wav", **columns}, good]
    text = "".join(json.dumps(row) + "\n" for row in rows).replace("NaN", '"nan"')
    open_rows(recording.parent, "jsonl", rows, **settings)
    (recording.parent / "m.jsonl").write_text(text)
    first, second = open_source(load_card(str(recording.parent / "d.yaml")), "train").rows()
    assert isinstance(first, RowError)
    assert second.audio[0].read_seconds() == 1.0
    with pytest.raises(RowError, match=message):
        raise first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segment": {"start": "a"}}, "name one column as `start`"),
        ({"segment": {"start": "a", "offset": "b", "end": "c"}}, "name one column as `start`"),
        ({"segment": {"start": "a", "end": "c"}, "audio": ["x", "y"]}, "`audio` names several"),
    ],
)
def test_a_card_names_a_beginning_and_an_end_of_one_clip(recording, settings, message):
    with pytest.raises(UserError, match=message):
        open_rows(recording.parent, "jsonl", [{"audio": "long.wav"}], **settings)


def test_columns_with_times_that_nobody_uses_are_named():
    assert list_unused_time_columns(["audio", "start", "end", "text"], None, ["text"]) == ["start", "end"]
    assert list_unused_time_columns(["start", "end"], None, ["start"]) == ["end"]
    assert list_unused_time_columns(["start", "end"], Segment("start", "end", True), []) == []
    assert list_unused_time_columns(["offset", "duration"], None, []) == []
