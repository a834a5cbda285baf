"""The documentation speaks of what exists."""

import re
from pathlib import Path

import pytest

from uniaudio.cli import app
from uniaudio.config.strict_yaml import parse

ROOT = Path(__file__).parent.parent
GROUPS = {group.name: group.typer_instance for group in app.registered_groups}
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands} | {
    f"{name} {command.name}" for name, group in GROUPS.items() for command in group.registered_commands
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_commands_exist(page):
    groups = "|".join(GROUPS)
    named = set(re.findall(rf"(?m)(?:^|`|or: )uniaudio ((?:(?:{groups}) )?[a-z-]+)", page.read_text()))
    assert named <= COMMANDS


def test_every_command_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert {name for name in COMMANDS if f"`uniaudio {name}" not in readme} == set()


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_yaml_blocks_parse(page):
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        assert isinstance(parse(block, page.name), dict)


def test_the_first_lines_of_the_readme_are_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [line.split("#")[0].strip() for line in lines[3:5]] == ["make demo", "make test"]
