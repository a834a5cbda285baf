import pytest

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.card import load_card
from uniaudio.data.keep_conditions import Condition
from uniaudio.data.sources.base import is_row_in_split
from uniaudio.errors import RowError, UserError

GOOD = {
    "dataset": "mine",
    "load": {"jsonl": "clips"},
    "license": "CC0-1.0",
    "columns": {"word": "{{ label | upper }}"},
    "splits": {"train": {"keep": "fold != 5"}, "test": {"name": "validation", "keep": "fold == 5"}},
}


def write(folder, name="mine", **changes):
    path = folder / f"{name}.yaml"
    content = {**GOOD, "dataset": name, **changes}
    path.write_text(dump_yaml({key: value for key, value in content.items() if value is not None}))
    return load_card(str(path))


def test_columns_are_rendered_over_those_of_the_row(tmp_path):
    card = write(tmp_path)
    assert card.fields({"label": "low", "word": "old"}) == {"label": "low", "word": "LOW"}
    missing = card.fields({})["word"]
    assert isinstance(missing, RowError)
    assert (missing.reason, "columns.word needs 'label'" in missing.detail) == ("missing column", True)


def test_splits_keep_their_rows(tmp_path):
    card = write(tmp_path)
    assert (card.split("train").name, card.split("test").name) == ("train", "validation")
    kept = [is_row_in_split(card, {"fold": 1}, split, "row") for split in ("train", "test")]
    assert kept == [True, False]
    with pytest.raises(UserError, match="the rows have no column 'fold'; they have label"):
        is_row_in_split(card, {"label": "low"}, "train", "row")
    with pytest.raises(UserError, match=r"no split 'tests' \(did you mean 'test'\?\); splits: train, test"):
        card.split("tests")


def test_a_condition_that_cannot_be_decided_shows_the_row(tmp_path):
    card = write(tmp_path, splits={"train": {"keep": "fold < 5"}})
    with pytest.raises(RowError, match=r"splits\.train\.keep .*\(in a row with fold='five'\)"):
        is_row_in_split(card, {"fold": "five"}, "train", "row")


def test_one_clip_or_several(tmp_path):
    assert write(tmp_path).audio == ("audio",)
    assert write(tmp_path, audio="clip").audio == ("clip",)
    assert write(tmp_path, audio=["first", "second"]).audio == ("first", "second")


def test_a_card_inherits(tmp_path):
    write(tmp_path, "parent", load={"hub": "someone/words", "config": "en", "revision": "main"})
    (tmp_path / "child.yaml").write_text("base: parent.yaml\ndataset: child\nload: {config: de}\n")
    card = load_card(str(tmp_path / "child.yaml"))
    assert (card.name, card.load.location, card.load.config) == ("child", "someone/words", "de")
    assert card.load.revision == "main"


def test_paths_of_a_card(tmp_path, monkeypatch):
    (tmp_path / "clips").mkdir()
    assert write(tmp_path).load.location == str(tmp_path / "clips")
    assert write(tmp_path, load={"hub": "clips"}).load.location == "clips"
    assert write(tmp_path, load={"hub": "./clips"}).load.location == str(tmp_path / "clips")
    assert write(tmp_path, load={"hub": "./none"}).load.location == "./none"
    monkeypatch.setenv("UNIAUDIO_REALDATA", str(tmp_path / "real"))
    assert write(tmp_path, load={"jsonl": "${realdata}/esc10"}).load.location == f"{tmp_path}/real/esc10"
    monkeypatch.setenv("UNIAUDIO_REALAUDIO", "/audio")
    assert write(tmp_path, load={"jsonl": "${realaudio}/drums"}).load.location == "/audio/drums"
    monkeypatch.delenv("UNIAUDIO_REALAUDIO")
    with pytest.raises(UserError, match="no folder of labelled audio sets; set UNIAUDIO_REALAUDIO to it"):
        write(tmp_path, load={"jsonl": "${realaudio}/drums"})
    monkeypatch.setenv("MY_SETS", "/sets")
    assert write(tmp_path, load={"parquet": "${env:MY_SETS}/words"}).load.location == "/sets/words"
    monkeypatch.delenv("MY_SETS")
    with pytest.raises(UserError, match=r"load\.parquet: set the environment variable MY_SETS"):
        write(tmp_path, load={"parquet": "${env:MY_SETS}/words"})
    with pytest.raises(UserError, match="is none of"):
        write(tmp_path, load={"parquet": "${MY_SETS}/words"})


