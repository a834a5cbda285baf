"""What whoever opens a model or a config allows it to do, and which runs were made on this machine.

A folder never says by itself that it may be trusted: its config states what it needs, the command line grants it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uniaudio.config.path_variables import get_cache_root
from uniaudio.errors import UserError, convert_to_user_error

COMMIT = re.compile(r"[0-9a-f]{40}")  # a revision of the Hub that cannot change, as branches and tags can


@dataclass(frozen=True)
class Trust:
    """What may run, for one call.

    Args:
        remote_code: Python code that a model's repository or folder carries (``--trust-remote-code``).
        code: classes that a config names as ``module:Class`` (``--allow-code``): encoders and callbacks.
    """

    remote_code: bool = False
    code: bool = False

    def __or__(self, other: Trust) -> Trust:
        """Return what either of two allows."""
        return Trust(self.remote_code or other.remote_code, self.code or other.code)


NO_TRUST = Trust()


def require_code(kind: str, where: str, trust: Trust) -> None:
    """Refuse to import ``module:Class`` unless that was allowed.

    Raises:
        UserError: naming the option.
    """
    if not trust.code:
        raise UserError(
            f"{where}: needs code of its own ({kind}); give --allow-code if you trust it "
            "(allow_code=True in Python)"
        )


def require_remote_code(name: str, where: str, trust: Trust) -> None:
    """Refuse to run code that comes with a model unless that was allowed.

    Raises:
        UserError: naming the option.
    """
    if not trust.remote_code:
        raise UserError(
            f"{where}: needs Python code that comes with {name} (trust_remote_code: true); read it, and give "
            "--trust-remote-code to let it run (trust_remote_code=True in Python)"
        )


def import_code(name: str, where: str, trust: Trust) -> Any:
    """Import what a config names as ``module:Class``, also from the working folder.

    Raises:
        UserError: when that was not allowed, or it cannot be imported.
    """
    require_code(name, where, trust)
    module, _, attribute = name.partition(":")
    add_working_folder_to_path()
    with convert_to_user_error(f"{where}: {name} cannot be imported"):
        return getattr(importlib.import_module(module), attribute)


def add_working_folder_to_path() -> None:
    """Let Python find the user's own modules in the working folder, where an installed command does not look."""
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)


def remember_run(folder: Path, settings: Mapping[str, Any], trust: Trust) -> None:
    """Remember in the user's cache that a run was made here, and what it was allowed.

    Args:
        folder: of the run. settings: of ``RunConfig.collect_trust_settings``; with others the run counts as somebody
            else's.
    """
    file = find_trust_file(folder, settings)
    allowed = Trust(trust.remote_code and is_pinned(settings), trust.code)
    with suppress(OSError):  # without a cache nothing is remembered, and the options are needed each time
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}-{os.getpid()}")
        unfinished.write_text(json.dumps({"run": str(folder.resolve()), **asdict(allowed)}) + "\n", "utf-8")
        unfinished.replace(file)


def read_remembered_trust(folder: Path, settings: Mapping[str, Any]) -> Trust | None:
    """Return what a run in this folder with these settings was allowed when it was made here; None: it was not."""
    try:
        file = find_trust_file(folder, settings)
        stored = json.loads(file.read_text("utf-8"))
        if stored["run"] != str(folder.resolve()) or not is_written_by_this_user(file):
            return None
        return Trust(stored["remote_code"] is True, stored["code"] is True)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def is_written_by_this_user(file: Path) -> bool:
    """Return whether a file has the owner that new files of this process have: others may share the cache."""
    owner = file.stat().st_uid
    if owner == os.geteuid():
        return True
    with tempfile.TemporaryFile(dir=file.parent) as new:  # some disks give files another owner
        return os.fstat(new.fileno()).st_uid == owner


def find_trust_file(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Return the file for a run: its name is the hash of the folder, the settings and the code that these name."""
    callbacks = [{"kind": name} for name in settings.get("callbacks", ())]
    parts = [*settings.get("encoders", {}).values(), settings.get("decoder", {}), *callbacks]
    code = [fingerprint_code(part) for part in parts]
    key = json.dumps([str(folder.resolve()), settings, code], sort_keys=True)
    return get_cache_root() / "runs-made-here" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def fingerprint_code(part: Mapping[str, Any]) -> list[str]:
    """Return places and hashes of the code that an encoder or decoder of a config names; nothing is imported."""
    files: list[Path] = []
    kind = str(part.get("kind", ""))
    if ":" in kind:
        files = list_module_files(kind.partition(":")[0])
    elif part.get("trust_remote_code"):
        folder = Path(str(part.get("path", "")).removeprefix("random:"))
        files = sorted(folder.glob("*.py")) if folder.is_dir() else []
    pairs = []
    for file in files:
        with suppress(OSError):
            pairs.append(f"{file.resolve()} {hashlib.sha256(file.read_bytes()).hexdigest()}")
    return pairs


def list_module_files(name: str) -> list[Path]:
    """Return the files that hold a module, by the place of its first package alone: that imports none of them.

    The working folder is searched last, as by ``import_code``, but Python's own search does not change.
    """
    first, *rest = name.split(".")
    try:
        spec = find_spec(first) or PathFinder.find_spec(first, [os.getcwd()])
    except (ImportError, ValueError):
        return []
    if spec is None or spec.origin is None:
        return []
    inside = Path(spec.origin).parent.joinpath(*rest)
    return (
        [Path(spec.origin), inside.with_suffix(".py"), inside / "__init__.py"]
        if rest
        else [Path(spec.origin)]
    )


def is_pinned(settings: Mapping[str, Any]) -> bool:
    """Return whether no part takes code from the Hub that may change: each is a folder, or its revision a commit."""
    parts = [*settings.get("encoders", {}).values(), settings.get("decoder", {})]
    return all(
        COMMIT.fullmatch(str(part.get("revision")))
        or Path(str(part.get("path", "")).removeprefix("random:")).is_dir()
        for part in parts
        if part.get("trust_remote_code")
    )
