"""The reference page and the JSON schemas say what the strict reader of YAML files accepts."""

import json
import re
from pathlib import Path

import pytest
import typer.main
from jsonschema import Draft202012Validator

import uniaudio.cli
from uniaudio.commands.schema import COMMAND_GROUPS, KINDS, show_reference, show_schema
from uniaudio.config.field_docs import document_fields, find_record_places, list_declared_fields
from uniaudio.config.records import Strict, build
from uniaudio.config.strict_yaml import load_yaml, parse
from uniaudio.errors import UserError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "config-reference.md"
PATTERNS = {
    "run": ("configs/*.yaml", "configs/papers/**/*.yaml"),
    "recipe": ("data_recipes/*.yaml",),
    "card": ("data_recipes/datasets/*.yaml",),
    "template": ("templates/*.yaml",),
    "suite": ("suites/*.yaml",),
}
SHIPPED = [
    pytest.param(kind, path, id=str(path.relative_to(ROOT)))
    for kind, patterns in PATTERNS.items()
    for pattern in patterns
    for path in sorted(ROOT.glob(pattern))
]
VALIDATORS = {kind: Draft202012Validator(json.loads(show_schema(kind))) for kind in KINDS}
BLOCKS = [
    pytest.param(parse(block, page.name), id=f"{page.name}-{number}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for number, block in enumerate(re.findall(r"```yaml[^\n]*\n(.*?)```", page.read_text(), re.DOTALL), 1)
]
STAGE = {"name": "joint", "recipe": "birds", "steps": 10, "budget": {"audio_seconds": 60}}
TEMPLATE = {
    "task": "t",
    "domain": "sound",
    "inputs": ["label"],
    "prompts": ["<audio>?"],
    "target": "{{ label }}",
}
RUN = {"encoders": {"a": {"path": "w"}, "b": {"path": "w"}}, "fusion": {"kind": "gate"}, "stages": [STAGE]}
FRAGMENTS = {  # keys that do not stand at the top of a file
    "augment": lambda block: ("recipe", {"base": "b", "train": [{"dataset": "d", "template": "t", **block}]}),
    "balance": lambda block: ("run", {**RUN, "stages": [{**STAGE, **block}]}),
    "scoring": lambda block: ("template", {**TEMPLATE, **block}),
}


def all_records():
    """Every record of the package that has fields."""
    waiting, result = [Strict], []
    while waiting:
        record = waiting.pop()
        waiting += record.__subclasses__()
        result += [record] if record is not Strict and record.__module__.startswith("uniaudio.") else []
    return result


def test_the_page_is_generated_from_the_sources():
    assert PAGE.read_text() == show_reference(), "run `make reference`"


def test_every_field_of_every_record_is_on_the_page():
    sections = dict(re.findall(r"(?ms)^### [^\n]*\((\w+)\)$(.*?)(?=^##|\Z)", PAGE.read_text()))
    records = {record for kind in KINDS.values() for record in find_record_places(kind.record)}
    assert records == set(all_records())
    for record in records:
        rows = re.findall(
            r"(?m)^\| `(?:\S+\.)?(\w+)` \| (.+) \| (.+) \| (.+) \| (.+) \|$", sections[record.__name__]
        )
        assert [row[0] for row in rows] == list(list_declared_fields(record)), record
        assert all(cell.strip() for row in rows for cell in row), record


def test_the_page_names_commands_that_exist():
    commands = set(typer.main.get_command(uniaudio.cli.app).commands)
    commands |= {
        f"data {name}" for name in typer.main.get_command(uniaudio.cli.app).commands["data"].commands
    }
    fields = [text for record in all_records() for text in document_fields(record).values()]
    assert all(text.read_by for text in fields)
    assert {name for text in fields for name in text.read_by} <= commands | set(COMMAND_GROUPS)
    members = {name for members in COMMAND_GROUPS.values() for name in members.split(", ")}
    assert members <= commands | set(COMMAND_GROUPS)


def test_a_field_without_a_docstring_is_an_error():
    class Bare(Strict):
        """A record."""

        size: int = 1

    with pytest.raises(TypeError, match=r"Bare\.size has no docstring"):
        document_fields(Bare)


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_one_of_draft_2020_12(kind):
    schema = json.loads(show_schema(kind))
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    record = KINDS[kind].record.__name__
    assert all(node["description"] for node in schema["$defs"][record]["properties"].values())


@pytest.mark.parametrize(("kind", "path"), SHIPPED)
def test_shipped_files_fit_their_schema(kind, path):
    assert [error.message for error in VALIDATORS[kind].iter_errors(load_yaml(path))] == []


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_the_documentation_fit_a_schema(block):
    """A block is a whole file, a part of one with a base, or a key that belongs deeper into a file."""
    inner = FRAGMENTS.get(next(iter(block)))
    tried = (
        [inner(block)]
        if inner
        else [(kind, each) for kind in KINDS for each in (block, {"base": "b", **block})]
    )
    assert any(VALIDATORS[kind].is_valid(each) for kind, each in tried)


def mutations(value, path=()):
    """Yield copies of a file's values, each with one mapping that has an unknown key or one value of a wrong type."""
    if isinstance(value, dict):
        yield path, {**value, "unknown_key": 1}
        for key, item in value.items():
            for where, changed in mutations(item, (*path, key)):
                yield where, {**value, key: changed}
    elif isinstance(value, list):
        for index, item in enumerate(value):
            for where, changed in mutations(item, (*path, index)):
                yield where, [*value[:index], changed, *value[index + 1 :]]
    yield path, {"unknown_key": {"deep": []}}
    yield path, [[[]]]


def reader_accepts(kind, data):
    try:
        build(KINDS[kind].record, {"output_dir": "runs/x", **data} if kind == "run" else data, "file")
    except UserError:
        return False
    return True


WHOLE = {
    "run": [
        "configs/whisper_small_qwen3.yaml",
        "configs/papers/mowe.yaml",
        "configs/papers/wq_fusion.yaml",
    ],
    "recipe": ["data_recipes/uniwhisper.yaml", "data_recipes/realdata.yaml"],
    "card": ["data_recipes/datasets/gtzan.yaml", "data_recipes/datasets/xares_desed.yaml"],
    "template": ["templates/keyword_spotting.yaml", "templates/tagging.yaml"],
    "suite": ["suites/xares.yaml"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in WHOLE.items() for name in names])
def test_schema_and_reader_refuse_the_same(kind, name):
    """Every mapping with an unknown key and every value of a wrong type, one at a time."""
    data = load_yaml(ROOT / name)
    assert "base" not in data
    assert reader_accepts(kind, data)
    differing = [
        path
        for path, changed in mutations(data)
        if isinstance(changed, dict) and VALIDATORS[kind].is_valid(changed) != reader_accepts(kind, changed)
    ]
    assert differing == []


@pytest.mark.parametrize(
    ("kind", "data", "accepted"),
    [
        ("run", RUN, True),
        ("run", {**RUN, "adapter": {"rate": 25}}, True),  # kind defaults to stack
        ("run", {**RUN, "fusion": {"kind": "gate", "experts": 8}}, False),
        ("run", {**RUN, "fusion": {"rate": 25}}, False),
        ("run", {"encoders": RUN["encoders"]}, False),
        ("run", {**RUN, "train": {"save_every": "500"}}, False),
        ("run", {**RUN, "train": {"save_every": True}}, False),
        ("run", {**RUN, "train": {"clip": 0}}, False),
        ("run", {"base": "b", "fusion": {"rate": 25}, "guard": {"max_drop": 2}}, True),
        ("run", {"base": "b", "fusion": {"kind": "gate", "experts": 8}}, False),
        ("run", {"base": "b", "encoders": {"whisper": {"learning_rate": 1e-4}}}, False),
        ("run", {"base": "b", "stages": [{"name": "joint"}]}, False),  # lists replace those of the base
        ("run", {"base": ["b"]}, False),
        ("suite", {"suite": "s", "base": "b", "tasks": {"esc50": None, "fsd50k": {"weight": 3}}}, True),
        ("suite", {"suite": "s", "tasks": {"fsd50k": {"weight": 3}}}, False),
        ("template", {**TEMPLATE, "base": "b"}, False),
        ("template", {**TEMPLATE, "labels": ["a", 1, 2.5]}, True),
    ],
)
def test_cases(kind, data, accepted):
    assert VALIDATORS[kind].is_valid(data) == accepted


def test_the_command_prints_a_schema(capsys):
    with pytest.raises(SystemExit) as done:
        uniaudio.cli.main(["schema", "card"])
    assert done.value.code == 0
    assert "CardFile" in json.loads(capsys.readouterr().out)["$defs"]


def test_an_unknown_kind_names_the_nearest_one(capsys):
    with pytest.raises(SystemExit) as done:
        uniaudio.cli.main(["schema", "recipes"])
    assert done.value.code == 2
    assert "did you mean 'recipe'" in capsys.readouterr().err
