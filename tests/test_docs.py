"""The documentation speaks of what exists."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

from uniaudio import __version__
from uniaudio.cli import app
from uniaudio.config.strict_yaml import parse

ROOT = Path(__file__).parent.parent
TOP = typer.main.get_command(app).commands
GROUPS = {name: command.commands for name, command in TOP.items() if hasattr(command, "commands")}
COMMANDS = (set(TOP) - set(GROUPS)) | {f"{name} {inner}" for name, group in GROUPS.items() for inner in group}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_commands_exist(page):
    groups = "|".join(GROUPS)
    named = set(re.findall(rf"(?m)(?:^|`|or: )uniaudio ((?:(?:{groups}) )?[a-z][a-z-]*)", page.read_text()))
    assert named <= COMMANDS


def test_every_command_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert {name for name in COMMANDS if f"`uniaudio {name}" not in readme} == set()


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_yaml_blocks_parse(page):
    for block in re.findall(r"```yaml[^\n]*\n(.*?)```", page.read_text(), re.DOTALL):
        assert isinstance(parse(block, page.name), dict)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_prose_is_wrapped(page):
    """Tables, code and headings are as long as they are; the page of config keys is generated."""
    prose = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())
    long = [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "#", "!["))]
    assert long == []


def test_the_readme_opens_with_what_it_is_and_the_two_commands():
    opening, block, _ = (ROOT / "README.md").read_text().split("```\n", 2)
    assert opening.startswith("# uniaudio\n\n**uniaudio** trains ")
    assert len(opening.splitlines()) <= 8
    commands = [line.split("#")[0].strip() for line in block.splitlines()]
    assert commands == ["pip install -c constraints.txt -e '.[all]'", "uniaudio demo"]


def test_classes_of_the_architecture_page_are_in_the_files_it_names():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"(?m)^\| ((?:`\w+`(?:, )?)+) \| `([\w/.]+)` \|", text)
    assert len(rows) > 30
    for names, place in rows:
        path = ROOT / "uniaudio" / place
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        code = "".join(file.read_text() for file in files)
        assert {name for name in re.findall(r"\w+", names) if f"class {name}" not in code} == set(), place
    paths = re.findall(r"`((?:[a-z]\w*/)*\w+\.py|(?:[a-z]\w*/)+\w+/)`", text)
    assert {
        path for path in paths if not any((ROOT / top / path).exists() for top in ("uniaudio", "."))
    } == set()


def test_troubleshooting_explains_every_reason_why_a_row_is_skipped():
    files = [path for path in (ROOT / "uniaudio").rglob("*.py") if "importers" not in path.parts]
    calls = [
        node for path in files for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    raised = [call.args[0] for call in calls if getattr(call.func, "id", "") == "RowError" and call.args]
    reasons = {reason.value for reason in raised if isinstance(reason, ast.Constant) and reason.value}
    assert len(reasons) > 20
    page = (ROOT / "docs" / "troubleshooting.md").read_text().split("## Reasons why rows are skipped")[1]
    assert {reason for reason in reasons if f"`{reason}`" not in page} == set()


def in_nav(entry):
    """The files of a part of the navigation, in order."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [file for part in parts for file in in_nav(part)]


def test_files_that_contributing_names_exist():
    text = re.sub(r"```.*?```", "", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    paths = [name for name in re.findall(r"`([\w./-]+)`", text) if "/" in name]
    assert len(paths) > 30
    missing = [
        name for name in paths if not (ROOT / name).exists() and not (ROOT / "uniaudio" / name).exists()
    ]
    assert missing == []


def test_files_of_the_page_where_to_change_what_exist():
    text = (ROOT / "docs" / "where-to-change.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    places = [row for row in rows if row[0] != "I want to change ..."]
    assert len({change for change, _, _ in places}) == len(places) >= 60
    for change, code, test in places:
        assert (ROOT / "uniaudio" / code.strip("`")).is_file(), change
        assert test.startswith("`tests/"), change
        assert (ROOT / test.strip("`")).is_file(), change


def test_the_citation_has_the_version_of_the_package():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_site_shows_every_page_once():
    listed = in_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(
        str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")
    )


def test_every_module_of_the_reference_exists():
    named = [
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"(?m)^::: ([\w.]+)$", page.read_text())
    ]
    assert len(named) == len(set(named))
    for name in named:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    loaded = r'<(?:script|img|iframe|link)\b[^>]*?(?:src|href)="?(?:https?:)?//[^">]*'
    assert {page.name: result for page in pages if (result := re.findall(loaded, page.read_text()))} == {}
    styles = "".join(file.read_text() for file in (tmp_path / "site").rglob("*.css"))
    assert re.findall(r"url\([\"']?(?:https?:)?//", styles) == []
