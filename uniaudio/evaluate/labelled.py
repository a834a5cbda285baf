"""Labelled folders for probes: ``manifest.jsonl`` with audio, label and split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.audio import decode
from uniaudio.data.sources.manifest import read_jsonl, whole_rows
from uniaudio.errors import RowError, UserError

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
    manifest = folder / "manifest.jsonl"
    if not manifest.is_file():
        raise UserError(f"--data {name}={folder}: there is no {manifest}")
    clips: dict[str, list[NDArray[np.int16]]] = {"train": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "test": []}
    for number, row in enumerate(whole_rows(manifest, read_jsonl(manifest)), 1):
        for column in ("audio", "label", "split"):
            if column not in row:
                raise UserError(
                    f"{manifest}: line {number}: has no '{column}'; a probe needs audio, label and split"
                )
        if row["split"] not in clips:
            continue
        try:
            clips[row["split"]].append(decode(folder / row["audio"], LONGEST, str(row["audio"])))
        except RowError as problem:
            raise UserError(f"{manifest}: line {number}: {problem}") from problem
        labels[row["split"]].append(str(row["label"]))
    if not clips["train"] or not clips["test"]:
        raise UserError(f"{manifest}: needs rows with split 'train' and rows with split 'test'")
    classes = tuple(sorted(set(labels["train"])))
    unseen = sorted(set(labels["test"]) - set(classes))
    if unseen:
        raise UserError(f"{manifest}: the test label '{unseen[0]}' does not occur in the train split")
    index = {label: i for i, label in enumerate(classes)}
    train, test = (np.array([index[label] for label in labels[split]], dtype=np.int64) for split in clips)
    return LabelledSet(name, clips["train"], train, clips["test"], test, classes)
