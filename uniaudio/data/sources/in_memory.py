"""Sources whose rows fit in memory without their audio: manifests and folders."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from uniaudio.data.card import DatasetCard
from uniaudio.data.jinja import Text
from uniaudio.data.sources.audio_columns import explain_missing_audio, make_row
from uniaudio.data.sources.base import IndexedSource, Row, is_row_in_split
from uniaudio.data.sources.row_table import NamedRow, share_fingerprint, share_listing, share_rows
from uniaudio.errors import RowError, UserError, convert_to_row_error

HASHED_ROWS = 10_000  # encoded at once


class ListedSource(IndexedSource):
    """Rows as plain mappings, with audio paths relative to ``folder``.

    Args:
        rows: (key, columns or why there are none); a key that comes again gets ``#2``, ``#3`` and so on behind it.
        file: that the rows come from, where nothing but it and the card decides what they are: of the processes of a
            machine one alone then reads a large file.
    """

    def __init__(
        self,
        card: DatasetCard,
        split: str,
        rows: Iterable[tuple[str, Mapping[str, Any] | RowError]],
        folder: Path,
        file: Path | None = None,
    ) -> None:
        self.card = card
        self.folder = folder
        if file is None:
            self.listed = share_rows(self.list_rows(split, rows))
        else:
            self.listed = share_listing(
                file, self.describe_listing(split), lambda: self.list_rows(split, rows)
            )
        self.size = len(self.listed)

    def list_rows(
        self, split: str, rows: Iterable[tuple[str, Mapping[str, Any] | RowError]]
    ) -> list[NamedRow]:
        """Return the rows of a split under distinct keys.

        Raises:
            UserError: see ``iterate_kept_rows`` and ``check_audio_columns``.
        """
        kept = list(iterate_kept_rows(self.card, split, rows))
        if self.card.each is not None:
            kept = [(key, divided) for key, columns in kept for divided in self.divide_columns(columns)]
        check_audio_columns(self.card, [columns for _, columns in kept])
        names = make_unique(key for key, _ in kept)
        return [(name, columns) for name, (_, columns) in zip(names, kept, strict=True)]

    def describe_listing(self, split: str) -> list[Any]:
        """Return what decides, beside the file, which rows are listed, under which keys and with which columns."""
        card, kept = self.card, self.card.split(split)
        made = {**card.columns, **{f"audio {name}": text for name, text in card.audio_texts.items()}}
        texts = {
            name: text.source if isinstance(text, Text) else [text.ordered, text.each]
            for name, text in made.items()
        }
        return [
            type(self).__name__,
            card.audio,
            texts,
            kept.name,
            None if kept.keep is None else kept.keep.source,
        ]

    def fingerprint(self, columns: Collection[str]) -> str:
        """Hash the keys and the used columns of all rows, in order."""
        return share_fingerprint(self.listed, columns, lambda: self.hash_columns(columns))

    def hash_columns(self, columns: Collection[str]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for first in range(0, len(self.listed), HASHED_ROWS):
            part = self.listed[first : first + HASHED_ROWS]
            rows = [{"error": str(row)} if isinstance(row, RowError) else row for _, row in part]
            there = set().union(*rows)
            digest.update(encode_values([key for key, _ in part]))
            for name in sorted(there & {*columns, "error"}):
                digest.update(encode_values([name, *(row.get(name) for row in rows)]))
        return digest.hexdigest()

    def row(self, index: int) -> Row:
        key, columns = self.listed[index]
        with convert_to_row_error("unreadable row", key, key):
            if isinstance(columns, RowError):
                raise columns.copy()
            columns = self.with_values(columns)
            return make_row(self.card, key, columns, columns, self.folder, self.locate_clip)

    def locate_clip(self, value: Any) -> Any:
        """Return an audio column of a row as ``parse_audio`` understands it."""
        return value

    def divide_columns(self, columns: Mapping[str, Any] | RowError) -> Sequence[Mapping[str, Any] | RowError]:
        """Return the columns of the rows that a stored one becomes, see ``DatasetCard.divide_columns``."""
        if isinstance(columns, RowError):
            return [columns]
        return self.card.divide_columns(self.with_values(columns))

    def with_values(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the columns of a row as templates are to see them."""
        return columns


def encode_values(values: list[Any]) -> bytes:
    """Return plain values as bytes, the same ones for the same values."""
    try:
        return orjson.dumps(values, default=str, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):  # half a character, a number beyond 64 bits, or nested too deep
        return b"\n".join(map(encode_value, values))


def encode_value(value: Any) -> bytes:
    """Return one value as bytes; those of one that is nested too deep to be used say so alone."""
    try:
        return repr(value).encode("utf-8", "backslashreplace")
    except RecursionError:
        return b"nested too deep"


def iterate_kept_rows(
    card: DatasetCard, split: str, rows: Iterable[tuple[str, Mapping[str, Any] | RowError]]
) -> Iterator[tuple[str, Mapping[str, Any] | RowError]]:
    """Yield the rows that belong to a split, and as an error those of which it cannot be told.

    Raises:
        UserError: when it can be told of none: the condition is wrong, not the rows.
    """
    first: UserError | None = None
    usable = False
    for key, columns in rows:
        if isinstance(columns, RowError):
            yield key, columns
            continue
        try:
            kept = is_row_in_split(card, columns, split, key)
        except RowError as problem:
            first = first or UserError(f"{card.path}: {key}: {problem.detail}")
            yield key, problem
            continue
        except UserError as problem:
            first = first or problem
            yield key, RowError("missing column", str(problem))
            continue
        usable = True
        if kept:
            yield key, columns
    if first is not None and not usable:
        raise first


def check_audio_columns(card: DatasetCard, rows: Sequence[Mapping[str, Any] | RowError]) -> None:
    """Refuse rows of which none could be read, and a card with an audio column that none of the rows has.

    Raises:
        UserError: with the reason of the first row, or the columns that it has.
    """
    readable = [columns for columns in rows if not isinstance(columns, RowError)]
    if rows and not readable:
        raise UserError(
            f"{card.path}: none of {len(rows)} rows of {card.load.location} can be read ({rows[0]})"
        )
    for name in card.stored_audio if readable else ():
        if not any(name in columns for columns in readable):
            raise UserError(f"{card.path}: {explain_missing_audio('every row', name, readable[0])}")


def make_unique(keys: Iterable[str]) -> list[str]:
    """Return the keys, with ``#2``, ``#3`` ... behind those that came before, whatever the keys themselves end with."""
    times: dict[str, int] = {}
    distinct = []
    for key in keys:
        name = key
        while name in times:
            times[key] += 1
            name = f"{key}#{times[key]}"
        times[name] = 1
        distinct.append(name)
    return distinct
