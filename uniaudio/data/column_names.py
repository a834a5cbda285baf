"""What columns usually hold, by their names, in the order in which they are preferred; names that Jinja cannot use."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

SOLE_NAME = re.compile(r"\{\{\s*([^{}|'\"()]+?)\s*\}\}")  # a text that is meant to be one column
TRANSCRIPTS = (
    "text", "sentence", "transcription", "transcript", "normalized_text", "raw_transcription",
    "normalized_transcription", "utterance",
)  # fmt: skip
CAPTIONS = ("captions", "caption", "description")
LABELS = (
    "label", "labels", "class", "classes", "category", "categories", "command", "keyword", "word", "target", "tag",
    "tags", "sound", "event", "species",
)  # fmt: skip
QUALITIES = (  # of a recording or of who speaks, which are asked about where there is nothing else
    "emotion", "intent", "genre", "instrument", "gender", "scene", "acoustic_scene", "accent", "age", "pitch",
    "tempo", "bpm", "mood", "dialect",
)  # fmt: skip
QUESTIONS, REPLIES = ("question", "context", "query", "instruction"), ("answer", "response", "output")
CLIPS = (
    "audio", "file_name", "audio_path", "audio_filepath", "audio_file", "path", "file", "filename", "filepath", "wav",
    "wav_path", "clip", "recording", "location", "slice_file_name", "fname",
)  # fmt: skip
# columns whose rows must not be divided: the same speaker, recording or piece
GROUPS = (
    "speaker", "speaker_id", "spk", "spk_id", "speakerid", "client_id", "talker", "singer", "actor", "artist",
    "artist_id", "patient", "patient_id", "subject", "subject_id", "participant", "participant_id", "user", "user_id",
    "group", "group_id", "session", "session_id", "recording_id", "original_id", "video_id", "youtube_id", "ytid",
    "fsid", "freesound_id", "album", "album_id", "track_id", "song", "song_id", "device_id",
)  # fmt: skip
SPLITS = ("split", "subset", "partition", "set")
FOLDS = ("fold",)
LANGUAGES = ("language", "lang", "locale", "language_id")
IDS = ("id", "uid", "uuid", "utt_id", "utterance_id", "clip_id", "audio_id", "sample_id", "segment_id")
# says nothing that can be heard in the clip
OTHERS = (
    "duration", "length", "seconds", "start", "end", "offset", "begin", "sampling_rate", "sample_rate", "sr", "source",
    "source_sr", "url", "license", "index", "key", "split", "num_samples", "channels", "channel", "n_frames",
)  # fmt: skip


@lru_cache(maxsize=4096)
def simplify_name(column: str) -> str:
    """Return the name of a column as the lists here spell it."""
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def find_named(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return the columns that are called by one of some names, in the order of the names."""
    listed = list(columns)
    return [column for name in names for column in listed if simplify_name(column) == name]


def suggest_first_of(source: str, stored: Collection[str] | None = None) -> str:
    """Return how to name a column whose name is no name of Jinja, where a text is nothing but that; else nothing.

    Args:
        source: such as ``{{ Emotion Label }}``. stored: the columns that there are, where they are known.
    """
    alone = SOLE_NAME.fullmatch(source.strip())
    if alone is None or alone[1].isidentifier() or (stored is not None and alone[1] not in stored):
        return ""
    return f"; for a column of this name, write {{first_of: [{json.dumps(alone[1], ensure_ascii=False)}]}}"
