"""The regression guard: which stored references are refused in a sentence, and when a score has fallen."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniaudio.build.regression_guard import find_broken_guards, read_reference
from uniaudio.config.stages import GuardConfig
from uniaudio.errors import UserError

GUARD = GuardConfig.model_validate({"sets": {"a": "a", "b": "b"}, "every": 1})
GOOD = {"probe": "knn", "scores": {"a": 0.5, "b": 1}}


def test_a_reference_is_read(tmp_path):
    (tmp_path / "guard.json").write_text(json.dumps(GOOD | {"more": 1}))
    assert read_reference(GUARD, tmp_path) == {"a": 0.5, "b": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("{}", "must contain the name of a probe and, for each set, a score"),
        ("[]", "must contain"),
        ("null", "must contain"),
        (json.dumps(GOOD | {"probe": 7}), "must contain"),
        (json.dumps(GOOD | {"scores": [["a", 1], ["b", 1]]}), "must contain"),
        (json.dumps(GOOD | {"scores": {"a": "0.5", "b": 1}}), "must contain"),
        (json.dumps(GOOD | {"scores": {"a": None, "b": 1}}), "must contain"),
        (json.dumps(GOOD | {"scores": {"a": float("nan"), "b": 1}}), "must contain"),
        (json.dumps(GOOD | {"scores": {"a": 50, "b": 1}}), "must contain"),
        (json.dumps(GOOD | {"probe": "mlp"}), "guard.probe is knn, but the run began with mlp"),
        (json.dumps(GOOD | {"scores": {"a": 0.5}}), "guard.sets.b: the run began without it"),
        (None, "is missing, but a guard must exist from the start of a run"),
    ],
)
def test_an_odd_one_is_refused_in_a_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "guard.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        read_reference(GUARD, tmp_path)
    assert message in str(refused.value)
    assert "guard.json" in str(refused.value) or "guard.probe" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_guard_breaks_past_its_border_only():
    reference = {"fsdd_digits": 0.9, "esc10": 0.7}
    assert find_broken_guards(reference, {"fsdd_digits": 0.89, "esc10": 0.8, "new": 0.0}, 1.0) == []
    assert find_broken_guards(reference, {"fsdd_digits": 0.85, "esc10": 0.7}, 1.0) == [
        "fsdd_digits fell from 0.900 to 0.850, more than 1 point below its score at the start"
    ]
    assert len(find_broken_guards(reference, {"fsdd_digits": 0.88999, "esc10": 0.68999}, 1.0)) == 2
    assert find_broken_guards(reference, reference, 0.0) == []
    assert "more than 0.5 points" in find_broken_guards({"x": 0.5}, {"x": 0.49}, 0.5)[0]
    assert find_broken_guards({}, {}, 1.0) == []


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_no_rounding_breaks_a_guard_at_its_border(start, drop):
    assert find_broken_guards({"x": start / 1000}, {"x": (start - drop) / 1000}, drop / 10) == []
    assert len(find_broken_guards({"x": start / 1000}, {"x": (start - drop) / 1000 - 1e-6}, drop / 10)) == 1


def test_a_guard_does_not_pass_unmeasured():
    assert len(find_broken_guards({"x": 0.5}, {"x": float("nan")}, 1.0)) == 1
    with pytest.raises(ValueError, match="without a score now: y"):
        find_broken_guards({"x": 0.5, "y": 0.5}, {"x": 0.5}, 1.0)
    with pytest.raises(ValueError, match="max_drop is -1"):
        find_broken_guards({"x": 0.5}, {"x": 0.5}, -1)
