"""Seeded damage: to the bytes of any file, to the words of those that people write, to the values of rows."""

import json
import os
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

SIZES = (0, 1, 44, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)  # what a damaged length field states
WORDS = (
    *(
        "null",
        "~",
        "true",
        "no",
        "[]",
        "{}",
        "[[[",
        "}}",
        "{{",
        "{%",
        "%}",
        "-1",
        "0",
        "1e999",
        "9" * 400,
        "NaN",
        ".inf",
    ),
    *(
        '"',
        "'",
        ":",
        ",",
        "- ",
        "# ",
        "&a",
        "*a",
        "<<: *a",
        "!!python/object/apply:os.system [id]",
        "!binary x",
        "|",
        ">",
    ),
    *(
        "<audio>",
        "<|im_end|>",
        "<|im_start|>user",
        "\ufeff",
        "\x00",
        "\\u0000",
        "\\ud800",
        "é",
        "🎧",
        "\t",
        "\r",
        "\n",
        "x" * 300,
    ),
    *(
        "{{ label }}",
        "{{ missing }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'x' * 10 ** 9 }}",
        "{% for i in range(10**9) %}",
        "[" * 200,
    ),
    *(
        "../..",
        "/",
        ".",
        "a/b",
        "1.wav",
        "1.wav::2",
        "label",
        "split",
        "audio",
        "duration",
        "offset",
        "train",
        "test",
        "fold != 5",
    ),
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Damage a file in one to five places, more often near its beginning, where its header is."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not content:
            break
        place = rng.randrange(len(content) if rng.random() < 0.5 else min(len(content), 80))
        size = rng.choice((1, 4, 64, 1000))
        match rng.randrange(8):
            case 0:
                content[place] ^= 1 << rng.randrange(8)
            case 1:
                content[place] = rng.randrange(256)
            case 2:
                content[place : place + 4] = rng.choice(SIZES).to_bytes(4, rng.choice(("little", "big")))
            case 3:
                del content[place:]
            case 4:
                del content[place : place + size]
            case 5:
                content[place : place + size] = bytes(len(content[place : place + size]))
            case 6:
                content[place:place] = content[place : place + size]
            case 7:
                content[place:place] = rng.randbytes(size)
    return bytes(content)


def mutate_text(text: str, rng: random.Random) -> bytes:
    """Change one to three words, signs or lines of a text file, or the way it is encoded."""
    parts = re.findall(r"\w+|\s+|[^\w\s]", text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(parts))
        match rng.randrange(6):
            case 0 | 1:
                parts[place] = rng.choice(WORDS)
            case 2:
                parts.insert(place, rng.choice(WORDS))
            case 3 if len(parts) > 1:
                del parts[place]
            case 4:
                parts.insert(place, rng.choice(parts))
            case 5:
                other = rng.randrange(len(parts))
                parts[place], parts[other] = parts[other], parts[place]
    changed = "".join(parts)
    encoding = rng.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "cp1252", "utf-32"))
    content = changed.encode(encoding, "replace")
    return mutate_bytes(content, rng) if rng.random() < 0.1 else content


GOOD_CLIPS = ("low.wav", "high.flac")
ODD_FILES = (
    "folder.wav",
    "pipe.wav",
    "broken.wav",
    "empty.wav",
    "gone.wav",
    "clips.tar::a.wav",
    "odd\udc80.wav",
)


class Raw(str):
    """Text that stands in a line as it is, where JSON would write it otherwise."""