def test_places_of_a_card(tmp_path):
    (tmp_path / "tars").mkdir()
    load = write(tmp_path, load={"webdataset": ["tars/{0..3}.tar", "https://host/a-{00..12}.tar"]}).load
    assert load.places == (f"{tmp_path}/tars/{{0..3}}.tar", "https://host/a-{00..12}.tar")
    assert load.location == f"{tmp_path}/tars/{{0..3}}.tar, https://host/a-{{00..12}}.tar"
    assert load.timeout == 30
    for url in ("https://host/x.parquet", "s3://bucket/x.parquet", "hf://datasets/one/two/x.parquet"):
        load = write(tmp_path, load={"parquet": url, "timeout": 5}).load
        assert (load.kind, load.places, load.location, load.timeout) == ("parquet", (url,), url, 5)
    load = write(tmp_path, load={"parquet": ["tars/*.parquet"]}).load
    assert load.places == (f"{tmp_path}/tars/*.parquet",)


@pytest.mark.parametrize("kind", ["hub", "parquet", "webdataset", "audiofolder", "jsonl", "csv", "kaldi"])
def test_kinds_of_sources(tmp_path, kind):
    assert write(tmp_path, load={kind: "/somewhere/else"}).load.kind == kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": {}}, "load: name exactly one of hub, parquet, webdataset,"),
        ({"load": {"jsonl": "c", "revision": "main"}}, "config and revision are only for hub datasets"),
        ({"load": {"jsonl": "c", "csv": "d"}}, "load: name exactly one of"),
        ({"load": {"webdataset": []}}, "load: webdataset: name at least one place; none may be empty"),
        ({"load": {"parquet": ["a", ""]}}, "load: parquet: name at least one place; none may be empty"),
        ({"load": {"jsonl": ["c"]}}, "load.jsonl: "),
        ({"load": {"jsonl": "c", "timeout": 0}}, "load.timeout: "),
        ({"load": {"jsonl": "c", "timeout": float("inf")}}, "load.timeout: "),
        ({"load": {"jsonk": "c"}}, "load.jsonk: unknown key (did you mean 'jsonl'?)"),
        ({"splits": None}, "splits: is required"),
        ({"splits": {}}, "splits"),
        ({"splits": {"train": {"keeep": "x"}}}, "splits.train.keeep: unknown key (did you mean 'keep'?)"),
        ({"splits": {"train": {"keep": "fold !="}}}, "splits.train.keep: "),
        ({"columns": {"word": "{{ label "}}, "columns.word: unexpected end of template"),
        ({"dataset": "other"}, "dataset is 'other', but the file is mine.yaml"),
        ({"license": None}, "license: is required"),
        ({"hours": "many"}, "hours: input should be a valid number, got 'many'"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path, changes, message):
    path = tmp_path / "mine.yaml"
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    path.write_text(dump_yaml(content))
    with pytest.raises(UserError) as mistake:
        load_card(str(path))
    assert message in str(mistake.value)
    assert "mine.yaml" in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    "source", ["fold != 5", "fold == -1", "split == 'train'", 'split!="te st"', "null == 3", "split == ''"]
)
def test_an_answer_that_is_remembered_is_that_of_the_condition(source):
    condition = Condition(source, "here")
    rows = [
        {"fold": fold, "split": split, "null": None}
        for fold in (5, -1, 5.0, "5", None, True)
        for split in ("train", "te st", "")
    ]
    for row in [*rows, *rows]:
        assert condition.is_true(row) == bool(condition.compiled(**row)), row
    with pytest.raises(UserError, match="the rows have no column"):
        condition.is_true({"other": 1})
