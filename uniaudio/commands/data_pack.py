"""``uniaudio data pack``: a recipe's rows as 16 kHz FLAC in a few large files with an index, quick to read in any
order.
"""

from __future__ import annotations

import io
import json
import math
import random
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import soundfile
from rich.console import Console

from uniaudio.build.recipe_of_run import open_recipe
from uniaudio.config.base_files import read_layers
from uniaudio.config.search_paths import make_portable_name
from uniaudio.config.strict_yaml import write_yaml
from uniaudio.console import WorkProgress, make_console
from uniaudio.data.card import DatasetCard
from uniaudio.data.field_values import Classes, ClassIndex, FirstOf
from uniaudio.data.jinja import Text
from uniaudio.data.keep_conditions import KEY
from uniaudio.data.labels import describe_card_labels, describe_line_labels
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import Entry, EvalEntry
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import Row, decode_clips
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError, convert_to_row_error, escape_text
from uniaudio.outputs import require_new_folder
from uniaudio.types import SAMPLE_RATE
from uniaudio.units import SECONDS_PER_HOUR

LONGEST = 3600.0  # seconds of a clip


class Shards:
    """Tars of FLAC clips, a new one begun when the last is large enough; says where each clip lies."""

    def __init__(self, folder: Path, split: str, most_bytes: int) -> None:
        self.folder, self.split, self.most_bytes = folder, split, most_bytes
        self.number = -1
        self.tar: tarfile.TarFile | None = None

    def add(self, name: str, content: bytes, seconds: float) -> dict[str, Any]:
        """Write a clip and return where it lies: path, offset, size and its length in seconds."""
        if self.tar is None or self.tar.offset > self.most_bytes:
            self.close()
            self.number += 1
            self.tar = tarfile.open(  # noqa: SIM115 - it stays open until the next one is begun
                self.folder / f"{self.split}-{self.number:05d}.tar", "w", format=tarfile.PAX_FORMAT
            )
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self.tar.addfile(info, io.BytesIO(content))
        offset = self.tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        place = f"{self.split}-{self.number:05d}.tar"
        return {"path": place, "offset": offset, "size": len(content), "seconds": seconds}

    def close(self) -> None:
        if self.tar is not None:
            self.tar.close()


def pack_recipe(
    name: str, out: Path, shard_mib: int, console: Console | None = None, rows: int | None = None
) -> None:
    """Write every split that a recipe names, cards for them, and the recipe over those cards.

    Args:
        rows: keep so many of every split that is trained on, drawn evenly: a reservoir to replay later.

    Raises:
        UserError: when ``out`` holds anything, or nothing of a split could be used.
    """
    console = console or make_console()
    recipe = open_recipe(name).recipe
    require_new_folder(out, "--out")
    wanted: dict[str, tuple[DatasetCard, list[str]]] = {}
    for entry in (*recipe.train, *recipe.evaluate):
        card, splits = wanted.setdefault(entry.dataset.name, (entry.dataset, []))
        if entry.split not in splits:
            splits.append(entry.split)
    (out / "datasets").mkdir(parents=True)
    for card, splits in wanted.values():
        hours: dict[str, float] = {}
        for split in splits:
            trained = any((e.dataset.name, e.split) == (card.name, split) for e in recipe.train)
            kept, lost, seconds, classes = pack_split(
                card, split, out, shard_mib << 20, console, rows if trained else None
            )
            hours[split] = seconds / SECONDS_PER_HOUR
            console.print(
                f"{card.name}, {split}: {kept:,} rows, {hours[split]:.2f} h, {lost} left out",
            )
        write_packed_card(card, hours, out, classes)
    write_packed_recipe(recipe, out)
    console.print(f"train with recipe: {out / f'{recipe.name}.yaml'}")


def pack_split(
    card: DatasetCard, split: str, out: Path, most_bytes: int, console: Console, most_rows: int | None = None
) -> tuple[int, int, float, Mapping[str, Classes]]:
    """Write one split, or ``most_rows`` of it.

    Returns:
        Its rows, the rows left out (listed in ``skipped.jsonl``), its seconds, the classes of its columns.
    """
    card = replace(card, used=None)  # another recipe may use other columns
    source = open_source(card, split)
    folder = out / card.name
    folder.mkdir(exist_ok=True)
    shards = Shards(folder, split, most_bytes)
    rows, lost, seconds = 0, 0, 0.0
    with (
        WorkProgress(console, "rows") as progress,
        (folder / f"{split}.jsonl").open("w", encoding="utf-8") as manifest,
        (out / "skipped.jsonl").open("a", encoding="utf-8") as skipped,
    ):
        chosen = source.rows() if most_rows is None else sample_reservoir(source.rows(), most_rows)
        total = source.size if most_rows is None else min(most_rows, source.size or most_rows)
        task = progress.begin(f"{card.name}, {split}", total)
        for packed in pack_rows(chosen, card, shards):
            progress.count(task)
            if isinstance(packed, RowError):
                lost += 1
                fact = {"split": split, **asdict(Skip.of(card.name, "", packed))}
                skipped.write(json.dumps(fact, ensure_ascii=False) + "\n")
                continue
            rows += 1
            seconds += sum(packed[column]["seconds"] for column in card.audio)
            manifest.write(make_manifest_line(packed))
    shards.close()
    if not rows:
        raise UserError(
            f"dataset {card.name}, split {split}: no row could be used; see {out / 'skipped.jsonl'}"
        )
    return rows, lost, seconds, source.classes


