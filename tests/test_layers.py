"""The direction of imports that docs/architecture.md draws."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "uniaudio"
BASE = {
    "console",
    "errors",
    "extras",
    "outputs",
    "launched_processes",
    "host_watch",
    "run_records",
    "types",
    "ragged",
    "distributed",
    "config",
    "feature_cache",
    "hub_client",
    "hub_connection",
    "units",
}
MIDDLE = {"data", "model", "tiny", "train", "evaluate", "export", "report", "demo"}
ALLOWED = {
    "errors": set(),
    "units": set(),
    "extras": {"errors"},
    "outputs": {"errors"},
    "console": {"outputs"},
    "launched_processes": set(),
    "host_watch": {"distributed", "errors", "launched_processes"},
    "run_records": set(),
    "ragged": set(),
    "distributed": {"errors", "launched_processes"},
    "types": {"ragged"},
    "config": {"errors"},
    "hub_connection": {"outputs"},
    "hub_client": {"errors", "hub_connection"},
    "feature_cache": {"ragged", "config", "units"},
    "data": BASE,
    "model": BASE,
    "tiny": BASE | {"data", "model"},
    "train": BASE | {"data", "model"},
    "evaluate": BASE | {"data", "model"},
    "export": BASE | {"data", "model"},
    "report": BASE | {"data", "model", "evaluate"},
    "demo": BASE | {"tiny", "train"},
    "build": BASE | MIDDLE - {"demo"},
    "estimate": BASE | {"data", "model", "tiny", "train", "build", "checks"},
    "checks": BASE | {"data", "model", "train", "evaluate", "build"},
    "serve": BASE | {"data", "model", "evaluate", "build"},
    "commands": BASE | MIDDLE | {"build", "estimate", "checks", "serve"},
    "api": BASE | MIDDLE | {"build", "estimate", "checks", "serve", "commands"},
    "cli_panels": BASE | {"build", "estimate", "checks", "serve", "commands"},
    "cli": BASE | {"cli_panels"},
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
