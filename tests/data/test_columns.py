"""Which columns are read and what they hold: classes by name, columns nobody uses, clips whose path a card makes."""

import json
import math
import re
from dataclasses import replace

import datasets
import pyarrow
import pyarrow.parquet as pq
import pytest
from helpers.files import card, clip_bytes, numbers, write_parquet

from uniaudio.checks.first_rows import check_entry
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.recipe_entries import EvalEntry
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.class_names import make_column_namings
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.template import load_template
from uniaudio.errors import RowError, UserError

NAMES = ["low", "mid", "high"]


def write_classes(folder):
    label = datasets.ClassLabel(names=NAMES)
    features = datasets.Features(
        {
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": label,
            "tags": datasets.List(label),
            "events": datasets.List({"label": label, "at": datasets.Value("float64")}),
            "info": {"label": label},
            "n": datasets.Value("int64"),
        }
    )
    rows = [
        {
            "audio": {"bytes": clip_bytes(n), "path": None},
            "label": (n + 1) % 4 - 1,  # 0, 1, 2, -1: no class
            "tags": [n % 3, 0],
            "events": [{"label": n % 3, "at": 0.5}],
            "info": {"label": n % 3},
            "n": n,
        }
        for n in range(4)
    ]
    folder.mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_classes_have_their_names_and_stay_numbers(tmp_path, kind):
    write_classes(tmp_path / "data")
    keep = {"train": {"keep": "label != 1"}, "two": {"name": "train", "keep": "label == 'mid'"}}
    source = open_source(card(tmp_path, {kind: str(tmp_path / "data")}, splits=keep), "train")
    rows = [row.columns for row in source.rows()]
    assert [str(row["label"]) for row in rows] == ["low", "high", "None"]
    assert [row["label"] for row in rows] == [0, 2, None]
    assert [list(map(str, row["tags"])) for row in rows][1] == ["high", "low"]
    events = rows[1]["events"]
    assert str((events[0] if isinstance(events, list) else {"label": events["label"][0]})["label"]) == "high"
    assert str(rows[1]["info"]["label"]) == "high"
    two = open_source(card(tmp_path, {kind: str(tmp_path / "data")}, splits=keep), "two")
    assert [row.columns["n"] for row in two.rows()] == [1]


def test_features_of_every_shape():
    label = {"names": NAMES, "_type": "ClassLabel"}
    namings = make_column_namings(
        {
            "old": {"feature": {"label": label}, "_type": "Sequence"},
            "bare": [label],
            "unnamed": {"num_classes": 3, "_type": "ClassLabel"},
            "text": {"dtype": "string", "_type": "Value"},
            "listed": {"names": {"10": "k", "2": "c", "0": "a"}, "_type": "ClassLabel"},
        }
    )
    assert set(namings) == {"old", "bare", "listed"}
    assert [str(namings["listed"](number)) for number in range(3)] == ["a", "c", "k"]
    assert list(map(str, namings["old"]({"label": [2, 0]})["label"])) == ["high", "low"]
    assert list(map(str, namings["bare"]([1]))) == ["mid"]
    assert namings["bare"](None) is None
    assert namings["bare"]([7, "low"]) == [None, "low"]
    named, gap, half = namings["bare"]([1.0, float("nan"), 0.5])  # a column with gaps, as pandas stores it
    assert (str(named), math.isnan(gap), half) == ("mid", True, 0.5)


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_only_columns_that_are_used_are_read(tmp_path, kind):
    (tmp_path / "data").mkdir()
    far = pyarrow.array([10**18 + 1], pyarrow.timestamp("ns"))  # no Python datetime holds nanoseconds
    clip = pyarrow.array([{"bytes": clip_bytes(3), "path": None}])
    other = pyarrow.array([{"bytes": None, "path": "gone.wav"}])
    columns = {"audio": clip, "n": pyarrow.array([3]), "when": far, "other": other, "text": ["x"]}
    pq.write_table(pyarrow.table(columns), tmp_path / "data" / "train.parquet")
    plain = card(
        tmp_path, {kind: str(tmp_path / "data")}, columns={"number": "{{ n }}", "bad": "{{ nothing }}"}
    )
    used = replace(plain, used=frozenset({"number"}))
    (row,) = open_source(used, "train").rows()
    assert isinstance(row, Row)
    assert (dict(row.columns), used.fields(row.columns)) == ({"n": 3}, {"n": 3, "number": "3"})
    (row,) = open_source(used, "train").shard_text_rows(0)  # as `uniaudio check` reads them
    assert isinstance(row, Row)
    assert row.columns["n"] == 3
    # a column that is missing is told with those that there are
    (row,) = open_source(replace(plain, used=frozenset({"n", "bad"})), "train").rows()
    columns = row.columns if isinstance(row, Row) else {}
    missing = plain.fields(columns)["bad"]
    assert isinstance(missing, RowError)
    if kind == "parquet":
        assert {"n", "text"} <= set(columns)


