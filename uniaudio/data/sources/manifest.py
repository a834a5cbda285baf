"""Manifests: JSON lines and tables with a header, audio paths relative to the file or inside a tar."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson  # a million lines in half a second, where `json` takes three

from uniaudio.config.text_files import read_text_of_rows
from uniaudio.data.card import DatasetCard
from uniaudio.data.keep_conditions import KEY
from uniaudio.data.sources.in_memory import ListedSource
from uniaudio.data.sources.paths import is_remote
from uniaudio.data.sources.split_files import SPLIT, refuse_other_splits
from uniaudio.data.sources.split_names import find_named_splits, has_words, list_other_words
from uniaudio.errors import RowError, UserError, convert_to_row_error, convert_to_user_error, mask_values

csv.field_size_limit(1 << 30)  # characters: a long text is a row to skip, not the end of the file

EMPTY_CELLS = {"", "nan", "NaN", "<NA>"}  # of a table: no value, as pandas writes it
NO_NUMBERS = ("NaN", "Infinity")  # what Python writes into JSON for floats that JSON does not have
NAMED_DELIMITER = "sep="  # how the first line of a table begins that names the delimiter for Excel
# by suffix; tabs cannot stand in a field of a .tsv, so quotes are text there, as speech corpora write them
FORMATS: dict[str, dict[str, Any]] = {
    ".csv": {"delimiter": ",", "strict": True},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of the lines that are not empty.

    Cut at line ends alone: ``str.splitlines`` would also cut at signs that may stand in a transcript.

    Raises:
        UserError: when the file cannot be read.
    """
    lines = read_text_of_rows(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.strip()


def read_jsonl(path: Path) -> list[dict[str, Any] | RowError]:
    """Read one object per non-empty line; a line that holds none comes as its error.

    Raises:
        UserError: when the file cannot be read, or holds one list of objects.
    """
    rows: list[dict[str, Any] | RowError] = []
    begins_list, line = False, ""
    for number, line in read_lines(path):
        try:
            with convert_to_row_error("broken metadata", f"line {number}: not JSON", f"line {number}"):
                row = parse_json(line)
                if not isinstance(row, dict):
                    raise RowError("broken metadata", f"line {number}: must be one object")
            rows.append(row)
        except RowError as problem:
            rows.append(problem)
            begins_list = begins_list or (len(rows) == 1 and line.startswith("["))
    if begins_list and line.endswith("]"):
        raise UserError(f"{path}: holds a JSON list; write one object per line, without commas between them")
    return rows


def parse_json(text: str, constant: Callable[[str], Any] | None = None) -> Any:
    """Return the value of JSON that may hold numbers that are none, as Python and pandas write them.

    Args:
        constant: name of such a number -> its value; they become floats without it.

    Raises:
        ValueError: when the text is not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        if not any(word in text for word in NO_NUMBERS):
            raise
    try:
        return json.loads(text, parse_constant=constant)
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem


def read_table(path: Path) -> list[dict[str, Any] | RowError]:
    """Read a table whose first line names the columns; ``.tsv`` is cut at tabs and knows no quotes.

    A line with another number of fields than the header, or with a quote that is not closed, comes as its error. Where
    such a quote swallows lines that follow, they are read as lines of their own.

    Raises:
        UserError: naming the file, when it or its header cannot be read, or two columns have one name.
    """
    lines = list(io.StringIO(read_text_of_rows(path), newline=""))  # the ends of lines inside of quotes stay
    named, begin = read_named_delimiter(lines)
    form = named or choose_table_format(path, lines[0] if lines else "")
    with convert_to_user_error(f"{path}: cannot be read"):
        reader = csv.reader(lines[begin:], **form)
        header = next(reader, [])
        # "a, b": blanks, and quotes behind them, belong to the commas
        if any(name[:1] == " " for name in header):
            form = {**form, "skipinitialspace": True}
            reader = csv.reader(lines[begin:], **form)
            header = [name.strip() for name in next(reader)]
    refuse_equal_names(header, path)
    rows: list[dict[str, Any] | RowError] = []
    begin += reader.line_num
    while begin < len(lines):
        left = map(lines.__getitem__, range(begin, len(lines)))
        reader, start, problem = csv.reader(left, **form), begin, ""
        while not problem and begin < len(lines):
            try:
                fields = next(reader)
            except csv.Error as error:
                problem = str(error)
            else:
                if len(fields) not in (0, len(header)):
                    more = "more" if len(fields) > len(header) else "fewer"
                    problem = f"has {more} fields than the header's {len(header)}"
                elif fields:
                    rows.append(dict(zip(header, fields, strict=True)))
            begin = start + reader.line_num if not problem else begin + 1
        if problem:
            rows.append(make_keyed_error("broken metadata", f"line {begin}: {problem}", f"line {begin}"))
    return rows


def read_named_delimiter(lines: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Return how a table is cut whose first line names its delimiter for Excel (``sep=;``), and the line of its header.

    Other tables have no such line: nothing is returned of them, and the first line is the header.
    """
    first = lines[0].strip("\r\n") if lines else ""
    if not first.startswith(NAMED_DELIMITER) or len(first) != len(NAMED_DELIMITER) + 1:
        return {}, 0
    return {**FORMATS[".csv"], "delimiter": first[-1]}, 1


def refuse_equal_names(header: Sequence[str], path: Path) -> None:
    """Refuse a table in which two columns have one name: only one of them could be used, and which, nobody would know.

    Raises:
        UserError: naming the column.
    """
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise UserError(
            f"{path}: {header.count(twice[0])} columns are named '{twice[0]}'; rename or remove them"
        )


def make_keyed_error(reason: str, detail: str, key: str) -> RowError:
    """Return the error of a row whose key is known."""
    error = RowError(reason, detail)
    error.key = key
    return error


def choose_table_format(path: Path, header: str) -> dict[str, Any]:
    """Return how a table is cut: by its suffix; where its first line holds no comma, by what stands there instead."""
    if path.suffix.lower() in FORMATS and path.suffix.lower() != ".csv":
        return FORMATS[path.suffix.lower()]
    delimiter = next((sign for sign in (",", "\t", ";", "|") if sign in header), ",")
    if delimiter == "\t" and path.suffix.lower() != ".csv":
        return FORMATS[".tsv"]
    return {**FORMATS[".csv"], "delimiter": delimiter}


def find_manifest(card: DatasetCard, split: str, suffixes: tuple[str, ...]) -> Path:
    """Return the manifest itself, or the one in a folder: that of the stored split, else ``manifest``.

    Raises:
        UserError: when there is no such file or split.
    """
    name = card.split(split).name
    path = Path(card.load.location.replace(SPLIT, name))
    if path.is_dir():
        return find_manifest_in(card, split, path, suffixes)
    if not path.is_file():
        raise UserError(f"{card.path}: load.{card.load.kind}: there is no manifest {path}")
    if path.stem != name and SPLIT not in card.load.location:
        refuse_other_splits(card, split)
    return path


def find_manifest_in(card: DatasetCard, split: str, folder: Path, suffixes: tuple[str, ...]) -> Path:
    """Return the manifest of a split in a folder: by the split's name, another word for it, or its name as a word.

    Raises:
        UserError: when there is none, or several name the split.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file())
    name = card.split(split).name
    for word in (name, *list_other_words(name)):
        exact = [file for file in files if file.stem == word]
        if exact:
            return min(exact, key=lambda file: suffixes.index(file.suffix.lower()))
        named = [
            file for file in files if has_words(file.stem, word) and len(find_named_splits(file.stem)) < 2
        ]
        if len(named) > 1:
            raise UserError(
                f"{card.path}: splits.{split}: several manifests in {folder} name the split '{word}' "
                f"({', '.join(file.name for file in named)}); name one of them under load.{card.load.kind}"
            )
        if named:
            return named[0]
    whole = [file for file in files if file.stem == "manifest"]
    if not whole:
        others = f"; there are {', '.join(file.name for file in files)}" if files else ""
        raise UserError(
            f"{card.path}: load.{card.load.kind}: there is no manifest {folder / f'manifest{suffixes[0]}'}{others}"
        )
    refuse_other_splits(card, split)
    return min(whole, key=lambda file: suffixes.index(file.suffix.lower()))


class JsonlSource(ListedSource):
    """A manifest file, or a folder with ``manifest.jsonl`` (``<name>.jsonl`` for a stored split of that name)."""

    def __init__(self, card: DatasetCard, split: str) -> None:
        path = find_manifest(card, split, (".jsonl", ".ndjson"))
        super().__init__(card, split, name_rows(read_jsonl, path, card), path.parent, path)


class CsvSource(ListedSource):
    """A table, or a folder with ``manifest.csv`` (or ``.tsv``; ``<name>.csv`` for a stored split of that name)."""

    def __init__(self, card: DatasetCard, split: str) -> None:
        path = find_manifest(card, split, (".csv", ".tsv"))
        super().__init__(card, split, name_rows(read_table_with_lengths, path, card), path.parent, path)

    def with_values(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        return clear_empty_cells(columns)


def clear_empty_cells(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a row of a table, with no value where the cell is empty."""
    return {name: None if value in EMPTY_CELLS else value for name, value in columns.items()}


def read_table_with_lengths(path: Path) -> list[dict[str, Any] | RowError]:
    """Read a table, see ``read_table``, with lengths as numbers: they spare a look at the audio's header."""
    rows = read_table(path)
    for row in rows:
        if not isinstance(row, RowError):
            with suppress(KeyError, ValueError):
                row["duration"] = float(row["duration"])
    return rows


def name_rows(
    read: Callable[[Path], list[dict[str, Any] | RowError]], path: Path, card: DatasetCard
) -> Iterator[tuple[str, dict[str, Any] | RowError]]:
    """Read a file once its rows are wanted; name them by their first clip, or by number where that is no plain path."""
    for number, row in enumerate(read(path)):
        if isinstance(row, RowError):
            yield row.key, row
            continue
        clip = locate_clip(row, card)
        if isinstance(clip, dict) and "offset" in clip:
            clip = row.get(KEY, row.get("key"))
        if isinstance(clip, str) and is_remote(clip):  # a query may hold a signature
            clip = mask_values(clip.partition("?")[0])
        yield (clip if isinstance(clip, str) else str(number)), row


def locate_clip(row: Mapping[str, Any], card: DatasetCard) -> Any:
    """Return the first audio column of a row, as it stands or as the card makes it of others."""
    text = card.audio_texts.get(card.audio[0])
    if text is None:
        return row.get(card.audio[0])
    try:
        return text.render(row)
    except RowError:
        return None
