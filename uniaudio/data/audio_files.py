"""Opening encoded audio with libsndfile by what it is, and lengths of clips from their headers alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import soundfile

from uniaudio.config.file_signatures import SIGNATURE_BYTES, describe_signature
from uniaudio.data.containers import flac, mpeg, ogg, riff
from uniaudio.data.containers.libsndfile_log import HEADERLESS, check_notes
from uniaudio.data.encoded_audio import (
    SMALL_FILE,
    ByteStream,
    EncodedAudio,
    EncodedBytes,
    FilePart,
    OpenFile,
    PartStream,
    Reader,
    RemoteClip,
    require_file,
)
from uniaudio.errors import RowError, convert_to_row_error

LOSSY_SLACK = 3  # frames of MPEG that a tag may count too many
HIGHEST_RATE = 1_000_000  # Hz; a header that states more, or more frames than the next line, is damaged
MOST_FRAMES = 1 << 40


class ClipFile(soundfile.SoundFile):
    """An opened file that is read from its begin to its end and never sought without need.

    ``soundfile`` seeks after each read to where it is anyway: some kinds cannot, and a file whose end comes too early
    would raise an error that says nothing of it.

    Attributes:
        slack: frames that the header may state too many.
    """

    slack = 0

    def seekable(self) -> bool:
        return False

    def go_to(self, frame: int) -> None:
        """Go to a frame of a file that was just opened: by seeking where the kind of file can, else by reading."""
        if super().seekable():
            with suppress(soundfile.SoundFileError):
                self.seek(frame)
                return
        while frame > 0:
            count = len(self.read(min(frame, 1 << 16), dtype="int16"))
            if not count:
                return
            frame -= count


def open_reader(source: EncodedAudio | OpenFile, name: str) -> Reader:
    """Open a file, a part of one or bytes for reading at any place.

    A file elsewhere is read in parts where its format allows to go to a place in it; others are fetched whole, once.

    Raises:
        RowError: "missing file", "empty audio".
    """
    if isinstance(source, RemoteClip) and not is_read_in_parts(source):
        source = source.fetch()
    if not isinstance(source, OpenFile | RemoteClip):
        source = require_file(source)
    if isinstance(source, Path):
        reader: Reader = OpenFile(source)
    elif isinstance(source, bytes | memoryview):
        reader = EncodedBytes(source)
    else:
        reader = source
    if isinstance(reader, FilePart):
        reader.read(0, 0)  # whether the file has such a part
    if reader.size == 0:
        raise RowError("empty audio", name)
    return reader


def is_read_in_parts(source: RemoteClip) -> bool:
    """Return whether a part of a file can be decoded without what lies before it."""
    head = source.read(0, 12)
    return head[:4] == flac.MARK or riff.is_wave(head)


@contextmanager
def open_streams(
    source: EncodedAudio | OpenFile, name: str, suffix: str = "", is_thorough: bool = False
) -> Iterator[list[ClipFile]]:
    """Open a file, a part of one or bytes with libsndfile (wav, flac, mp3, ogg, opus ...).

    What the file is its content says; only files without a header are told by the suffix. Headers are compared with
    what is there: what libsndfile would read in part without a word is refused here, or read whole.

    Args:
        suffix: of the file's name, with its dot. is_thorough: whether to look at all of a compressed file for damage,
            for one that is decoded as a whole.

    Yields:
        One file; several where streams are chained, to be read one after another.

    Raises:
        RowError: "missing file", "broken audio", "empty audio", "truncated audio".
    """
    with convert_to_row_error("broken audio", name), ExitStack() as stack:
        reader = open_reader(source, name)
        yield [
            stack.enter_context(open_file(data, reader, name, suffix))
            for data in choose_readers(reader, name, is_thorough)
        ]


def choose_readers(reader: Reader, name: str, is_thorough: bool) -> list[Reader]:
    """Return what libsndfile is to open in place of the file: nearly always the file itself.

    Raises:
        RowError: "truncated audio", "broken audio", "empty audio".
    """
    head = reader.read(0, 12)
    if riff.is_wave(head):
        samples = riff.check_wave(reader.read, reader.size, name)
        if samples is not None and samples.stated == 0 < samples.present:  # a header that was never completed
            return [EncodedBytes(riff.state_size(reader.read(0, reader.size), samples))]
    elif head[:4] == flac.MARK:
        ending = check_flac(reader, name)
        if ending is not None:
            return [EncodedBytes(flac.state_total(reader.read(0, reader.size), ending.end))]
    elif head[:4] == ogg.MARK:
        if is_thorough or reader.size <= SMALL_FILE or ogg.is_chained(reader.read, reader.size, name):
            data = reader.read(0, reader.size)
            links = ogg.find_links(data, name)
            if len(links) > 1:
                return [EncodedBytes(data[begin:end]) for begin, end in links]
    elif head[:3] == b"ID3" or (head[:1] == b"\xff" and mpeg.parse_frame(head, 0) is not None):
        return [state_mpeg_length(reader, name, is_thorough)]
    return [reader]


def state_mpeg_length(reader: Reader, name: str, is_thorough: bool) -> Reader:
    """Return an MPEG file that states its length, and begins with its first frame: with a tag where it has none.

    Without one, libsndfile estimates the length from the first frame, and reads no further.

    Raises:
        RowError: "truncated audio", "broken audio".
    """
    survey = mpeg.survey(reader.read, reader.size, name, is_thorough)
    if survey is None or (survey.is_stated and survey.start == 0):
        return reader
    data = reader.read(survey.start, survey.end - survey.start)
    if survey.is_stated:
        return EncodedBytes(data)
    return EncodedBytes(mpeg.make_tag_frame(data, survey.samples // survey.frame_samples) + data)


def open_file(data: Reader, reader: Reader, name: str, suffix: str) -> ClipFile:
    """Open a file with libsndfile, by its content; where that says nothing, as MPEG behind junk or by the suffix.

    Args:
        data: what to open. reader: the whole file.

    Raises:
        RowError: "broken audio", "truncated audio".
    """
    try:
        file = ClipFile(make_handle(data))
    except soundfile.SoundFileError as problem:
        survey = mpeg.survey(reader.read, reader.size, name, is_thorough=True)
        if survey is not None:
            file = ClipFile(make_handle(state_mpeg_length(reader, name, is_thorough=True)))
        elif suffix.lower() in HEADERLESS and "not recognised" in str(problem):
            subtype, rate = HEADERLESS[suffix.lower()]
            file = ClipFile(make_handle(data), "r", rate, 1, subtype, "LITTLE", "RAW")
        else:
            foreign = describe_signature(reader.read(0, SIGNATURE_BYTES), is_audio=True)
            raise make_broken_audio_error(name, f"it is {foreign}" if foreign else problem) from problem
    if file.samplerate > HIGHEST_RATE or file.frames > MOST_FRAMES:
        facts = f"{name} (the header states {file.frames} frames at {file.samplerate} Hz)"
        file.close()
        raise RowError("broken audio", facts)
    if file.format == "MP3":
        file.slack = LOSSY_SLACK * 1152
    check_notes(file, reader.read, name)
    return file


def make_handle(data: Reader) -> Any:
    """Return what ``soundfile`` opens: never a path, for libsndfile would go by its suffix."""
    if isinstance(data, OpenFile):
        descriptor = os.dup(data.file.fileno())
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor
    if isinstance(data, FilePart | RemoteClip):
        return PartStream(data)
    return ByteStream(data.data)


def make_broken_audio_error(name: str, problem: Exception | str) -> RowError:
    """Return what to say of audio that cannot be read; libsndfile's own words, without addresses of objects."""
    return RowError("broken audio", f"{name} ({getattr(problem, 'error_string', problem)})")


