"""The clips of a row: what its audio columns hold, and the segment that it names."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.encoded_audio import FilePart, encode_samples
from uniaudio.data.sources.base import AudioRef, Row
from uniaudio.data.sources.paths import is_remote
from uniaudio.data.sources.tar import IN_ARCHIVE, find_archive_member
from uniaudio.errors import RowError


def parse_audio(
    value: Any, row: Mapping[str, Any], folder: Path, name: str, timeout: float = 30.0
) -> AudioRef:
    """Understand an audio column.

    It may be a path or URL, a member of an archive (``clips.tar::a/b.flac``), a part of a file (``{"path": ...,
    "offset": ..., "size": ...}``), bytes, the Hub's ``{"bytes": ..., "path": ...}``, or samples as
    ``{"array": ..., "sampling_rate": ...}``.

    Args:
        timeout: seconds after which a connection that sends nothing is given up.

    Raises:
        RowError: when the column holds none of them, or the error why it has no value.
    """
    if isinstance(value, RowError):
        raise value.copy()
    length = parse_seconds(row.get("duration"))
    if isinstance(value, Mapping) and value.get("array") is not None and value.get("bytes") is None:
        return AudioRef(encode_samples(value["array"], value.get("sampling_rate"), name), name, length)
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        if not isinstance(value["bytes"], bytes | memoryview):
            raise RowError("broken metadata", f"{name}: `bytes` holds {type(value['bytes']).__name__}")
        path = value.get("path")
        return AudioRef(
            value["bytes"], name, length, suffix=Path(path).suffix if isinstance(path, str) else ""
        )
    if isinstance(value, bytes | memoryview):
        return AudioRef(value, name, length)
    if isinstance(value, list | tuple):
        holds = f"a list of {type(value[0]).__name__}" if value else "an empty list"
        raise RowError(
            "broken metadata",
            f"{name}: {holds}; give one clip as a path, its bytes, or {{array, sampling_rate}}",
        )
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, str) or not path:
        raise RowError("missing column", f"{name}: no audio path or bytes")
    if isinstance(value, Mapping) and "offset" in value:
        try:
            part = FilePart(folder / path, int(value["offset"]), int(value["size"]))
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            raise RowError("broken metadata", f"{name}: offset and size must be whole numbers") from problem
        seconds = parse_seconds(value["seconds"]) if "seconds" in value else length
        return AudioRef(part, name, seconds, suffix=part.path.suffix)
    if is_remote(path):
        from uniaudio.data.sources.url_clips import UrlClip  # which needs this file

        return AudioRef(UrlClip(path, timeout), name, length, suffix=Path(path.partition("?")[0]).suffix)
    archive, inside, member = path.partition(IN_ARCHIVE)
    if inside:
        return AudioRef(
            find_archive_member(folder / archive, member), name, length, suffix=Path(member).suffix
        )
    return AudioRef(folder / path, name, length)


def parse_seconds(value: Any) -> float | None:
    """Return a stated length in seconds, or None for what is no positive number: then the audio itself tells."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with contextlib.suppress(OverflowError):
        seconds = float(value)
        return seconds if 0 < seconds < math.inf else None
    return None


def make_row(
    card: DatasetCard,
    key: str,
    columns: Mapping[str, Any],
    stored: Mapping[str, Any],
    folder: Path,
    fetch: Callable[[Any], Any] = lambda clip: clip,
) -> Row:
    """Put a row together from its columns and the clips that the card finds in them.

    Args:
        columns: without clips. stored: those with clips, too. folder: that paths are relative to.
        fetch: what a source makes of an audio column before it is understood.

    Raises:
        RowError: see ``parse_row_audio``.
    """
    clips = {**stored, **{name: text.render(stored) for name, text in card.audio_texts.items()}}
    clips |= {name: fetch(clips[name]) for name in card.audio if name in clips}
    return Row(key, columns, parse_row_audio(clips, card, folder, key))


def parse_row_audio(
    columns: Mapping[str, Any], card: DatasetCard, folder: Path, key: str
) -> tuple[AudioRef, ...]:
    """Return one reference per audio column of a row.

    Raises:
        RowError: when the row has no such column, the column holds no clip, or its segment is none.
    """
    for name in card.audio:
        if name not in columns:
            raise RowError("missing column", explain_missing_audio(f"row {key}", name, columns))
    stated = columns if len(card.audio) == 1 else {}  # `duration` speaks of one clip
    refs = (
        parse_audio(columns[name], stated, folder, f"{key}.{name}", card.load.timeout) for name in card.audio
    )
    return tuple(apply_segment(ref, card, columns) for ref in refs)


def apply_segment(ref: AudioRef, card: DatasetCard, columns: Mapping[str, Any]) -> AudioRef:
    """Return a reference to the segment of the recording that a row names, where it names one.

    Raises:
        RowError: when its times cannot be used.
    """
    span = card.segment.read_span(columns, ref.name)
    return ref if span is None else replace(ref, span=span)


def explain_missing_audio(what: str, name: str, columns: Iterable[Any]) -> str:
    """Return the sentence that a row, or none of the rows, has an audio column that the card names."""
    return f"{what} has no audio column '{name}'; columns: {', '.join(map(str, columns))}"
