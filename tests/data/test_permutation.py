from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniaudio.data.permutation import (
    count_draws_before,
    derive_phase,
    hash_parts,
    make_row_rng,
    permute_index,
)


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_a_permutation_is_one(size, seed):
    assert sorted(permute_index(i, size, seed) for i in range(size)) == list(range(size))


def test_a_permutation_looks_random():
    moved = [permute_index(i, 10_000, 7) for i in range(10_000)]
    correlation = sum((i - 4999.5) * (j - 4999.5) for i, j in enumerate(moved)) / (
        10_000 * (10_000**2 - 1) / 12
    )
    assert abs(correlation) < 0.05
    assert moved != [permute_index(i, 10_000, 8) for i in range(10_000)]
    with pytest.raises(ValueError, match="not in range"):
        permute_index(5, 5, 0)


@given(
    share=st.floats(1e-6, 1.0),
    phase=st.integers(0, 2**40 - 1),
    examples=st.integers(0, 10**9),
    more=st.integers(0, 10**6),
)
def test_draws_follow_the_share_and_never_go_back(share, phase, examples, more):
    before = count_draws_before(share, phase, examples)
    assert abs(before - share * examples) <= 1 + examples * 2**-40
    assert 0 <= count_draws_before(share, phase, examples + more) - before <= more + 1


def test_entries_of_a_mixture_share_all_draws():
    shares = [0.5, 0.3, 0.15, 0.05]
    drawn = [count_draws_before(share, derive_phase(0, str(i), 0), 10_000) for i, share in enumerate(shares)]
    assert drawn == pytest.approx([5000, 3000, 1500, 500], abs=1)


def test_phases_and_generators_differ_by_all_their_parts():
    phases = Counter(
        derive_phase(seed, entry, stream) for seed in (0, 1) for entry in "ab" for stream in range(4)
    )
    assert len(phases) == 16
    assert max(phases) < 2**40
    assert hash_parts("a", 1) == hash_parts("a", 1) != hash_parts("a", 2)
    assert (
        make_row_rng(0, "a", 1).random()
        == make_row_rng(0, "a", 1).random()
        != make_row_rng(0, "a", 2).random()
    )
