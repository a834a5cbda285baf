"""Common Voice as it is downloaded: tables of sentences beside a folder `clips`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniaudio.data.importers.base import ImportedData, ImportOptions, make_name
from uniaudio.data.segment import read_number
from uniaudio.data.sources.manifest import read_table
from uniaudio.errors import RowError, UserError

TABLES = {"train": "train", "validation": "dev", "test": "test"}  # splits and their tables
WHOLE = "validated"  # the table of all clips that were validated, of which the three others are parts
DURATIONS = "clip_durations.tsv"  # of newer releases: clip and milliseconds


def read_common_voice(source: Path, options: ImportOptions) -> ImportedData:
    """Read the folder of one language: `train.tsv`, `dev.tsv`, `test.tsv` and `clips/`, else `validated.tsv`."""
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
    rows = read_sentences(folder / f"{splits['train']['name']}.tsv")
    suffix = "" if Path(rows[0]["path"]).suffix else ".mp3"  # early releases leave it out
    name = make_name(f"common_voice_{rows[0].get('locale') or folder.name}")
    data = ImportedData(notes=notes)
    hours = {"hours": stated} if (stated := sum_hours(folder, rows)) else {}
    data.add_card(
        name,
        load={"csv": str(folder.absolute())},
        license="CC0-1.0",
        **hours,
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


def read_sentences(table: Path) -> list[dict[str, Any]]:
    """Return the rows of a table that can be read.

    Raises:
        UserError: when there is none, or it lacks the columns of Common Voice.
    """
    rows = [row for row in read_table(table) if not isinstance(row, RowError)]
    if not rows or not rows[0].get("path") or "sentence" not in rows[0]:
        raise UserError(
            f"{table}: has no rows with `path` and `sentence`, so it is not a table of Common Voice"
        )
    return rows


def sum_hours(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Return the hours of the clips of rows; 0 where the release does not state their durations."""
    if not (folder / DURATIONS).is_file():
        return 0.0
    stated = [list(row.values()) for row in read_table(folder / DURATIONS) if not isinstance(row, RowError)]
    milliseconds = {row[0]: read_number(row[1]) or 0.0 for row in stated if len(row) > 1}
    return round(sum(milliseconds.get(row["path"], 0.0) for row in rows) / 3_600_000, 3)
