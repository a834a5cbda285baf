"""Comparison of results that were computed in another order."""

import pytest


def assert_same_figures(result, expected):
    """Texts and counts are equal, numbers to the rounding of float32."""
    if isinstance(expected, dict):
        assert result.keys() == expected.keys()
        for key, value in expected.items():
            assert_same_figures(result[key], value)
    elif isinstance(expected, list):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            assert_same_figures(one, other)
    elif isinstance(expected, float):
        assert result == pytest.approx(expected, abs=1e-5)
    else:
        assert result == expected
