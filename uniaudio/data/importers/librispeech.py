"""LibriSpeech and sets in its layout: `<split>/<speaker>/<chapter>/*.trans.txt` beside the clips."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from uniaudio.data.importers.base import (
    MANIFESTS,
    ImportedData,
    Importer,
    ImportOptions,
    list_skipped_counts,
    make_name,
)
from uniaudio.errors import UserError, convert_to_user_error

TRANSCRIPTS = "*.trans.txt"
SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus")


class LibriSpeechImporter(Importer):
    """A folder of splits such as `train-clean-100` and `test-clean`, or one of them."""

    source: ClassVar[str] = "the folder with train-clean-100, test-clean ..., or one of them"

    def read(self, source: Path, options: ImportOptions) -> ImportedData:
        files = sorted(source.rglob(TRANSCRIPTS))
        if not files:
            raise UserError(f"{source}: holds no {TRANSCRIPTS}, as LibriSpeech has them beside its clips")
        data, skipped = ImportedData(), Counter[str]()
        rows: dict[str, list[dict[str, Any]]] = {}
        for file in files:
            # <split>/<speaker>/<chapter>/file
            split = file.parents[2].name if len(file.parents) > 2 else source.name
            rows.setdefault(make_name(split), []).extend(read_transcripts(file, skipped))
        data.manifests = {f"librispeech/{split}": listed for split, listed in rows.items() if listed}
        data.notes = list_skipped_counts(skipped, "lines")
        data.add_card(
            "librispeech",
            load={"jsonl": f"../{MANIFESTS}/librispeech"},
            license="CC-BY-4.0",
            columns={"text": "{{ text | lower }}"},
            splits={split: {"name": split} for split in rows},
        )
        data.add_lines("librispeech", "asr")
        data.mix = {"by": "rows"}
        return data


def read_transcripts(file: Path, skipped: Counter[str]) -> list[dict[str, Any]]:
    """Return a row for each line `ID TEXT` whose clip lies beside the file.

    Args:
        skipped: is counted what is left out, by reason.
    """
    with convert_to_user_error(f"{file}: cannot be read"):
        lines = file.read_text(encoding="utf-8").splitlines()
    clips = {clip.stem: clip for clip in file.parent.iterdir() if clip.suffix.lower() in SUFFIXES}
    rows = []
    for line in filter(None, map(str.strip, lines)):
        key, *text = line.split(maxsplit=1)
        if key not in clips:
            skipped["there is no clip of its name"] += 1
            continue
        speaker, _, chapter = file.name.removesuffix(".trans.txt").partition("-")
        rows.append(
            {
                "audio": str(clips[key].absolute()),
                "text": "".join(text),
                "id": key,
                "speaker": speaker,
                "chapter": chapter,
            }
        )
    return rows
