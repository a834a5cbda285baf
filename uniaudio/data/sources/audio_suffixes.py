"""By which suffix a file is a clip: all that the decoders read."""

from __future__ import annotations

import soundfile

from uniaudio.data.containers.libsndfile_log import HEADERLESS

UNDESCRIBED = {"RAW"}  # cannot be read without its rate being stated
# other suffixes in use for the formats that the library names
ALSO = {
    ".aif", ".aifc", ".8svx", ".bwf", ".iff", ".mp2", ".mpga", ".oga", ".opus", ".sf", ".snd", ".sph", ".wave",
}  # fmt: skip

SUFFIXES = (
    {f".{name.lower()}" for name in soundfile.available_formats() if name not in UNDESCRIBED}
    | ALSO
    | set(HEADERLESS)
)
CLIPS = SUFFIXES | {
    ".m4a"
}  # a clip too: that it cannot be decoded is told, where passing over it would hide it
