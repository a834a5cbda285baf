"""Rows of JSON files: of JSON lines or of one list, compressed or not."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from uniaudio.errors import convert_to_user_error


def parse_json(content: bytes) -> Any:
    """Return the value of JSON, with None for numbers that are none.

    Raises:
        ValueError: when it is not JSON.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        if not any(word in content for word in (b"NaN", b"Infinity")):
            raise
    try:
        return json.loads(content, parse_constant=lambda name: None)
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem


def read_json_rows(path: Path, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines or of one JSON list, compressed with gzip or not.

    Numbers that are none (NaN), as Python and pandas write them, become None.

    Args:
        skipped: is counted what is no object, by reason.

    Raises:
        UserError: when the file cannot be read.
    """
    with convert_to_user_error(f"{path}: cannot be read"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    content = content.removeprefix(b"\xef\xbb\xbf").strip()
    items: list[Any] = []
    if content.startswith(b"["):
        with convert_to_user_error(f"{path}: is not JSON"):
            items = parse_json(content)
    else:
        for line in filter(None, map(bytes.strip, content.split(b"\n"))):
            try:
                items.append(parse_json(line))
            except ValueError:
                items.append(None)
    for item in items:
        if isinstance(item, dict):
            yield item
        else:
            skipped["not a JSON object"] += 1
