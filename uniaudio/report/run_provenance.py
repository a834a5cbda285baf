"""Where a run comes from: its data with licences and hashes, its weights, what its config shares with others."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.recipe import Recipe
from uniaudio.data.sources.manifest import find_manifest
from uniaudio.errors import UserError, escape_text
from uniaudio.report.run_folder import RunRecord

PACKAGES = ("uniaudio", "torch", "transformers", "accelerate", "soundfile", "scikit-learn")
SUFFIXES = {"jsonl": (".jsonl",), "csv": (".csv", ".tsv")}  # kinds of cards whose rows stand in a manifest
SHORT = 12  # digits of a hash
ABSENT = "–"


@dataclass(frozen=True)
class DataFact:
    """One dataset of the runs: ``drawn`` and ``skipped`` rows of all of them together."""

    name: str
    license: str
    used: str
    place: str
    hash: str
    drawn: int | None
    skipped: str


def collect_data_facts(recipes: Sequence[Recipe], runs: Sequence[RunRecord]) -> list[DataFact]:
    """Tell of every dataset that the recipes train on or ask."""
    trained = {entry.dataset.name: entry.dataset for recipe in recipes for entry in recipe.train}
    evaluated = {entry.dataset.name: entry.dataset for recipe in recipes for entry in recipe.evaluate}
    drawn = Counter[str]()
    for run in runs:
        drawn.update(run.drawn)
    facts = []
    for name, card in {**trained, **evaluated}.items():
        used = [
            word for word, cards in (("trained on", trained), ("evaluated on", evaluated)) if name in cards
        ]
        facts.append(
            DataFact(
                name,
                card.license,
                ", ".join(used),
                escape_text(f"{card.load.kind}: {card.load.location}"),
                hash_card(card),
                drawn.get(name),
                describe_skips(name, runs),
            )
        )
    return facts


def describe_skips(source: str, runs: Sequence[RunRecord]) -> str:
    """Say how many rows of a source were skipped, by reason."""
    counts = Counter[str]()
    for run in runs:
        counts.update(run.skipped.get(source, {}))
    return ", ".join(f"{rows} {reason}" for reason, rows in counts.items()) or "0"


def hash_card(card: DatasetCard) -> str:
    """Return what fixes the rows: the commit of a Hub dataset, the hash of all manifests, else that of the card."""
    if card.load.kind == "hub":
        return f"commit {card.load.revision[:SHORT]}" if card.load.revision else "no commit stated"
    if card.load.kind in SUFFIXES:
        manifests: dict[Path, bytes] = {}
        for split in card.splits:
            with suppress(UserError, OSError):
                file = find_manifest(card, split, SUFFIXES[card.load.kind])
                manifests.setdefault(file, file.read_bytes())
        if not manifests:
            return "no manifest found"
        return f"manifest{'s' * (len(manifests) > 1)} {hash_content(b''.join(manifests.values()))}"
    return f"card {hash_content(card.path.read_bytes())}"


def hash_content(content: bytes) -> str:
    """Return the first digits of a hash."""
    return hashlib.sha256(content).hexdigest()[:SHORT]


def collect_base_facts(runs: Sequence[RunRecord]) -> list[tuple[str, str, str, str]]:
    """Return run, part, path and hash (or commit) of every set of weights that a run started from."""
    return [
        (
            run.name,
            part,
            base.get("path", ABSENT),
            str(base.get("sha256") or base.get("revision") or ABSENT)[:SHORT],
        )
        for run in runs
        for part, base in run.bases.items()
    ]


def flatten_config(config: Any, before: str = "") -> dict[str, str]:
    """Return the values of a config by their dotted keys; lists are gone through by number."""
    if isinstance(config, Mapping):
        items = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, list):
        items = [(str(number), value) for number, value in enumerate(config)]
    else:
        return {before: str(config)}
    if not items:
        return {before: str(config)} if before else {}
    flattened: dict[str, str] = {}
    for key, value in items:
        flattened |= flatten_config(value, f"{before}.{key}" if before else key)
    return flattened


def find_config_differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return the keys of which the runs have different values, with the value of each run."""
    values = [flatten_config(run.config) for run in runs]
    keys = dict.fromkeys(key for facts in values for key in facts)
    rows = [(key, [facts.get(key, ABSENT) for facts in values]) for key in keys]
    return [(key, texts) for key, texts in rows if len(set(texts)) > 1]


def collect_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages with which the page is written."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return versions
