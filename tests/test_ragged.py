"""The index arithmetic of rows of different length, against loops."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from uniaudio.ragged import Ragged

LENGTHS = st.lists(st.integers(0, 7), max_size=9)


def integers(values):
    return torch.tensor(values, dtype=torch.int64)


@given(LENGTHS)
def test_row_starts(lengths):
    expected = [sum(lengths[:i]) for i in range(len(lengths))]
    assert Ragged.find_row_starts(integers(lengths)).tolist() == expected


@given(LENGTHS)
def test_counting_within_rows(lengths):
    expected = [i for length in lengths for i in range(length)]
    index = Ragged.count_within_rows(integers(lengths))
    assert (index.dtype, index.tolist()) == (torch.int64, expected)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 7)), max_size=9))
def test_indices_of_slices(slices):
    expected = [i for start, length in slices for i in range(start, start + length)]
    starts, lengths = (integers([part[k] for part in slices]) for k in (0, 1))
    index = Ragged.index_slices(starts, lengths)
    assert (index.dtype, index.tolist()) == (torch.int64, expected)


@given(LENGTHS.filter(bool), st.data())
def test_selected_rows(lengths, data):
    rows = [torch.rand(length, 2) for length in lengths]
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=5))
    selected = Ragged.from_rows(rows).select(chosen)
    assert selected.lengths.tolist() == [lengths[i] for i in chosen]
    assert torch.equal(selected.values, torch.cat([rows[i] for i in chosen]))


def test_means_of_long_rows_in_bfloat16_are_those_in_float64():
    torch.manual_seed(0)
    rows = Ragged(torch.randn(1500, 3).add(1).bfloat16(), integers([1400, 0, 100]))
    means = rows.mean()
    exact = rows.with_values(rows.values.double()).mean()
    assert (means.dtype, exact.dtype) == (torch.bfloat16, torch.float64)
    assert torch.equal(means, exact.bfloat16())
    expected = [
        rows.values.double()[:1400].mean(0),
        torch.zeros(3).double(),
        rows.values.double()[1400:].mean(0),
    ]
    torch.testing.assert_close(exact, torch.stack(expected))


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=9), st.booleans())
def test_rows_with_zeros_behind_them(sizes, wide):
    shape = (2,) if wide else ()
    rows = [torch.randint(1, 9, (length, *shape), dtype=torch.int16) for length, _ in sizes]
    extended = Ragged.from_rows(rows).extend_rows(integers([length + more for length, more in sizes]))
    assert extended.values.dtype == torch.int16
    for row, longer, (length, more) in zip(rows, extended.rows(), sizes, strict=True):
        assert len(longer) == length + more
        assert torch.equal(longer[:length], row)
        assert not longer[length:].any()
