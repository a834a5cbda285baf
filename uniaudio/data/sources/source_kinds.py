"""The kinds of sources that a card may name under `load`, and opening the rows of a split."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.base import ShardedSource, Source
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.errors import UserError, convert_to_user_error, escape_text

# Kind of a card -> module and class, or function that chooses one. Imported when asked for: they need this file, and
# some of them large libraries.
KINDS = {
    "hub": ("hub", "open_hub_source"),
    "parquet": ("parquet", "ParquetSource"),
    "webdataset": ("webdataset", "WebDatasetSource"),
    "audiofolder": ("audiofolder", "AudioFolderSource"),
    "jsonl": ("manifest", "JsonlSource"),
    "csv": ("manifest", "CsvSource"),
    "kaldi": ("kaldi", "KaldiSource"),
}
OPENED: ContextVar[dict[tuple[Any, ...], Source] | None] = ContextVar("opened_sources", default=None)


@contextmanager
def keep_sources_open() -> Iterator[None]:
    """Open every split once inside, for commands that look at the same rows for several reasons."""
    token = OPENED.set({})
    try:
        yield
    finally:
        OPENED.reset(token)


def open_source(card: DatasetCard, split: str) -> Source:
    """Open the rows that belong to a split of a card, or return them where they are open (``keep_sources_open``).

    Raises:
        UserError: when the place does not exist, cannot be read, or keeps no rows.
    """
    opened, key = OPENED.get(), (card.path, split, card.used)
    if opened is None:
        return open_new_source(card, split)
    if key not in opened:
        opened[key] = open_new_source(card, split)
    return opened[key]


def open_new_source(card: DatasetCard, split: str) -> Source:
    """Open the rows that belong to a split of a card, as ``open_source``."""
    module, name = KINDS[card.load.kind]
    kind: Callable[[DatasetCard, str], Source] = getattr(
        import_module(f"uniaudio.data.sources.{module}"), name
    )
    collects = gc.isenabled()
    gc.disable()  # millions of small objects are made and none is garbage: looking for it would double the time
    where = f"{card.path}: load.{card.load.kind}: {escape_text(card.load.location)} cannot be opened"
    try:
        with convert_to_user_error(where):
            source = kind(card, split)
    finally:
        if collects:
            gc.enable()
    if isinstance(source, ShardedSource) and card.each is not None:
        source.divided_by, source.size = card, None  # how many rows there are, only reading all of them tells
    if source.size == 0:
        skipped = describe_left_out(source.left_out)
        raise UserError(
            f"{card.path}: split '{split}' keeps no rows of {card.load.location}"
            f"{f'; skipped: {skipped}' if skipped else ''}"
        )
    return source
