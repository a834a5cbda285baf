"""Text files as editors on any system write them: with or without a byte order mark, with any line ends."""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path

from uniaudio.config.file_signatures import SIGNATURE_BYTES, describe_signature
from uniaudio.errors import UserError, convert_to_user_error

# UTF-32 first: its little-endian mark begins with that of UTF-16
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

MOST_NULS = 0.3  # share of NUL in the first bytes, from which on they are UTF-16 without its mark

WORKBOOKS = (".xlsx", ".xls", ".ods")
NOT_TEXT = "\udcff"  # half a character, so that whatever uses the text refuses it


def read_text_file(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; lines end with ``\\n``.

    Raises:
        UserError: naming the file, and the line that is not in that encoding.
    """
    mark, encoding, content = split_mark(read_bytes(path))
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as problem:
        line = content[: problem.start].decode(encoding, "replace").count("\n") + 1
        place = f"{path}: line {line}: byte {problem.start + len(mark)}"
        raise UserError(f"{place} is not {encoding.upper()} text; save the file as UTF-8") from problem
    if "\x00" in text:
        line = text[: text.index("\x00")].count("\n") + 1
        raise UserError(f"{path}: line {line}: holds a NUL character; save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text_of_rows(path: Path) -> str:
    """Return the text of a file with a row in each line, in the encodings of ``read_text_file``, with its line ends.

    Bytes that are not in the encoding stand as lone surrogates, which make their row one that cannot be used. In UTF-8
    they are the same bytes again in the name of a file.

    Raises:
        UserError: when the file cannot be read, or is compressed or something else than text.
    """
    content = read_bytes(path)
    head = content[:SIGNATURE_BYTES]
    if path.suffix.lower() in WORKBOOKS:
        raise UserError(f"{path} is a workbook; save its sheet as CSV (UTF-8) and name that file")
    if foreign := describe_signature(head):
        raise UserError(f"{path} is {foreign}")
    mark, encoding, content = split_mark(content)
    if not mark and head.count(0) > MOST_NULS * len(head):
        raise UserError(
            f"{path}: is not UTF-8 text, but probably UTF-16 without a byte order mark; save it as UTF-8"
        )
    return content.decode(encoding, "surrogateescape" if encoding == "utf-8" else "uniaudio_not_text")


def decode_text(content: bytes) -> str:
    """Return the text of bytes in the encodings of ``read_text_file``.

    Raises:
        UnicodeDecodeError: when they are in none of them.
    """
    _, encoding, content = split_mark(content)
    return content.decode(encoding)


def read_bytes(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        UserError: when it cannot be read.
    """
    with convert_to_user_error(f"{path}: cannot be read"):
        return path.read_bytes()


def split_mark(content: bytes) -> tuple[bytes, str, bytes]:
    """Return the byte order mark at the beginning of bytes, the encoding it stands for, and what follows it."""
    mark, encoding = next(
        ((mark, name) for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), (b"", "utf-8")
    )
    return mark, encoding, content[len(mark) :]


def replace_undecodable(problem: UnicodeError) -> tuple[str, int]:
    """Put ``NOT_TEXT`` in the place of bytes that are not in the encoding of a file."""
    assert isinstance(problem, UnicodeDecodeError)
    return NOT_TEXT, problem.end


codecs.register_error("uniaudio_not_text", replace_undecodable)


def compose(text: str) -> str:
    """Return a text with its accents composed (NFC): two ways to write one letter become equal."""
    return unicodedata.normalize("NFC", text)
