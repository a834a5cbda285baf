"""Rows of JSON files: of JSON lines or of one list, compressed or not."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uniaudio.data.sources.manifest import parse_json
from uniaudio.errors import convert_to_user_error


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
            items = parse_json(content.decode(), lambda name: None)
    else:
        for line in filter(None, map(bytes.strip, content.split(b"\n"))):
            try:
                items.append(parse_json(line.decode(), lambda name: None))
            except ValueError:
                items.append(None)
    for item in items:
        if isinstance(item, dict):
            yield item
        else:
            skipped["not a JSON object"] += 1
