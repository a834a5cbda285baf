"""Order as a function: which example comes n-th depends on the seed and n alone."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate

ROUNDS = 4  # of the Feistel network; enough to look random, and any number is a permutation


def number(*parts: int | str) -> int:
    """Return 64 bits that are a pure function of the parts."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def example_rng(seed: int, n: int) -> random.Random:
    """Return the generator of the n-th example: wording and augmentation draw from it."""
    return random.Random(number("example", seed, n))


def draw(shares: Sequence[float], seed: int, n: int) -> int:
    """Return the index of the entry that the n-th example comes from, drawn with the given shares."""
    borders = list(accumulate(shares))
    point = number("draw", seed, n) / 2**64 * borders[-1]
    return min(bisect_right(borders, point), len(borders) - 1)


def permuted(index: int, size: int, seed: int) -> int:
    """Return where a random permutation of ``range(size)`` sends ``index``, without building it.

    A balanced Feistel network over the next power of four, walked until it lands inside ``range(size)`` (Black and
    Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
    """
    if not 0 <= index < size:
        raise ValueError(f"index {index} is not in range({size})")
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (number("feistel", seed, turn, right) & mask)
        index = left << half | right
        if index < size:
            return index
