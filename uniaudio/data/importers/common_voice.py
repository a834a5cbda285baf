"""Common Voice as it is downloaded: tables of sentences beside a folder `clips`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

from uniaudio.data.importers.base import ImportedData, Importer, ImportOptions, make_name
from uniaudio.data.segment import read_number
from uniaudio.errors import UserError, convert_to_user_error

TABLES = {"train": "train", "validation": "dev", "test": "test"}  # splits and their tables
WHOLE = "validated"  # the table of all clips that were validated, of which the three others are parts
DURATIONS = "clip_durations.tsv"  # of newer releases: clip and milliseconds


class CommonVoiceImporter(Importer):
    """The folder of one language: `train.tsv`, `dev.tsv`, `test.tsv` and `clips/`; without them `validated.tsv`."""

    source: ClassVar[str] = "the folder of one language: train.tsv, dev.tsv, test.tsv and clips/"

    def read(self, source: Path, options: ImportOptions) -> ImportedData:
        folder = find_language_folder(source)
        splits = {
            split: {"name": table} for split, table in TABLES.items() if (folder / f"{table}.tsv").is_file()
        }
        notes = []
        if "train" not in splits:
            if not (folder / f"{WHOLE}.tsv").is_file():
                raise UserError(
                    f"{folder}: there is neither train.tsv nor {WHOLE}.tsv; name the folder of one language"
                )
            splits = {"train": {"name": WHOLE}, **splits}
            notes = [
                f"there is no train.tsv: training uses all of {WHOLE}.tsv, including the rows of the test set"
            ]
        first = read_first_row(folder / f"{splits['train']['name']}.tsv")
        suffix = "" if Path(first["path"]).suffix else ".mp3"  # early releases leave it out
        name = make_name(f"common_voice_{first.get('locale') or folder.name}")
        data = ImportedData(notes=notes)
        keys: dict[str, Any] = {}
        hours = sum_hours(folder, f"{splits['train']['name']}.tsv")
        if hours:
            keys["hours"] = hours
        data.add_card(
            name,
            load={"csv": str(folder.absolute())},
            license="CC0-1.0",
            **keys,
            audio=f"clips/{{{{ path }}}}{suffix}",
            columns={"text": "{{ sentence }}"},
            splits=splits,
        )
        data.add_lines(name, "asr")
        return data


def find_language_folder(source: Path) -> Path:
    """Return the folder that holds the tables: the source, or the only one below it that does.

    Raises:
        UserError: where there is none, or there are several.
    """
    tables = {f"{table}.tsv" for table in (*TABLES.values(), WHOLE)}
    if any((source / table).is_file() for table in tables):
        return source
    below = sorted({path.parent for table in tables for path in source.glob(f"*/{table}")})
    below = below or sorted({path.parent for table in tables for path in source.glob(f"*/*/{table}")})
    if len(below) == 1:
        return below[0]
    several = f"several languages ({', '.join(folder.name for folder in below)}); name one of them"
    raise UserError(f"{source}: holds {several if below else 'no train.tsv of Common Voice'}")


def read_first_row(table: Path) -> dict[str, str]:
    """Return the first row of a table.

    Raises:
        UserError: when it has none, or lacks the columns of Common Voice.
    """
    with (
        convert_to_user_error(f"{table}: cannot be read"),
        table.open(encoding="utf-8-sig", newline="") as file,
    ):
        row = next(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), None)
    if row is None or not row.get("path") or "sentence" not in row:
        raise UserError(
            f"{table}: has no rows with `path` and `sentence`, so it is not a table of Common Voice"
        )
    return row


def sum_hours(folder: Path, table: str) -> float | None:
    """Return the hours of a table's clips where the release states their durations."""
    if not (folder / DURATIONS).is_file():
        return None
    with convert_to_user_error(f"{folder / DURATIONS}: cannot be read"):
        with (folder / DURATIONS).open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            next(rows, None)
            milliseconds = {row[0]: read_number(row[1]) or 0.0 for row in rows if len(row) > 1}
        with (folder / table).open(encoding="utf-8-sig", newline="") as file:
            clips = [
                row.get("path") or "" for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            ]
    return round(sum(milliseconds.get(clip, 0.0) for clip in clips) / 3_600_000, 3) or None