def test_a_recipe_says_which_columns_are_used(tmp_path):
    from uniaudio.config.strict_yaml import dump_yaml
    from uniaudio.data.recipe import load_recipe

    write_parquet(tmp_path / "data", files=1, rows=2)
    card(tmp_path, {"parquet": "data"}, columns={"word": "{{ label }}", "more": "{{ gone }}"})
    keys = {"task": "t", "domain": "sound", "inputs": ["word", "said"], "prompts": ["<audio>{{ said }}?"]}
    (tmp_path / "t.yaml").write_text(dump_yaml({**keys, "target": "{{ word }}"}))
    line = {"dataset": "set", "template": "t", "constants": {"said": "what"}}
    (tmp_path / "r.yaml").write_text(dump_yaml({"recipe": "r", "train": [line]}))
    (entry,) = load_recipe(str(tmp_path / "r.yaml")).train
    assert entry.dataset.used == {"word"}
    rows = list(open_source(entry.dataset, "train").rows())
    assert [dict(row.columns) for row in rows] == [{"label": "even"}, {"label": "odd"}]
    line["constants"] = {"said": None}
    (tmp_path / "r.yaml").write_text(dump_yaml({"recipe": "r", "train": [line]}))
    with pytest.raises(UserError, match="constants: 'said' has no value"):
        load_recipe(str(tmp_path / "r.yaml"))


def write_common_voice(folder):
    (folder / "cv" / "clips").mkdir(parents=True)
    lines = ["client_id\tpath\tsentence\tlocale"]
    for n in range(3):
        (folder / "cv" / "clips" / f"{n}.wav").write_bytes(clip_bytes(n))
        lines.append(f'a{n}\t{n}.wav\t"Satz {n}\tde')
    (folder / "cv" / "train.tsv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "keys",
    [
        {"audio": "clips/{{ path }}"},
        {"audio": ["clips/{{ path }}"]},
        {"columns": {"audio": "clips/{{ path }}"}},
        {"audio": "clip", "columns": {"clip": "clips/{{ path }}"}},
        {"load": {"csv": "cv/train.tsv"}, "audio": "clips/{{ path }}"},
    ],
)
def test_a_card_may_make_the_path_of_a_clip(tmp_path, keys):
    write_common_voice(tmp_path)
    (tmp_path / "cv" / "dev.tsv").write_text("client_id\tpath\tsentence\tlocale\n")
    made = card(tmp_path, **{"load": {"csv": "cv"}, **keys})
    first, second, _ = open_source(made, "train").rows()
    assert (first.key, first.columns["sentence"]) == ("clips/0.wav", '"Satz 0')
    assert first.audio[0].source == tmp_path / "cv" / "clips" / "0.wav"
    assert second.audio[0].read_seconds() == pytest.approx(0.1)


