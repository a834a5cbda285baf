"""Hashes of what a model computes: its weights, its settings, and the source code that comes with it."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import resolve_name
from pathlib import Path
from types import FunctionType, ModuleType

import torch
from torch import Tensor, nn

from uniaudio import __version__

PLAIN = (bool, int, float, str, tuple, type(None))
# what a module or a feature extractor knows that does not change what it computes
NOT_ITS_OWN = ("training", "name_or_path", "recomputes", "feature_extractor_type", "processor_class")
KNOWN_PACKAGES = ("uniaudio", "torch", "transformers")  # code that nobody edits between two commands
INSTALLED = ("site-packages", "dist-packages")


def hash_model(model: nn.Module) -> str:
    """Return a SHA-256 of what decides a model's output: classes, plain settings and weights; hexadecimal text.

    The ``extractor`` that an encoder has its features from counts like a module.

    Neither its name nor its path counts, so that a copy shares the cache and another weight does not. The version of
    this package counts: its code may change what an encoder computes. Of classes that are neither of this package nor
    of torch or transformers, the source code counts, the arguments and the tensors outside of the weights.
    """
    digest = hashlib.sha256(__version__.encode())
    parts = list_hashed_parts(model)
    for name, part in parts.items():
        settings = {
            key: value
            for key, value in sorted(vars(part).items())
            if isinstance(value, PLAIN) and key not in NOT_ITS_OWN
        }
        digest.update(f"{name}:{type(part).__qualname__}:{settings}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(view_bytes(tensor))
    foreign = [part for part in parts.values() if is_foreign(type(part).__module__)]
    for file in list_source_files(type(part).__module__ for part in foreign):
        digest.update(file.read_bytes())
    for module in (part for part in foreign if isinstance(part, nn.Module)):
        digest.update(repr(sorted(getattr(module, "made_with", {}).items())).encode())
        for tensor in (
            *module.buffers(recurse=False),
            *(t for t in vars(module).values() if isinstance(t, Tensor)),
        ):
            digest.update(view_bytes(tensor))
    return digest.hexdigest()


def hash_source_code(*objects: object) -> str:
    """Return a SHA-256 of the source code of models and tokenizers that is neither of this package nor of torch or
    transformers; hexadecimal text, empty where there is none.

    That is the code of the user's own classes, and code that comes with a model. The places of the files do not count:
    transformers copies the code of a model to a folder of its own, and where that is depends on the machine.
    """
    parts = [part for each in objects for part in list_hashed_parts(each).values()]
    files = list_source_files(type(part).__module__ for part in parts if is_foreign(type(part).__module__))
    contents = {f"{file.name}:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files}
    return hashlib.sha256("\n".join(sorted(contents)).encode()).hexdigest() if contents else ""


def list_hashed_parts(model: object) -> dict[str, object]:
    """Return a model, the modules in it and their feature extractors by name; of anything else the thing alone."""
    if not isinstance(model, nn.Module):
        return {"": model}
    parts: dict[str, object] = dict(model.named_modules())
    for name, module in model.named_modules():
        if vars(module).get("extractor") is not None:
            parts[f"{name}.extractor"] = module.extractor
    return parts


def view_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def is_foreign(module: str) -> bool:
    """Return whether a module of Python, by its name, is neither of this package nor of the libraries below it."""
    package = module.partition(".")[0]
    return package not in KNOWN_PACKAGES and package not in sys.stdlib_module_names


def list_source_files(modules: Iterable[str]) -> list[Path]:
    """Return the files of some modules of Python and of all that they import, without installed packages but their own.

    An encoder in ``my_encoder.py`` may call a function of ``my_layers.py`` beside it, or take a constant from there.
    """
    waiting = list(modules)
    packages = {name.partition(".")[0] for name in waiting}
    files: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        path = Path(getattr(module, "__file__", None) or "")
        is_installed = (
            any(part in INSTALLED for part in path.parts) and name.partition(".")[0] not in packages
        )
        if module is None or name in files or is_installed or not (is_foreign(name) and path.is_file()):
            continue
        files[name] = path
        waiting += {find_module_name(value) for value in vars(module).values()} | list_imports(module, path)
    return sorted({*files.values()})


def find_module_name(value: object) -> str:
    """Return the name of the module that a global of another module is, or comes from."""
    if isinstance(value, ModuleType):
        return value.__name__
    defined = value if isinstance(value, type | FunctionType) else type(value)
    return str(getattr(defined, "__module__", ""))


def list_imports(module: ModuleType, path: Path) -> set[str]:
    """Return the names of modules that stand in the import statements of one, those within functions left out.

    A number or a text that it has from another module does not say where it is from, as functions and classes do.
    Names of what is imported from a module are among them, for each may be a module itself. Whether an import within a
    function has been executed depends on what a process did before.
    """
    if path.suffix != ".py":
        return set()
    names: set[str] = set()
    waiting: list[ast.AST] = []
    with suppress(SyntaxError, ValueError):  # edited since it was imported, and in the midst of it
        waiting.append(ast.parse(path.read_bytes()))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = name_source(node, module.__package__ or "")
            names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return names


def name_source(statement: ast.ImportFrom, package: str) -> str:
    """Return the full name of the module that a ``from`` statement of a package takes names from."""
    try:
        return resolve_name("." * statement.level + (statement.module or ""), package)
    except ImportError:  # a relative import that never succeeds
        return ""
