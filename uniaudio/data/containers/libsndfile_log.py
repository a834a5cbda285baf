"""Formats without a reader of ours: what libsndfile notes while it opens them, and files without any header."""

from __future__ import annotations

import re

import soundfile

from uniaudio.data.containers.riff import Read, is_unknown_size
from uniaudio.errors import RowError

# notes of libsndfile: bytes that the header states and bytes that are there
CUT = re.compile(
    r"(?:SSND|BODY|Data Size|riff)\s*: (?P<stated>\d+) \(should be (?P<present>\d+)\)"
    r"|Data length (?P<stated2>\d+) should be (?P<present2>\d+)"
    r"|File seems to be truncated\. (?P<present3>\d+) <--> (?P<stated3>\d+)"
)
CUT_VOC = "Seems to be a truncated file"
FRAMES = re.compile(r"^ *Frames +: (\d+)", re.MULTILINE)  # of AVR and MPC2000 as stated, of SDS as there
COLUMNS = re.compile(r"Cols : (\d+)")  # of the matrix of samples, of MATLAB 5
SDS_BLOCK = 120  # frames that the last block of SDS may be short of
SAMPLE_COUNT = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)  # of NIST SPHERE
NIST_HEADER = 1024  # bytes
READ_BY_US = ("WAV", "WAVEX", "RF64", "FLAC", "MP3", "OGG", "RAW")

# what files without a header are, by their suffix: (subtype, rate); always one channel
HEADERLESS = {
    ".al": ("ALAW", 8000),
    ".alaw": ("ALAW", 8000),
    ".ul": ("ULAW", 8000),
    ".ulaw": ("ULAW", 8000),
    ".mulaw": ("ULAW", 8000),
    ".snd": ("ULAW", 8000),
    ".au": ("ULAW", 8000),
    ".gsm": ("GSM610", 8000),
    ".vox": ("VOX_ADPCM", 8000),
}


def check_notes(file: soundfile.SoundFile, read: Read, name: str) -> None:
    """Compare what the header of an opened file states with what is there, as far as libsndfile says.

    Raises:
        RowError: "truncated audio".
    """
    if file.format in READ_BY_US:
        return
    notes = file.extra_info
    if match := CUT.search(notes):
        facts = {key.rstrip("23"): int(value) for key, value in match.groupdict().items() if value}
        if facts["stated"] > facts["present"] and not is_unknown_size(facts["stated"]):
            raise RowError(
                "truncated audio",
                f"{name}: {facts['stated']} bytes of samples are stated, {facts['present']} are present",
            )
    if CUT_VOC in notes:
        raise RowError("truncated audio", f"{name}: the file ends within its samples")
    stated = int(match[1]) if (match := FRAMES.search(notes)) else 0
    present = file.frames
    if file.format == "SDS":
        stated, present = present, stated + SDS_BLOCK
    elif file.format == "MAT5":
        stated = max(map(int, COLUMNS.findall(notes)), default=0)
    elif file.format == "NIST" and (count := SAMPLE_COUNT.search(read(0, NIST_HEADER))):
        stated = int(count[1])
    if stated > present:
        raise RowError("truncated audio", f"{name}: {stated} samples are stated, {present} are present")