def probe_seconds(source: EncodedAudio, name: str = "", suffix: str = "") -> float:
    """Return the length in seconds as the header states it, or the frames where it states none.

    Raises:
        RowError: "missing file", "broken audio", "empty audio", "truncated audio".
    """
    name = name or str(source)[:200]
    with convert_to_row_error("broken audio", name):
        reader = open_reader(source, name)
        seconds = read_header_seconds(reader, name)
        if seconds is not None:
            return seconds
    with open_streams(source, name, suffix_of(source, suffix)) as streams:
        return sum(file.frames / file.samplerate for file in streams)


def read_header_seconds(reader: Reader, name: str) -> float | None:
    """Return the length of a plain WAV or FLAC file, which takes no library to know; None for any other.

    Raises:
        RowError: "truncated audio", "empty audio".
    """
    head = reader.read(0, 12)
    if riff.is_wave(head):
        samples = riff.check_wave(reader.read, reader.size, name)
        if samples is not None and samples.frames and 0 < samples.rate <= HIGHEST_RATE:
            return samples.frames / samples.rate
    elif head[:4] == flac.MARK:
        info = flac.read_stream_info(reader.read)
        if info is not None and info.total and 0 < info.rate <= HIGHEST_RATE and info.total <= MOST_FRAMES:
            ending = check_flac(reader, name)
            return (ending.end if ending is not None else info.total) / info.rate
    return None


def check_flac(reader: Reader, name: str) -> flac.Ending | None:
    """Return how a FLAC stream ends where its header is wrong and all of it can be read.

    Raises:
        RowError: "truncated audio".
    """
    ending = flac.find_wrong_total(reader.read, reader.size)
    if ending is not None and (ending.end < ending.total or not ending.is_whole):
        stated = f"{ending.total} samples are stated, " if ending.total else ""
        raise RowError("truncated audio", f"{name}: {stated}the last FLAC frame ends at {ending.end}")
    return ending


def suffix_of(source: EncodedAudio, suffix: str) -> str:
    return suffix or (source.suffix if isinstance(source, Path) else "")