def test_paths_that_a_card_makes_for_pairs_and_tables(tmp_path):
    write_common_voice(tmp_path)
    lines = [{"a": "0", "b": "1"}, {"a": "0", "b": None}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = ["cv/clips/{{ a }}.wav", "cv/clips/{{ b }}.wav"]
    made = card(tmp_path, {"jsonl": "pairs.jsonl"}, audio=pairs)
    assert made.audio == ("audio_1", "audio_2")
    good, bad = open_source(made, "train").rows()
    assert [ref.source.name for ref in good.audio] == ["0.wav", "1.wav"]
    assert (bad.reason, "'b' has no value" in bad.detail) == ("missing column", True)
    (tmp_path / "table").mkdir()
    pq.write_table(pyarrow.Table.from_pylist([{"name": "1", "n": 1}]), tmp_path / "table" / "train.parquet")
    for kind, place in (("parquet", "table"), ("hub", str(tmp_path / "table"))):
        made = card(tmp_path, {kind: place}, audio=f"{tmp_path}/cv/clips/{{{{ name }}}}.wav")
        assert numbers(open_source(made, "train").rows()) == [(1, 1)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", "audio;label;n\na.wav;low, high;1\nb.wav;;2\n"),
        ("rows.txt", "audio\tlabel\tn\na.wav\tlow, high\t1\nb.wav\t\t2\n"),
        ("rows.csv", 'audio,label,n\na.wav,"low, high",1\nb.wav,nan,2\n'),
        ("rows.csv", "audio|label|n\na.wav|low, high|1\nb.wav|NaN|2\n"),
        ("rows.csv", "sep=;\r\naudio;label;n\r\na.wav;low, high;1\r\nb.wav;;2\r\n"),
        ("rows.csv", 'audio, label, n\na.wav, "low, high", 1\nb.wav, , 2\n'),
    ],
)
def test_tables_cut_at_what_their_first_line_has_and_cells_without_value(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    first, second = open_source(card(tmp_path, {"csv": name}), "train").rows()
    assert dict(first.columns) == {"audio": "a.wav", "label": "low, high", "n": "1"}
    assert dict(second.columns) == {"audio": "b.wav", "label": None, "n": "2"}


def test_a_table_with_two_columns_of_one_name_is_a_mistake(tmp_path):
    (tmp_path / "rows.csv").write_text("audio,label,label\na.wav,low,high\n")
    with pytest.raises(UserError, match=r"rows\.csv: 2 columns are named 'label'; rename or remove them"):
        open_source(card(tmp_path, {"csv": "rows.csv"}), "train")
    (tmp_path / "rows.csv").write_text("audio,label,,\na.wav,low,,\n")  # as spreadsheets end lines
    (row,) = open_source(card(tmp_path, {"csv": "rows.csv"}), "train").rows()
    assert row.columns["label"] == "low"


@pytest.mark.parametrize("name", ["emotion label", "emotion-label", "meta.label"])
def test_columns_whose_names_are_none_of_jinja_are_named_with_the_way(tmp_path, name):
    (tmp_path / "a.wav").write_bytes(clip_bytes(1))
    (tmp_path / "rows.csv").write_text(f"audio,{name}\na.wav,low\n")
    way = re.escape(f'for a column of this name, write {{first_of: ["{name}"]}}')
    prompt = {
        "task": "t",
        "domain": "sound",
        "inputs": ["label"],
        "prompts": ["<audio>?"],
        "target": "{{ label }}",
    }
    (tmp_path / "t.yaml").write_text(dump_yaml(prompt))
    with pytest.raises(UserError, match=way):
        check_entry(entry_of(tmp_path, {"label": f"{{{{ {name} }}}}"}))
    assert check_entry(entry_of(tmp_path, {"label": {"first_of": [name]}})).rows == 1
    with pytest.raises(UserError, match=r"uses 'other'.*label$"):
        check_entry(entry_of(tmp_path, {"label": "{{ other }}"}))


def entry_of(folder, columns):
    """An entry over ``rows.csv`` with the template of ``t.yaml``."""
    return EvalEntry(
        dataset=card(folder, {"csv": "rows.csv"}, columns=columns),
        templates=(load_template(str(folder / "t.yaml")),),
        split="train",
        constants={},
        max_examples=None,
    )


def test_a_fold_of_a_table_stays_out(tmp_path):
    (tmp_path / "rows.csv").write_text("audio,fold\na.wav,1\nb.wav,5\nc.wav,\n")
    splits = {"train": {"keep": "fold != 5"}, "test": {"name": "train", "keep": "fold == 5"}}
    tables = card(tmp_path, {"csv": "rows.csv"}, splits=splits)
    assert [row.key for row in open_source(tables, "train").rows()] == ["a.wav", "c.wav"]
    assert [row.key for row in open_source(tables, "test").rows()] == ["b.wav"]
    (tmp_path / "rows.csv").write_text("audio,fold\na.wav,one\nb.wav,five\n")
    with pytest.raises(UserError, match="the text 'one' is compared with the number 5"):
        open_source(tables, "train")


def test_a_dataset_with_a_loading_script(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError, match=r"load\.hub: \S+mine cannot be opened .*refs/convert/parquet"):
        open_source(card(tmp_path, {"hub": str(tmp_path / "mine")}), "train")


def test_whatever_a_library_raises_while_opening_is_a_sentence(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("odd\nand long")

    monkeypatch.setattr("uniaudio.data.sources.parquet.list_split_files", fail)
    with pytest.raises(UserError, match=r"set\.yaml: load\.parquet: \S+ cannot be opened \(odd\)$"):
        open_source(card(tmp_path, {"parquet": "data"}), "train")
