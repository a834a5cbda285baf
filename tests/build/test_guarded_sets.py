"""The stored reference of guarded sets: what cannot be used is refused in a sentence."""

import json

import pytest

from uniaudio.build.guarded_sets import read_reference
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
        ("{}", "does not hold the name of a probe and a score"),
        ("[]", "does not hold"),
        ("null", "does not hold"),
        (json.dumps(GOOD | {"probe": 7}), "does not hold"),
        (json.dumps(GOOD | {"scores": [["a", 1], ["b", 1]]}), "does not hold"),
        (json.dumps(GOOD | {"scores": {"a": "0.5", "b": 1}}), "does not hold"),
        (json.dumps(GOOD | {"scores": {"a": None, "b": 1}}), "does not hold"),
        (json.dumps(GOOD | {"scores": {"a": float("nan"), "b": 1}}), "does not hold"),
        (json.dumps(GOOD | {"scores": {"a": 50, "b": 1}}), "does not hold"),
        (json.dumps(GOOD | {"probe": "mlp"}), "guard.probe is knn, but the run began with mlp"),
        (json.dumps(GOOD | {"scores": {"a": 0.5}}), "guard.sets.b: the run began without it"),
        (None, "is missing: guard a run from its start on"),
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
