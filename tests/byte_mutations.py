"""Seeded damage to files: bytes of any, words of those that people write."""

import random
import re

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
