"""Generated clips as files: what the benchmarks of the data path and of whole runs read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from uniaudio.types import SAMPLE_RATE


def encoded(seconds: float, format: str, seed: int, rate: int = SAMPLE_RATE) -> bytes:
    """Return noise as a 16-bit file."""
    buffer = io.BytesIO()
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    soundfile.write(buffer, noise, rate, format=format, subtype="PCM_16")
    return buffer.getvalue()


def write_parquet(file: Path, clips: Sequence[bytes], columns: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with their clips inside, in groups of 100."""
    import pyarrow
    import pyarrow.parquet as pq

    rows = [
        {"audio": {"bytes": clip, "path": str(i)}, **row}
        for i, (clip, row) in enumerate(zip(clips, columns, strict=True))
    ]
    pq.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=100)


def write_tar(file: Path, ending: str, clips: Sequence[bytes], columns: Sequence[Mapping[str, Any]]) -> None:
    """Write every row as a clip and a JSON file of the same name."""
    with tarfile.open(file, "w") as tar:
        for i, (clip, row) in enumerate(zip(clips, columns, strict=True)):
            for suffix, content in ((ending, clip), ("json", json.dumps(dict(row)).encode())):
                info = tarfile.TarInfo(f"{file.stem}_{i}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
