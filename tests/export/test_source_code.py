"""The package's source cut down and laid flat."""

import ast

import pytest

from uniaudio.export.source_code import ModuleSource, cut_module, flatten_modules, remove_shapes


def source_of(text: str, *kept: str, name: str = "uniaudio.made_up") -> ModuleSource:
    """A module from text, as ``read`` would give it."""
    tree = ast.parse(text)
    source = ModuleSource(name, text, tree, kept=set(kept))
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            source.imports |= {alias.asname or alias.name: (statement, alias) for alias in statement.names}
    return source


def test_only_kept_definitions_stay_and_are_unchanged():
    text = '''"""What it holds."""

from __future__ import annotations

import math
import re

from uniaudio.model.mel import HOP, LogMel

# why it is five
FIVE = 5  # of them
SIX = 6


@decorated
def kept(x):
    """Say é."""
    return math.sin(x) + FIVE * HOP


def dropped():
    return re, LogMel, SIX
'''
    assert (
        cut_module(source_of(text, "kept", "FIVE", "math", "HOP"))
        == '''"""What it holds."""

from __future__ import annotations

import math
from .uniaudio_model_mel import HOP

# why it is five
FIVE = 5  # of them


@decorated
def kept(x):
    """Say é."""
    return math.sin(x) + FIVE * HOP
'''
    )


def test_shapes_are_taken_out_of_annotations_and_nothing_else():
    text = '''"""É."""
from jaxtyping import Float, Int
def f(x: Float[Tensor, "T E"], é: tuple[Int[Tensor, " T"], Float[torch.Tensor, "..."]]) -> dict[str, "T E"]:
    return x["T E"]
'''
    assert remove_shapes(source_of(text)).split("\n")[2:4] == [
        'def f(x: Tensor, é: tuple[Tensor, torch.Tensor]) -> dict[str, "T E"]:',
        '    return x["T E"]',
    ]


def test_everything_that_is_used_is_there():
    """Every name that a file loads is defined in it, imported or built in; every import finds its name."""
    files = flatten_modules({"uniaudio.model.fusion.mowe": {"MoweEncoder"}})
    assert "uniaudio_model_fusion_mowe.py" in files
    assert "uniaudio_model_encoders_whisper.py" not in files
    defined = {}
    for name, text in files.items():
        tree = ast.parse(text)
        defined[name.removesuffix(".py")] = {
            n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)
        } | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for name, text in files.items():
        tree = ast.parse(text)
        known = defined[name.removesuffix(".py")] | set(dir(__builtins__)) | set(__builtins__)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                known |= {alias.asname or alias.name for alias in node.names}
                if isinstance(node, ast.ImportFrom) and node.level:
                    assert {alias.name for alias in node.names} <= defined[node.module]
            elif isinstance(node, ast.FunctionDef | ast.Lambda):
                arguments = node.args
                named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                known |= {a.arg for a in (*named, arguments.vararg, arguments.kwarg) if a is not None}
        loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        assert not loaded - known, name


def test_a_module_that_acts_when_it_is_imported_is_not_cut(tmp_path, monkeypatch):
    (tmp_path / "acting.py").write_text('"""It prints."""\nprint("imported")\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="acting:2 does something"):
        ModuleSource.read("acting")
