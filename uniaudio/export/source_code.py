"""The package's own source, cut down to what an encoder needs and laid flat into one folder.

A model on the Hub brings its code as files side by side that import each other with one dot. They are made from the
modules of this package, definition by definition: what is reached from the wanted classes stays, unchanged;
everything else goes, and with it the packages that only training, configs or tests need. So the code that runs there is
the code that is tested here.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "uniaudio"
SHAPES = "jaxtyping"  # annotations that tests check; ``Float[Tensor, "A E"]`` becomes ``Tensor``
FILES = {
    "uniaudio.export.hub_config": "configuration_uniaudio",
    "uniaudio.export.hub_model": "modeling_uniaudio",
    "uniaudio.export.hub_lm_config": "configuration_uniaudio_lm",
    "uniaudio.export.hub_lm": "modeling_uniaudio_lm",
}


def flatten_name(module: str) -> str:
    """Return the name of a module in the flat folder."""
    return FILES.get(module, module.replace(".", "_"))


@dataclass
class ModuleSource:
    """One module of the package.

    Args:
        definitions: top-level functions, classes and constants by name.
        imports: for each imported name its statement and alias.
        kept: names of definitions and imports that are needed.
    """

    name: str
    text: str
    tree: ast.Module
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, tuple[ast.Import | ast.ImportFrom, ast.alias]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, name: str) -> ModuleSource:
        """Read a module's file and list what it defines and imports.

        Raises:
            ValueError: when it does more at its top level than define, assign and import.
        """
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).read_text(encoding="utf-8")
        source = cls(name, text, ast.parse(text))
        for statement in source.tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                for alias in statement.names:
                    source.imports[alias.asname or alias.name.split(".")[0]] = (statement, alias)
                continue
            names = list(list_defined_names(statement))
            if not names and not is_text(statement):
                raise ValueError(f"{name}:{statement.lineno} does something when it is imported")
            source.definitions.update(dict.fromkeys(names, statement))
        return source


def is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def list_defined_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a top-level statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    for target in targets:
        yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def flatten_modules(roots: Mapping[str, set[str]], header: str = "") -> dict[str, str]:
    """Return the files, by name, that hold the wanted definitions and all they need.

    Args:
        roots: the wanted names of each module. header: first lines of every file.
    """
    modules: dict[str, ModuleSource] = {}
    wanted = [(module, name) for module, names in roots.items() for name in sorted(names)]
    while wanted:
        module, name = wanted.pop()
        source = modules.get(module) or modules.setdefault(module, ModuleSource.read(module))
        if name in source.kept:
            continue
        if name in source.imports:
            statement, alias = source.imports[name]
            source.kept.add(name)
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith(PACKAGE):
                wanted.append((str(statement.module), alias.name))
        elif name in source.definitions:
            definition = source.definitions[name]
            source.kept |= set(list_defined_names(definition))
            wanted += [(module, node.id) for node in ast.walk(definition) if isinstance(node, ast.Name)]
    return {f"{flatten_name(name)}.py": header + cut_module(source) for name, source in modules.items()}


def cut_module(source: ModuleSource) -> str:
    """Return the text of a module with only the kept names."""
    lines = remove_shapes(source).split("\n")
    opening = source.tree.body[0]
    assert is_text(opening)  # every module of the package says what it holds
    pieces = ["\n".join([*lines[: opening.end_lineno], "", *write_imports(source), ""])]
    before: ast.stmt | None = None
    for statement in source.tree.body:
        names = set(list_defined_names(statement))
        if not names & source.kept:
            continue
        plain = isinstance(statement, ast.Assign | ast.AnnAssign)
        near = plain and isinstance(before, ast.Assign | ast.AnnAssign)
        pieces.append("\n" * (0 if near else 1 if plain else 2))
        pieces.append("\n".join(lines[find_first_line(statement, lines) : statement.end_lineno]) + "\n")
        before = statement
    return "".join(pieces)


def find_first_line(statement: ast.stmt, lines: list[str]) -> int:
    """Return the index of a statement's first line, its decorators and the comments above it included."""
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(decorator.lineno for decorator in decorators)]) - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    return first


def write_imports(source: ModuleSource) -> list[str]:
    """Return the kept imports, those of the package with one dot."""
    lines = ["from __future__ import annotations", ""]
    for statement in source.tree.body:
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        kept = [
            alias for alias in statement.names if (alias.asname or alias.name.split(".")[0]) in source.kept
        ]
        if not kept or getattr(statement, "module", None) == SHAPES:
            continue
        if isinstance(statement, ast.Import):
            lines.append(ast.unparse(ast.Import(kept)))
            continue
        module = str(statement.module)
        dotted = f".{flatten_name(module)}" if module.split(".")[0] == PACKAGE else module
        lines.append(f"from {dotted} import {', '.join(ast.unparse(alias) for alias in kept)}")
    return lines


def remove_shapes(source: ModuleSource) -> str:
    """Return a module's text with ``Float[Tensor, "A E"]`` written as ``Tensor``; lines keep their numbers."""
    shapes = {
        name
        for name, (statement, _) in source.imports.items()
        if isinstance(statement, ast.ImportFrom) and statement.module == SHAPES
    }
    data = source.text.encode()
    starts = [0]
    for line in data.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    annotations = [
        node
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in shapes
    ]
    for node in sorted(annotations, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        assert isinstance(node.slice, ast.Tuple)
        kind = ast.unparse(node.slice.elts[0]).encode()
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        data = data[:begin] + kind + data[end:]
    return data.decode()
