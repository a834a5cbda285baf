"""Order as a function: which example comes n-th depends on the seed and n alone."""

from __future__ import annotations

import random
from hashlib import blake2b

ROUNDS = 4  # of the Feistel network; enough to look random, and any number is a permutation
WORD = (1 << 64) - 1
FRACTION = 40  # bits behind the point of a share


def hash_parts(*parts: int | str) -> int:
    """Return 64 bits that are a pure function of the parts."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def make_row_rng(seed: int, entry: str, k: int) -> random.Random:
    """Return the generator of the k-th draw from an entry: wording and augmentation draw from it."""
    return random.Random(hash_parts("row", seed, entry, k))


def count_draws_before(share: float, phase: int, examples: int) -> int:
    """Return how many of the first ``examples`` draws of a mixture go to an entry with this share of them.

    Never more than one away from ``share * examples``, and known for any position without walking there: a mixture
    that is laid out instead of thrown. Integers only, so it is exact however long a run goes on.

    Args:
        phase: 40 bits that shift the entry's draws, so that rare entries do not all come at once.
    """
    return (round(share * (1 << FRACTION)) * examples + phase) >> FRACTION


def derive_phase(seed: int, entry: str, stream: int) -> int:
    """Return the 40 bits of ``count_draws_before`` for an entry in a logical stream."""
    return hash_parts("phase", seed, entry, stream) >> (64 - FRACTION)


def scramble_bits(value: int) -> int:
    """Return 64 bits that look unrelated to ``value``: the finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    value = (value * 0x9E3779B97F4A7C15) & WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
    return value ^ (value >> 31)


def permute_index(index: int, size: int, seed: int) -> int:
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
            left, right = right, left ^ (scramble_bits(seed + turn + (right << 2)) & mask)
        index = left << half | right
        if index < size:
            return index
