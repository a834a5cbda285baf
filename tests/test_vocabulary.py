"""The words of the code: identifiers, file names, help texts and titles use the field's terms (CONTRIBUTING.md)."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import typer
import yaml

from uniaudio.cli import app

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "uniaudio"
BANNED = frozenset(
    [
        "told",
        "own",
        "heard",
        "aside",
        "reckon",
        "reckons",
        "reckoned",
        "stands",
        "ask",
        "asks",
        "asked",
        "judge",
        "judges",
        "entering",
        "thin",
        "recalls",
        "counted",
        "recorded",
        "twin",
        "twins",
        "lesson",
        "lessons",
        "cue",
        "cues",
        "shelf",
        "offer",
        "offers",
        "wish",
        "door",
    ]
)
AS_VARIABLE = frozenset({"found", "between"})  # words of plain English that say nothing about a value
TERMS = frozenset(  # standard terms and public names that hold one of the words
    {
        "ask",  # the command, and its function
        "ask.py",
        "accuracy_no_cue",  # in the training.json of a miniature decoder
    }
)
PHRASES = ("passed over",)  # "skipped"
IN_TITLES = BANNED - {"own", "ask", "asks", "recall"}  # plain English in a sentence; recall is a metric
PARTICIPLE = re.compile(r"^_?[a-z]+(?:ed|own|old|ght|ound|ept)$")
FAMILIES = (  # one file for each member of a family, however short
    "model/adapters",
    "model/encoders",
    "model/fusion",
    "train/continual",
    "train/engines",
    "data/containers",
    "data/sources",
    "data/importers",
    "evaluate/metrics",
    "commands",
    "config",
)
SHARED_NAMES = frozenset(  # the same name in two folders, each of which says what it is about
    [
        "__init__.py",
        "__main__.py",
        "activation_checkpointing.py",
        "base.py",
        "decoder.py",
        "encoders.py",
        "forgetting.py",
        "fusion.py",
        "limits.py",
        "page.py",
        "stages.py",
    ]
)
DEFINED_TWICE = frozenset(  # one for each benchmark suite; HEAR names the function that it calls
    ["UniaudioEncoder", "load_model"]
)
SHORT = frozenset(  # one idea each, with one user
    [
        "build/run_config.py",
        "data/eval_conditions.py",
        "estimate/flops.py",
        "export/hear_encoder.py",
        "export/xares_encoder.py",
        "export/xares_llm_encoder.py",
        "model/shared_prefix.py",
        "serve/spectrogram.py",
        "train/auxiliary_losses.py",
        "train/memory_allocator.py",
        "train/oom.py",
        "train/signals.py",
    ]
)
FILES = [
    path for folder in ("uniaudio", "benchmarks", "tests") for path in sorted((ROOT / folder).rglob("*.py"))
]
IDS = [str(path.relative_to(ROOT)) for path in FILES]


def words_of(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"([A-Z])", r"_\1", name).lower()))


def identifiers(tree: ast.AST) -> dict[str, int]:
    names: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.setdefault(node.name, node.lineno)
        elif isinstance(node, ast.arg):
            names.setdefault(node.arg, node.lineno)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, node.lineno)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.setdefault(node.target.id, node.lineno)
        elif isinstance(node, ast.alias) and node.asname:
            names.setdefault(node.asname, node.lineno)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.setdefault(node.name, node.lineno)
        elif isinstance(node, ast.Dict):  # keys of the files that are written, such as metrics.jsonl
            for key in node.keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.isidentifier():
                    names.setdefault(key.value, key.lineno)
    return names


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_identifiers_are_terms_of_the_field(path):
    named = identifiers(ast.parse(path.read_text()))
    odd = {
        name
        for name in {*named, path.stem}
        if name not in TERMS and (words_of(name) & BANNED or name in AS_VARIABLE)
    }
    assert not odd


@pytest.mark.parametrize(
    "path", [path for path in FILES if PACKAGE in path.parents], ids=lambda path: str(path.relative_to(ROOT))
)
def test_functions_are_verbs(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    plain = {n.name for n in functions if not any(is_property(d) for d in n.decorator_list)}
    odd = {name for name in plain if PARTICIPLE.match(name) and name not in {"embed", "feed", "seed"}}
    assert not odd


def is_property(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Name) and decorator.id in {"property", "cached_property"}


def test_help_texts_use_plain_words():
    command = typer.main.get_command(app)
    texts = {
        name: f"{c.help} {' '.join(p.help or '' for p in c.params if hasattr(p, 'help'))}"
        for name, c in command.commands.items()
    }
    assert not {
        name: words_of(text) & IN_TITLES for name, text in texts.items() if words_of(text) & IN_TITLES
    }


def test_output_and_documentation_use_the_terms_of_the_field():
    files = [path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".jinja", ".html", ".yaml"}]
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert len(pages) > 20
    texts = {str(path.relative_to(ROOT)): " ".join(path.read_text().split()) for path in (*files, *pages)}
    assert not [(name, phrase) for name, text in texts.items() for phrase in PHRASES if phrase in text]


def test_titles_of_pages_use_plain_words():
    class Loader(yaml.SafeLoader):
        """Reads the site's configuration without importing what it names."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    titles = re.findall(r"'([^']+)': ", str(site["nav"]))
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        titles += re.findall(r"^#+ (.+)$", text, re.M)
    assert len(titles) > 100
    assert not [title for title in titles if words_of(title) & IN_TITLES]


def test_a_module_name_is_unique_or_its_folder_makes_it_plain():
    counts = Counter(path.name for path in PACKAGE.rglob("*.py"))
    assert {name for name, count in counts.items() if count > 1} <= SHARED_NAMES
    assert not {
        name for name in counts if name in {"utils.py", "helpers.py", "misc.py", "common.py", "parts.py"}
    }


def test_a_name_means_one_thing_in_the_package():
    places: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        place = str(path.relative_to(PACKAGE))
        if place in ("cli.py", "build/embedder.py") or place.startswith(("api/", "cli_panels/")):
            continue  # commands and the Python API: the names of what they call
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(place)
    twice = {name for name, files in places.items() if len(files) > 1}
    assert twice <= DEFINED_TWICE


def test_short_modules_have_several_users_or_a_family():
    users: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        modules = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        users.update(modules)
    short = []
    for path in PACKAGE.rglob("*.py"):
        place = str(path.relative_to(PACKAGE))
        module = "uniaudio." + place.removesuffix(".py").replace("/", ".")
        if path.name.startswith("__") or place.startswith(FAMILIES):
            continue
        if len(path.read_text().splitlines()) < 60 and users[module] <= 1:
            short.append(place)
    assert set(short) <= SHORT


def test_init_files_are_empty():
    full = [path for path in PACKAGE.rglob("__init__.py") if path.read_text() and path.parent != PACKAGE]
    assert not full
