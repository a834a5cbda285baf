"""The model card of an exported encoder or whole model: a header that the Hub reads, and text for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from uniaudio import __version__
from uniaudio.export.hf import STOCK
from uniaudio.model.encoders.base import AudioEncoder

LICENSE_NAME = "licenses-of-bases-and-data"  # where they are several, or not known
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")  # how the Hub writes one


def make_header(facts: Mapping[str, Any], pipeline: str | None = None) -> str:
    """Return the metadata of a card as YAML.

    A card states a license where all bases and data sets have that one; otherwise it is ``other``, with a link to what
    the card says of them.

    Args:
        facts: ``base_models`` (names on the Hub), ``licenses`` (of bases and data, empty texts for unknown ones),
            ``datasets`` (``hub`` or else ``name``), ``metrics``; the last three may be missing or empty.
        pipeline: the task by which the Hub lists the model; with None it is found by its tags, for a page that names a
            pipeline shows a call of it, and transformers has none for the frames of sound.
    """
    licenses = {text.lower() for text in facts.get("licenses", ())}
    common = next(iter(licenses)) if len(licenses) == 1 else ""
    is_known = LICENSE.fullmatch(common) is not None
    bases = list(facts.get("base_models", ()))
    data = ModelCardData(
        license=common if is_known else "other",
        license_name=None if is_known else LICENSE_NAME,
        license_link=None if is_known else "README.md",
        library_name="transformers",
        pipeline_tag=pipeline,
        base_model=bases[0] if len(bases) == 1 else bases or None,
        datasets=[row.get("hub") or row["name"] for row in facts["datasets"]] or None,
        metrics=list(facts.get("metrics", ())) or None,
        tags=["audio", "uniaudio"] if pipeline else ["audio", "uniaudio", "audio-feature-extraction"],
    )
    return data.to_yaml()


def write_card(folder: Path, encoder: AudioEncoder, facts: Mapping[str, Any], place: str) -> Path:
    """Write ``README.md`` into an exported folder.

    Args:
        facts: ``name``, ``domains``, ``steps``, ``stages``, ``bases``, ``datasets`` (name, tasks, license, hours),
            ``audio_hours``, ``results`` (set, model, measure, value), and what ``make_header`` takes.
        place: folder or Hub name in the examples.
    """
    return render_card(
        folder,
        "model_card.md.jinja",
        facts,
        header=make_header(facts),
        dim=encoder.dim,
        frame_rate=encoder.frame_rate,
        reach=encoder.reach,
        recomputes=encoder.can_recompute(),
        reads_prompt=getattr(encoder, "takes_prompts", False),
        place=place,
        stock=STOCK if (folder / STOCK).is_dir() else "",
        pads=encoder.reach is not None
        and getattr(encoder, "pad_to", None) == encoder.reach
        and getattr(encoder, "pad_stride", None) is None,
        soxr=any("import soxr" in file.read_text(encoding="utf-8") for file in folder.glob("*.py")),
    )


def write_lm_card(folder: Path, facts: Mapping[str, Any], to: str, code: str, notes: Sequence[str]) -> Path:
    """Write ``README.md`` beside an exported whole model.

    Args:
        facts: as of ``write_card``. to: its format. code: lines that load it. notes: sentences for its users.
    """
    header = make_header(facts, "audio-text-to-text")
    return render_card(folder, "lm_card.md.jinja", facts, header=header, format=to, code=code, notes=notes)


def render_card(folder: Path, template: str, facts: Mapping[str, Any], **values: Any) -> Path:
    """Write ``README.md`` from a template of this package.

    Args:
        facts: as of ``write_card``. values: what else the template reads.
    """
    environment = Environment(
        loader=PackageLoader("uniaudio.export", "."),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, read as text
        keep_trailing_newline=True,
    )
    safe = {**facts, "datasets": [escape_cells(row) for row in facts["datasets"]]}
    text = environment.get_template(template).render(facts=safe, version=__version__, **values)
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def escape_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row with what would end a cell of a Markdown table taken out of its texts."""
    return {
        key: value.replace("|", "/").replace("\n", " ") if isinstance(value, str) else value
        for key, value in row.items()
    }
