"""What a file is by its first bytes, for messages about files that are not what their names say."""

from __future__ import annotations

import re

SIGNATURE_BYTES = 64  # of a file that are looked at
LFS_POINTER = b"version https://git-lfs"  # what a repository holds that was cloned without Git LFS
COMPRESSION = "compressed; decompress it"
RECODING = "convert it to WAV or FLAC, such as with ffmpeg"

# how files begin: in place of any file, and in place of audio that can be decoded
ANY_FILE = (
    (re.escape(LFS_POINTER), "a pointer of Git LFS; fetch the file itself with `git lfs pull`"),
    (rb"\s*<(!doctype html|html|\?xml)", "a web page or XML; download the file again"),
    (rb"\x1f\x8b|BZh\d1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf", COMPRESSION),
    (rb"PK\x03\x04", "a ZIP archive; unpack it"),
)
AUDIO = (
    (rb"....ftyp", f"MP4 (M4A, AAC); {RECODING}"),
    (rb"\x1aE\xdf\xa3", f"WebM or Matroska; {RECODING}"),
    (rb"\xff[\xf0\xf1\xf8\xf9]", f"AAC; {RECODING}"),
    (rb"\x30\x26\xb2\x75", f"WMA; {RECODING}"),
    (rb"#!AMR", f"AMR; {RECODING}"),
    (rb"\.RMF|\.ra\xfd", f"RealAudio; {RECODING}"),
    (rb"MAC |wvpk|TTA1|MPCK|DSD ", f"a format that is not read; {RECODING}"),
    (rb"\0{64}", "filled with zeros; copy it again"),
)


def describe_signature(head: bytes, is_audio: bool = False) -> str:
    """Return what a file is whose first bytes are those of another kind, and what to do; empty where nobody knows.

    Args:
        head: the first ``SIGNATURE_BYTES`` of the file. is_audio: whether it should be audio.
    """
    for pattern, what in (*ANY_FILE, *(AUDIO if is_audio else ())):
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return what
    return ""
