"""Labelled folders for probes: a manifest (``.jsonl``, ``.csv`` or ``.tsv``) with audio, label and split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.card import DatasetCard, Load, Split
from uniaudio.data.field_values import wrap_value, write_value
from uniaudio.data.row_questions import decode_clips
from uniaudio.data.source import Row, open_source
from uniaudio.errors import RowError, UserError, convert_to_row_error

LONGEST = 600.0  # seconds; probes take clips of any usual length


@dataclass(frozen=True)
class LabelledSet:
    """Decoded clips and class indices of the train and the test split."""

    name: str
    train_clips: list[NDArray[np.int16]]
    train_labels: NDArray[np.int64]
    test_clips: list[NDArray[np.int16]]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]


def load_labelled(name: str, folder: Path) -> LabelledSet:
    """Read a labelled folder.

    Raises:
        UserError: when the manifest, a column or a split is missing, a clip cannot be read, or a test label was never
            seen in training: a probe must not be judged on fewer clips in silence.
    """
    manifest = next((file for file in manifests_of(folder) if file.is_file()), None)
    if manifest is None:
        names = ", ".join(file.name for file in manifests_of(folder)[1:])
        raise UserError(f"--data {name}={folder}: there is no {manifests_of(folder)[0]} (nor {names})")
    clips: dict[str, list[NDArray[np.int16]]] = {"train": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "test": []}
    for row in open_source(card_of_manifest(name, manifest), "train").rows():
        try:
            if isinstance(row, RowError):
                raise row
            split, label = (required_column(row, column) for column in ("split", "label"))
            if split in clips:
                labels[split].append(label)
                clips[split] += decode_clips(row, LONGEST)
        except RowError as problem:
            key = row.key if isinstance(row, Row) else problem.key
            raise UserError(
                f"{manifest}: {key}: {problem}; a probe takes every row of its splits"
            ) from problem
    if not clips["train"] or not clips["test"]:
        raise UserError(f"{manifest}: needs rows with split 'train' and rows with split 'test'")
    classes = tuple(sorted(set(labels["train"])))
    unseen = sorted(set(labels["test"]) - set(classes))
    if unseen:
        raise UserError(f"{manifest}: the test label '{unseen[0]}' does not occur in the train split")
    index = {label: i for i, label in enumerate(classes)}
    train, test = (np.array([index[label] for label in labels[split]], dtype=np.int64) for split in clips)
    return LabelledSet(name, clips["train"], train, clips["test"], test, classes)


def manifests_of(folder: Path) -> list[Path]:
    """Return the manifests that a labelled folder may have; the first that is there is read."""
    return [folder / f"manifest{suffix}" for suffix in (".jsonl", ".csv", ".tsv")]


def card_of_manifest(name: str, manifest: Path) -> DatasetCard:
    """Return a card for the rows of a manifest, so that they are read as those of training are."""
    kind = "jsonl" if manifest.suffix == ".jsonl" else "csv"
    load = Load.model_validate({kind: str(manifest)})
    return DatasetCard(name, load, "", None, ("audio",), {}, {"train": Split("train", None)}, manifest)


def required_column(row: Row, name: str) -> str:
    """Return a column as text.

    Raises:
        RowError: when the row lacks it, or it is a list or mapping.
    """
    if name not in row.columns:
        raise RowError("missing column", f"has no '{name}'; a probe needs audio, label and split")
    value = row.columns[name]
    if isinstance(value, bool):
        return str(value)
    with convert_to_row_error("missing column", name):
        return str(write_value(wrap_value(value, name)))