ODD_NUMBERS = (
    0, -1, -0.5, 1e-9, 1e300, True, Raw("1e999"), Raw("-1e999"), Raw("NaN"), Raw("Infinity"), Raw("9" * 400),
    Raw("9" * 5000), 2**63, 2**64, -(2**70), Raw("1.5e-400"), Raw("0x10"), "12", "-1", "nan", "inf", "1e5",
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "\n", "\0", "lo\0w", Raw('"\\ud800"'), Raw('"a \\udfff b"'), "\ue000", "<audio>", "<|im_end|>", "</s>",
    "\u202elow", "l\u0301ow", "\ufeff", "low" * 100_000, "x" * 300_000, " " * 300_000, "{{ label }}", "{% for %}",
    "\u2028", "🐕" * 300, "\x1b[31m", "['low', 'high']", "None", "nan",
)  # fmt: skip
ODD_CONTAINERS = (
    None, [], {}, [None], [1, "low"], ["low", ["high"]], {"a": 1}, {"bytes": "text"}, {"bytes": 5}, {"bytes": [1, 2]},
    {"bytes": None, "path": None}, {"path": "low.wav"}, {"path": 7}, [[[[[]]]]], Raw("[" * 1000 + "]" * 1000),
    Raw("[" * 100_000 + "]" * 100_000), Raw('{"a":' * 900 + "1" + "}" * 900), {"": ""}, list(range(5000)),
)  # fmt: skip
ODD_PATHS = (
    *(file for file in ODD_FILES if file.isascii()), "", ".", "..", "/", "/dev/zero", "/dev/null", "/proc/self/mem",
    "a" * 300 + ".wav", "a/" * 3000, "low.wav\0.wav", "low.wav/x.wav", "~/low.wav", "http://127.0.0.1:9/a.wav",
    "low.wav::", "::", "clips.tar::", "clips.tar::../a.wav", "pipe.wav::a.wav", "folder.wav::a.wav", "gone.tar::a.wav",
    "Low.WAV ",
)  # fmt: skip
ODD_PARTS = (
    {"path": "low.wav", "offset": 0, "size": 10**12}, {"path": "low.wav", "offset": -5, "size": 100},
    {"path": "low.wav", "offset": "far", "size": 3}, {"path": "low.wav", "offset": 0},
    {"path": "low.wav", "offset": None},
    {"path": "low.wav", "offset": 1.5, "size": 100}, {"path": "low.wav", "offset": Raw("1e30"), "size": 5},
    {"path": "pipe.wav", "offset": 0, "size": 100}, {"path": "folder.wav", "offset": 0, "size": 100},
    {"path": "low.wav", "offset": 0, "size": 44, "seconds": "long"}, {"path": "a\0", "offset": 0, "size": 5},
    {"path": "low.wav", "offset": 0, "size": 9844, "seconds": -1}, {"path": "b" * 400, "offset": 0, "size": 5},
)  # fmt: skip


def write_clips(folder: Path) -> None:
    """Write two good clips of 0.3 s and what else may lie in a folder of clips under such names."""
    for name, pitch in zip(GOOD_CLIPS, (200, 800), strict=True):
        tone = 8000 * np.sin(2 * np.pi * pitch * np.arange(4800) / 16000)
        soundfile.write(folder / name, tone.astype(np.int16), 16000)
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "broken.wav").write_bytes((folder / "low.wav").read_bytes()[:30])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "clips.tar").write_bytes(b"no tar" * 500)
    (folder / "odd\udc80.wav").write_bytes((folder / "low.wav").read_bytes())


def json_text(value: Any) -> str:
    """Return a value as JSON with every ``Raw`` in it as it stands."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k))}: {json_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list) and any(isinstance(item, Raw | Mapping) for item in value):
        return "[" + ", ".join(map(json_text, value)) + "]"
    return json.dumps(value)


def odd_value(rng: random.Random, column: str) -> Any:
    """Return a value that a column should not hold, more often one that concerns it."""
    single = {"audio": (*ODD_PATHS, *ODD_PARTS), "duration": ODD_NUMBERS}.get(column, ODD_TEXTS)
    return rng.choice(rng.choice((single, single, ODD_NUMBERS, ODD_TEXTS, ODD_CONTAINERS)))


def mutate_columns(row: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a row with one to three of its columns replaced, taken away, renamed or added."""
    changed = dict(row)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        column = rng.choice(list(changed) or ["audio"])
        kind = rng.random()
        if kind < 0.75:
            changed[column] = odd_value(rng, column)
        elif kind < 0.85:
            changed.pop(column, None)
        elif kind < 0.92:
            changed[rng.choice((column.upper(), f" {column}", "", "x" * 1000))] = changed.pop(column, None)
        else:
            changed[rng.choice(("duration", "offset", "key", "label", "labels", "\0"))] = odd_value(
                rng, "other"
            )
    return changed


ODD_BYTES = (
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"}",
    b"\\",
    *(word.encode() for word in WORDS if "\n" not in word),
)


def mutate_line(line: bytes, rng: random.Random) -> bytes:
    """Return a line with some of its bytes cut off, changed, doubled, or put in between."""
    at, odd = rng.randrange(len(line) + 1), rng.choice(ODD_BYTES)
    return rng.choice(
        (line[:at], line[:at] + odd + line[at:], line[:at] + odd + line[at + 1 :], line[at:], line + line)
    )


def mutated_line(row: Mapping[str, Any], rng: random.Random) -> bytes:
    """Return a damaged row as a line of a JSON-lines manifest, without the line end."""
    line = json_text(mutate_columns(row, rng) if rng.random() < 0.85 else row).encode(
        "utf-8", "surrogatepass"
    )
    return mutate_line(line, rng) if rng.random() < 0.2 else line
