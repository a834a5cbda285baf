"""The direction of imports that docs/architecture.md draws."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "uniaudio"
BASE = {
    "errors",
    "outputs",
    "orphans",
    "records",
    "types",
    "ragged",
    "distributed",
    "config",
    "cache",
    "features",
}
ALLOWED = {
    "errors": set(),
    "outputs": {"errors"},
    "orphans": set(),
    "records": set(),
    "ragged": set(),
    "distributed": {"errors"},
    "types": {"ragged"},
    "config": {"errors"},
    "cache": set(),
    "features": {"ragged", "config", "cache"},
    "data": BASE,
    "model": BASE,
    "miniature": BASE | {"data", "model"},
    "train": BASE | {"data", "model"},
    "evaluate": BASE | {"data", "model"},
    "export": BASE | {"data", "model"},
    "report": BASE | {"data", "model", "evaluate"},
    "assemble": BASE | {"data", "model", "miniature", "train", "evaluate", "report", "export"},
    "checks": BASE | {"data", "model", "train", "assemble"},
    "plan": BASE | {"data", "model", "assemble", "checks"},
    "preview": BASE | {"data", "miniature"},
    "tools": BASE | {"data", "model", "miniature", "train", "assemble"},
    "demo": BASE | {"data", "model", "miniature", "train", "evaluate", "assemble"},
    "serve": BASE | {"data", "model", "evaluate", "assemble"},
    "commands": BASE | {"data", "evaluate"},
    "data_cli": {"outputs", "tools"},
    "cli": BASE | {"commands", "assemble", "checks", "plan", "preview", "tools", "demo", "serve", "data_cli"},
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uniaudio."):
            parts.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            parts |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("uniaudio.")}
    return parts


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("__")]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_go_downwards(path):
    part = part_of(path)
    assert imported_parts(path) <= ALLOWED[part] | {part}


def test_only_one_file_and_the_engine_that_shards_touch_torch_distributed():
    users = [p.name for p in PACKAGE.rglob("*.py") if "torch.distributed" in p.read_text().replace('"', "")]
    assert sorted(users) == ["distributed.py", "fsdp2.py"]
