"""LibriSpeech and sets in its layout: `<split>/<speaker>/<chapter>/*.trans.txt` beside the clips."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from uniaudio.config.text_files import compose
from uniaudio.data.importers.base import ImportedData, ImportOptions, list_skipped_counts, make_name
from uniaudio.data.sources.manifest import read_lines
from uniaudio.errors import UserError

TRANSCRIPTS = "*.trans.txt"
UNNAMED = "no line names the clip"
SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus")


def read_librispeech(source: Path, options: ImportOptions) -> ImportedData:
    """Read a folder of splits such as `train-clean-100` and `test-clean`, or one of them."""
    files = sorted(source.absolute().rglob(TRANSCRIPTS))  # <split>/<speaker>/<chapter>/file
    if not files:
        raise UserError(f"{source}: holds no {TRANSCRIPTS}, which LibriSpeech has next to its clips")
    data, skipped = ImportedData(), Counter[str]()
    rows: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        split = file.parents[2].name if len(file.parents) > 2 else source.name
        if read := read_transcripts(file, skipped):
            rows.setdefault(make_name(split), []).extend(read)
    if not rows:
        reasons = ", ".join(+skipped) or "all are empty"
        raise UserError(f"{source}: no line of a {TRANSCRIPTS} can be used ({reasons})")
    clips = {UNNAMED: skipped.pop(UNNAMED)}
    data.notes = list_skipped_counts(skipped, "lines") + list_skipped_counts(clips, "clips")
    columns = {"text": "{{ text | lower }}"}
    data.add_manifests("librispeech", rows, license="CC-BY-4.0", columns=columns)
    data.add_lines("librispeech", "asr")
    return data


def read_transcripts(file: Path, skipped: Counter[str]) -> list[dict[str, Any]]:
    """Return a row for each line `ID TEXT` whose clip lies beside the file.

    Args:
        skipped: is counted what is left out, by reason.

    Raises:
        UserError: when the file cannot be read.
    """
    clips = {compose(clip.stem): clip for clip in file.parent.iterdir() if clip.suffix.lower() in SUFFIXES}
    speaker, _, chapter = file.name.removesuffix(".trans.txt").partition("-")
    rows, named = [], set[str]()
    for _, line in read_lines(file):
        key, *text = line.split(maxsplit=1)
        named.add(compose(key))
        if compose(key) not in clips:
            skipped["there is no clip with its name"] += 1
        elif not text:
            skipped["there is no text after its name"] += 1
        else:
            rows.append(
                {
                    "audio": str(clips[compose(key)]),
                    "text": text[0],
                    "id": key,
                    "speaker": speaker,
                    "chapter": chapter,
                }
            )
    skipped[UNNAMED] += len(clips.keys() - named)
    return rows
