"""The model card: what the encoder was trained on, what was measured, how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from uniaudio import __version__
from uniaudio.export.hf import STOCK
from uniaudio.model.encoders.base import AudioEncoder


def write_card(folder: Path, encoder: AudioEncoder, facts: Mapping[str, Any], place: str) -> Path:
    """Write ``README.md`` into an exported folder.

    Args:
        facts: ``name``, ``domains``, ``steps``, ``stages``, ``bases``, ``datasets`` (name, tasks, license, hours),
            ``audio_hours`` and ``results`` (set, model, measure, value). place: folder or Hub name in the examples.
    """
    environment = Environment(
        loader=PackageLoader("uniaudio.export", "."),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, read as text
        keep_trailing_newline=True,
    )
    text = environment.get_template("card.md.jinja").render(
        facts={**facts, "datasets": [cells(row) for row in facts["datasets"]]},
        dim=encoder.dim,
        frame_rate=encoder.frame_rate,
        reach=encoder.reach,
        version=__version__,
        place=place,
        stock=STOCK if (folder / STOCK).is_dir() else "",
        soxr=any("import soxr" in file.read_text(encoding="utf-8") for file in folder.glob("*.py")),
    )
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row with what would end a cell of a Markdown table taken out of its texts."""
    return {
        key: value.replace("|", "/").replace("\n", " ") if isinstance(value, str) else value
        for key, value in row.items()
    }
