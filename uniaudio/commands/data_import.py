"""``uniaudio data import``: a data set in the layout of others as cards, templates and a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import orjson
from rich.console import Console

from uniaudio.commands.data_stats import measure_entry
from uniaudio.config.nearest import suggest_name
from uniaudio.config.strict_yaml import write_yaml
from uniaudio.console import make_console
from uniaudio.data.importers.base import (
    KINDS,
    MANIFESTS,
    ImportedData,
    ImportOptions,
    list_skipped_counts,
    make_name,
    read_source,
)
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.data.recipe_entries import Entry, EvalEntry
from uniaudio.data.scaffold.column_profiles import LONE_SURROGATE
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.paths import TARS, expand_places, is_remote, join_place
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError, escape_text
from uniaudio.outputs import remove_on_failure, require_new_folder

LOOKED_AT = 500  # rows of a split of which lengths and answers are shown
MOST_LABELS = 60  # different answers that are still a set of labels
SHOWN = 5  # of them
EXAMPLE_CONFIG = "whisper_small_qwen3"  # in the command that is printed
TURNS = ("last", "all")


def import_data(
    kind: str,
    source: Path,
    out: Path,
    name: str | None,
    root: Path | None,
    configs: Sequence[str],
    turns: str,
    console: Console | None = None,
) -> Recipe:
    """Write what an importer makes of a source, look at every split of it, and print both; see ``data import --help``.

    Raises:
        UserError: when ``out`` holds anything, or the source is not of the kind; nothing is left behind then.
    """
    console = console or make_console()
    if kind not in KINDS:
        raise UserError(
            f"there is no importer '{kind}'{suggest_name(kind, KINDS)}; known: {', '.join(KINDS)}"
        )
    require_new_folder(out, "--out")
    if turns not in TURNS:
        raise UserError(f"--turns {turns}: give last or all")
    source = source.expanduser()
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder")
    named = make_name(name or out.absolute().name)
    options = ImportOptions(
        named, None if root is None else str(root), tuple(configs), cast(Literal["last", "all"], turns)
    )
    data = read_source(kind, source, options)
    if not data.train:
        sets = ", ".join(f"{line['dataset']} {line['split']}" for line in data.evaluate)
        raise UserError(
            f"{source}: there is no training set, only {sets}; a recipe needs a training set, so "
            "import both together"
        )
    with remove_on_failure(out):
        recipe = write_import(data, out, named)
        show_import(recipe, data, out, console)
    return recipe


def write_import(data: ImportedData, out: Path, name: str) -> Recipe:
    """Write manifests, cards, templates and the recipe, and read them as any other.

    Raises:
        UserError: as ``load_recipe``.
    """
    (out / "datasets").mkdir(parents=True, exist_ok=True)
    skipped = Counter[str]()
    for path, rows in data.manifests.items():
        file = out / MANIFESTS / f"{path}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(file, rows, skipped)
    data.notes += list_skipped_counts(skipped, "rows")
    for card, content in data.cards.items():
        write_yaml(out / "datasets" / f"{card}.yaml", content)
    for template, content in data.templates.items():
        write_yaml(out / f"{template}.yaml", content)
    recipe: dict[str, Any] = {"recipe": name, "train": data.train, "evaluate": data.evaluate}
    recipe_file = out / f"{name}.yaml"
    if recipe_file.exists():  # a template of this name: names of files are those of their records
        recipe_file = out / f"{name}_recipe.yaml"
        recipe["recipe"] = recipe_file.stem
    write_yaml(recipe_file, recipe | ({"mix": data.mix} if data.mix else {}))
    return load_recipe(str(recipe_file))


def write_manifest(file: Path, rows: Iterable[Mapping[str, Any]], skipped: Counter[str]) -> None:
    """Write rows as JSON lines.

    Args:
        skipped: is counted what JSON cannot hold, by reason.
    """
    with file.open("wb") as stream:
        for row in rows:
            try:
                line = orjson.dumps(row)
            except TypeError as problem:  # orjson's own kind for all that it refuses
                reason = (
                    "text or path that is not UTF-8" if has_undecoded_text(row) else f"not JSON: {problem}"
                )
                skipped[reason] += 1
            else:
                stream.write(line + b"\n")


def has_undecoded_text(value: Any) -> bool:
    """Return whether a text in nested values holds bytes of another encoding, which stand as lone surrogates."""
    if isinstance(value, str):
        return LONE_SURROGATE.search(value) is not None
    if isinstance(value, Mapping):
        return any(map(has_undecoded_text, (*value, *value.values())))
    return isinstance(value, list | tuple) and any(map(has_undecoded_text, value))


def show_import(recipe: Recipe, data: ImportedData, out: Path, console: Console) -> None:
    """Print every split, the notes and the next commands; hours that were measured are added to the cards."""

    def say(text: str) -> None:
        console.print(escape_text(text), soft_wrap=True)

    absent = 0
    entries: list[Entry | EvalEntry] = [*recipe.train, *recipe.evaluate]
    for entry in entries:
        share = f", {entry.share:.1%} of the draws" if isinstance(entry, Entry) else ", evaluated"
        say(f"{entry.dataset.name}, {entry.split}{share}: {entry.templates[0].task}")
        try:
            lines = describe_split(entry, data, out)
        except UserError as problem:
            absent += 1
            lines = [f"cannot be read yet: {problem}"]
        for line in lines:
            say(f"  {line}")
    for note in data.notes:
        say(f"note: {note}")
    manifests = f", {len(data.manifests)} manifest(s)" if data.manifests else ""
    say(f"wrote {recipe.path}, {len(data.cards)} card(s), {len(data.templates)} template(s){manifests}")
    if absent:
        say(
            f"{absent} split(s) cannot be read yet: download their files, or name the folder that "
            "contains them with --root"
        )
    say(f"next: uniaudio preview {recipe.path}")
    say(f"      uniaudio check {EXAMPLE_CONFIG} stages.0.recipe={recipe.path}")


def describe_split(entry: Entry | EvalEntry, data: ImportedData, out: Path) -> list[str]:
    """Return what is seen of a split: rows, hours, columns and answers; of one that lies elsewhere, its shards.

    Raises:
        UserError: when it cannot be opened, or none of its first rows can be used.
    """
    card = entry.dataset
    if is_remote(card.load.places[0]):
        files = [join_place(card.load.places[0], file) for file in card.split(entry.split).files]
        return [
            f"{len(expand_places(files, TARS, str(card.path)))} shards at {card.load.places[0]}, not opened"
        ]
    as_trained = Entry(
        dataset=card, templates=entry.templates, split=entry.split, constants=entry.constants, share=1.0
    )
    stats = measure_entry(as_trained, LOOKED_AT)
    rows = "rows not counted" if stats.rows is None else f"{stats.rows:,} rows"
    hours = stats.hours
    stated = data.cards[card.name].get("hours")
    if hours is not None and stated is None and isinstance(entry, Entry) and stats.rows:
        data.cards[card.name]["hours"] = max(0.0001, float(f"{hours:.4g}"))
        write_yaml(out / "datasets" / f"{card.name}.yaml", data.cards[card.name])
    about = "about " if stats.estimated else ""
    length = "" if hours is None or not stats.rows else f", {about}{hours:.2f} h"
    lines = [f"{rows}{length}, {stats.unusable} of {stats.looked_at} inspected rows cannot be used"]
    columns: dict[str, None] = {}
    answers: Counter[str] = Counter()
    rows_seen = (row for row in open_source(card, entry.split).rows() if isinstance(row, Row))
    for row in islice(rows_seen, LOOKED_AT):
        columns |= dict.fromkeys(map(str, row.columns))
        try:
            answers.update([as_trained.render_question(row, entry.templates[0]).answer])
        except RowError:
            continue
    lines.append(f"columns {', '.join(columns)}")
    if 1 < len(answers) <= min(MOST_LABELS, sum(answers.values()) // 2):
        common = ", ".join(label for label, _ in answers.most_common(SHOWN))
        lines.append(f"{len(answers)} different answers: {common}{' ...' if len(answers) > SHOWN else ''}")
    elif answers:
        lines.append(f"answers such as: {next(iter(answers))[:80]}")
    return lines + stats.notes
