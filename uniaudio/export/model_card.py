"""The model card of an exported encoder or whole model: a header that the Hub reads, and text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from uniaudio import __version__
from uniaudio.export.hf import STOCK
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.registry import WHISPER_OPTIONS

LICENSE_NAME = "licenses-of-bases-and-data"  # where they are several, or not known
# those that the Hub accepts in a header, as far as data and weights of sound have them; others it refuses
LICENSES = {
    *(
        "apache-2.0",
        "mit",
        "openrail",
        "bigscience-openrail-m",
        "creativeml-openrail-m",
        "bsl-1.0",
        "isc",
        "c-uda",
    ),
    *("bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"),
    *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by", "odbl", "pddl", "wtfpl"),
    *(
        "agpl-3.0",
        "gfdl",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl-2.1",
        "lgpl-3.0",
        "mpl-2.0",
        "unlicense",
        "llama2",
        "gemma",
    ),
}
NAMED_OTHERWISE = {"odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl"}  # by the Hub


def make_header(facts: Mapping[str, Any], pipeline: str | None = None) -> str:
    """Return the metadata of a card as YAML.

    A card states a license where all bases and data sets have that one and the Hub knows it; otherwise it is ``other``,
    and the text of the card says of each what is known. Data sets are those that are on the Hub.

    Args:
        facts: ``base_models`` (names on the Hub), ``licenses`` (of bases and data, empty texts for unknown ones),
            ``datasets`` (with their names on the Hub as ``hub``), ``metrics``; all but these may be missing.
        pipeline: the task by which the Hub lists the model; with None it is found by its tags, for a page that names a
            pipeline shows a call of it, and transformers has none for the frames of sound.
    """
    licenses = {text.lower() for text in facts.get("licenses", ())}
    common = next(iter(licenses)) if len(licenses) == 1 else ""
    common = NAMED_OTHERWISE.get(common, common)
    is_known = common in LICENSES
    bases = list(facts.get("base_models", ()))
    data = ModelCardData(
        license=common if is_known else "other",
        license_name=None if is_known else LICENSE_NAME,
        library_name="transformers",
        pipeline_tag=pipeline,
        base_model=bases[0] if len(bases) == 1 else bases or None,
        datasets=list(dict.fromkeys(row["hub"] for row in facts["datasets"] if row.get("hub"))) or None,
        metrics=list(facts.get("metrics", ())) or None,
        tags=["audio", "uniaudio"] if pipeline else ["audio", "uniaudio", "audio-feature-extraction"],
    )
    return data.to_yaml()


def write_card(folder: Path, encoder: AudioEncoder, facts: Mapping[str, Any], place: str) -> None:
    """Write ``README.md`` into an exported folder.

    Args:
        facts: ``name``, ``domains``, ``steps``, ``stages``, ``bases``, ``datasets`` (name, tasks, license, hours),
            ``audio_hours``, ``results`` (set, model, measure, value), and what ``make_header`` takes.
        place: folder or Hub name in the examples.
    """
    encoder_settings = find_whisper_settings(encoder)
    render_card(
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
        pads=encoder.reach is not None and encoder_settings == {"pad_to": encoder.reach},
        settings=", ".join(f"{name}: {str(value).lower()}" for name, value in encoder_settings.items()),
        pool=encoder_settings.get("pool", 1),
        packages=list_packages(folder),
    )


def list_packages(folder: Path) -> str:
    """Return the packages that the code in a folder imports, as the end of a sentence."""
    resamples = any("import soxr" in file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
    return f"torch, transformers{', soxr' if resamples else ''} and numpy"


def find_whisper_settings(encoder: AudioEncoder) -> dict[str, Any]:
    """Return those settings of an encoder, by name, with which it reads a clip otherwise than alone as it is."""
    given = {name: getattr(encoder, name, None) for name in WHISPER_OPTIONS}
    return {name: value for name, value in given.items() if value and (name, value) != ("pool", 1)}


def write_lm_card(folder: Path, facts: Mapping[str, Any], to: str, code: str, notes: Sequence[str]) -> None:
    """Write ``README.md`` beside an exported whole model.

    Args:
        facts: as of ``write_card``. to: its format. code: lines that load it. notes: sentences for its users.
    """
    header = make_header(facts, "audio-text-to-text")
    render_card(folder, "lm_card.md.jinja", facts, header=header, format=to, code=code, notes=notes)


def render_card(folder: Path, template: str, facts: Mapping[str, Any], **values: Any) -> None:
    """Write ``README.md`` from a template of this package, which reads ``facts`` and ``values``."""
    environment = Environment(
        loader=PackageLoader("uniaudio.export", "."),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, read as text
        keep_trailing_newline=True,
    )
    safe = {**facts, "datasets": [escape_cells(row) for row in facts["datasets"]]}
    text = environment.get_template(template).render(facts=safe, version=__version__, **values)
    (folder / "README.md").write_text(text, encoding="utf-8")


def escape_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row with what would end a cell of a Markdown table taken out of its texts."""
    return {
        key: value.replace("|", "/").replace("\n", " ") if isinstance(value, str) else value
        for key, value in row.items()
    }
