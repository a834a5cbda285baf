from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.data.order import draw, permuted


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 700), seed=st.integers(0, 2**32))
def test_every_index_occurs_once(size, seed):
    assert sorted(permuted(i, size, seed) for i in range(size)) == list(range(size))


def test_orders_differ_by_seed_and_look_shuffled():
    orders = [[permuted(i, 500, seed) for i in range(500)] for seed in range(3)]
    assert orders[0] != orders[1] != orders[2]
    fixed = [sum(i == x for i, x in enumerate(order)) for order in orders]
    assert max(fixed) < 8  # one is expected of a random permutation
    neighbours = sum(abs(a - b) == 1 for a, b in zip(orders[0], orders[0][1:], strict=False))
    assert neighbours < 12  # two are expected


def test_draws_follow_the_shares():
    counts = Counter(draw([0.5, 0.3, 0.2], 7, n) for n in range(20_000))
    assert [round(counts[i] / 20_000, 2) for i in range(3)] == [0.5, 0.3, 0.2]
    assert [draw([0.5, 0.5], 1, n) for n in range(50)] == [draw([0.5, 0.5], 1, n) for n in range(50)]