def sample_reservoir(rows: Iterator[Row | RowError], count: int) -> Iterator[Row | RowError]:
    """Yield ``count`` rows in their order, each set of rows equally likely (Vitter 1985, algorithm R); the same ones
    every time. Rows that cannot be used do not count.
    """
    rng = random.Random(0)
    kept: list[tuple[int, Row]] = []
    seen = 0
    for number, row in enumerate(rows):
        if not isinstance(row, Row):
            continue
        seen += 1
        if len(kept) < count:
            kept.append((number, row))
        elif (place := rng.randrange(seen)) < count:
            kept[place] = (number, row)
    yield from (row for _, row in sorted(kept, key=lambda item: item[0]))


def pack_rows(
    rows: Iterator[Row | RowError], card: DatasetCard, shards: Shards
) -> Iterator[dict[str, Any] | RowError]:
    """Decode and encode row by row; a row that cannot be used comes as its error."""
    for number, row in enumerate(rows):
        if not isinstance(row, Row):
            yield row
            continue
        try:
            with convert_to_row_error("broken metadata", row.key, row.key):
                columns = {
                    name: convert_plain_value(value)
                    for name, value in name_classes(row.columns, card).items()
                }
                # `key` may be a column that is learned, such as that of a piece of music
                packed = {**columns, KEY if "key" in columns else "key": escape_text(row.key)}
                make_manifest_line({name: value for name, value in packed.items() if name not in card.audio})
                clips = decode_clips(row, LONGEST)
        except RowError as problem:
            yield problem
            continue
        for column, samples in zip(card.audio, clips, strict=True):
            buffer = io.BytesIO()
            soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            place = f"{number:09d}.{column}.flac"
            packed[column] = shards.add(place, buffer.getvalue(), len(samples) / SAMPLE_RATE)
        yield packed


def name_classes(columns: Mapping[str, Any], card: DatasetCard) -> dict[str, Any]:
    """Return the columns with the names of classes in place of their numbers.

    A number stays where the card takes it as a number, as in ``{{ ['low', 'high'][label] }}``: a manifest has no
    features that would say both.
    """

    def name_classes_in(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [name_classes_in(name, item) for item in value]
        if isinstance(value, dict):
            return {key: name_classes_in(name, item) for key, item in value.items()}
        return str(value) if isinstance(value, ClassIndex) else value

    plain_columns = {name: name_classes_in(name, value) for name, value in columns.items()}
    for name in [name for name, value in columns.items() if isinstance(value, ClassIndex)]:
        for text in card.columns.values():
            if name in text.names and render_or_none(text, columns) != render_or_none(
                text, {**columns, name: plain_columns[name]}
            ):
                plain_columns[name] = int(columns[name])
    return plain_columns


def render_or_none(text: Text | FirstOf, columns: Mapping[str, Any]) -> Any:
    try:
        return text.render(columns)
    except RowError:
        return None


def convert_plain_value(value: Any) -> Any:
    """Return the value of a column, or None for a number that JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_manifest_line(packed: dict[str, Any]) -> str:
    """Return a row as a line of a manifest.

    Raises:
        ValueError, RecursionError: when JSON cannot hold it.
    """
    line = json.dumps(packed, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    line.encode()
    return line


def write_packed_card(
    card: DatasetCard, hours: Mapping[str, float], out: Path, classes: Mapping[str, Classes]
) -> None:
    """Write the card of a packed set: what the old one says, but for where the rows are and how many.

    Args:
        hours: of audio that were packed, by split. classes: of the columns of the old card, which are stored by their
            names now.
    """
    data = read_layers(card.path, "dataset")
    data.pop("hours", None)  # of all rows; a sample has fewer
    data |= {
        "load": {"jsonl": f"../{card.name}"},
        "audio": list(card.audio),
        "labels": describe_card_labels(card, classes),
        "segment": "none",  # clips are cut: columns with times of the recording mean nothing here
        "splits": {
            split: {"name": split, "hours": float(f"{length:.4g}")} for split, length in hours.items()
        },
        # the items of the column with `each` are stored, one in every row
        "columns": {
            n: text for n, text in data.get("columns", {}).items() if n not in (*card.audio, card.each)
        },
    }
    write_yaml(out / "datasets" / f"{card.name}.yaml", data)


def write_packed_recipe(recipe: Recipe, out: Path) -> None:
    """Write the recipe with its shares as weights; replays stand in it as lines of their own."""

    def line(entry: Entry | EvalEntry) -> dict[str, Any]:
        # looked for beside the file that was read: a replayed recipe or a path may name another one than `task` does
        names = [make_portable_name("template", t.task, t.path.parent) for t in entry.templates]
        facts: dict[str, Any] = {
            "dataset": entry.dataset.name,
            "template": names if isinstance(entry, Entry) else names[0],
            "split": entry.split,
        }
        if isinstance(entry, Entry):
            facts["weight"] = entry.share
            steps = entry.augmenter.steps if entry.augmenter is not None else ()
            facts["augment"] = [step.model_dump(mode="json", exclude_none=True) for step in steps]
        else:
            facts |= {
                "max_examples": entry.max_examples,
                "condition": entry.condition,
                "scoring": dict(entry.scoring),
            }
        if entry.long_clips is not None:
            facts["long_clips"] = {k: v for k, v in asdict(entry.long_clips).items() if v is not None}
        return facts | {"constants": dict(entry.constants)} | describe_line_labels(entry.templates)

    data = {
        "recipe": recipe.name,
        "train": [line(entry) for entry in recipe.train],
        "evaluate": [line(entry) for entry in recipe.evaluate],
    }
    write_yaml(out / f"{recipe.name}.yaml", data)
