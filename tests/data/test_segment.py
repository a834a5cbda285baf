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
from uniaudio.data.recipe import load_recipe
from uniaudio.data.segment import MANIFEST_SEGMENTS, NEMO, Segment, SegmentColumns, list_unused_time_columns
from uniaudio.data.sources.source_kinds import open_source
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
        ({"start": "", "end": ""}, {}, 1.0),
        ({"start": 0, "text": "x"}, {}, 1.0),
        ({"start": 0.3, "end": 0.5}, {"segment": "none"}, 1.0),
        ({"begin_time": 0.3, "end_time": 0.5}, {}, 1.0),  # not named: said by `check`
    ],
)
def test_what_is_no_segment_is_the_whole_recording(recording, kind, columns, settings, seconds):
    (row,) = open_rows(recording.parent, kind, [{"audio": "long.wav", **columns}], **settings).rows()
    assert row.audio[0].span is None
    assert len(row.audio[0].decode(2.0)) == seconds * 16000


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(
    "columns",
    [
        {"start": 0.3, "end": 0.5},
        {"start": "0.3", "duration": 0.2},
        {"start": 0.3, "end": 0.5, "duration": 9.0},  # that of the recording
        {"start": "", "offset": 0.3, "duration": 0.2},
    ],
)
def test_a_manifest_need_not_name_start_and_end(recording, kind, columns):
    (row,) = open_rows(recording.parent, kind, [{"audio": "long.wav", **columns}]).rows()
    assert row.audio[0].decode(0.25).tolist() == [300] * 1600 + [400] * 1600


def test_columns_of_other_sources_may_mean_something_else(recording):
    columns = {"start": 0.3, "end": 0.5, "offset": "far", "duration": 1.0}
    (row,) = open_rows(recording.parent, "parquet", [{"audio": "long.wav", **columns}]).rows()
    assert row.audio[0].span is None


@pytest.mark.parametrize(("target", "is_cut"), [("{{ label }}", True), ("{{ start }} to {{ end }}", False)])
def test_times_that_a_template_writes_are_no_segment(recording, target, is_cut):
    folder = recording.parent
    open_rows(folder, "jsonl", [{"audio": "long.wav", "start": 0.3, "end": 0.5, "label": "beep"}])
    inputs = [name for name in ("label", "start", "end") if name in target]
    template = {"task": "t", "domain": "sound", "inputs": inputs, "prompts": ["<audio>?"], "target": target}
    (folder / "t.yaml").write_text(yaml.safe_dump(template))
    recipe = {"recipe": "r", "train": [{"dataset": "d", "template": "t"}]}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    (entry,) = load_recipe(str(folder / "r.yaml")).train
    (row,) = open_source(entry.dataset, "train").rows()
    assert row.audio[0].span == ((0.3, 0.5) if is_cut else None)


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"start": 0.5, "end": 0.3}, {}, r"broken metadata: .*a segment from 0\.5 to 0\.3 s"),
        ({"start": -1, "end": 0.3}, {}, r"broken metadata: .*a segment from -1 to 0\.3 s"),
        (
            {"start": "x", "end": 0.3},
            {},
            r"broken metadata: .*start and end must be seconds, got 'x' and 0\.3",
        ),
        ({"start": "0:01", "duration": 1}, {}, r"start and duration must be seconds, got '0:01' and 1"),
        ({"start": "nan", "end": 1}, {}, r"broken metadata: .*a segment from nan to 1 s"),
        ({"start": 0, "end": "inf"}, {}, r"broken metadata: .*a segment from 0 to inf s"),
        ({"start": 0.4}, {}, r"broken metadata: .*start is 0\.4, but there is neither an end nor a duration"),
        ({"offset": "x", "duration": 1}, {}, r"offset and duration must be seconds, got 'x' and 1"),
        (
            {"offset": 0.3},
            {},
            r"broken metadata: long\.wav\.audio: offset is 0\.3, but there is neither an end nor a "
            r"duration",
        ),
        ({"offset": 0.3, "duration": -1}, {}, r"broken metadata: .*a segment from 0\.3 to -0\.7 s"),
        (
            {"offset": float("nan"), "duration": 1},
            {"segment": {"offset": "offset", "duration": "duration"}},
            "brok",
        ),
        ({"s": 1}, {"segment": {"start": "s", "end": "e"}}, "missing column: .*no e, although other columns"),
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


def test_a_segment_beyond_the_file_skips_the_row(recording):
    (row,) = open_rows(recording.parent, "jsonl", [{"audio": "long.wav", "start": 0.5, "end": 1.2}]).rows()
    with pytest.raises(RowError, match=r"span outside of the recording: .*0\.5 to 1\.2 s of 1\.00 s"):
        row.audio[0].decode(2.0)


def test_columns_with_times_that_nobody_uses_are_named():
    unknown, named = SegmentColumns(), SegmentColumns(Segment("start", "end", True))
    of_manifest = SegmentColumns(None, MANIFEST_SEGMENTS, True)
    assert list_unused_time_columns(["audio", "start", "end", "text"], unknown, ["text"]) == ["start", "end"]
    assert list_unused_time_columns(["start", "end"], unknown, ["start"]) == ["end"]
    assert list_unused_time_columns(["start", "end"], named, []) == []
    assert list_unused_time_columns(["start", "end"], of_manifest, []) == []
    assert list_unused_time_columns(["begin_time", "end_time"], of_manifest, []) == ["end_time", "begin_time"]
    assert list_unused_time_columns(["offset", "duration"], SegmentColumns(None, (NEMO,)), []) == []
