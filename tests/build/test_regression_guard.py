"""The regression guard: which stored references are refused in a sentence, and when a score has fallen."""

import json

import pytest
import torch
from conftest import tiny_whisper
from hypothesis import given
from hypothesis import strategies as st

from uniaudio.build import regression_guard as guarding
from uniaudio.build.regression_guard import (
    describe_guard_drops,
    find_broken_guards,
    measure_reference,
    read_reference,
    write_reference,
)
from uniaudio.config.stages import GuardConfig
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.held_probes import HeldScores
from uniaudio.evaluate.probing.labelled_folder import hold_folders
from uniaudio.model.encoders.whisper import WhisperAudioEncoder

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
        (json.dumps(GOOD | {"left_out": "b"}), "must contain"),
        (json.dumps(GOOD | {"scores": {"a": 0.5}, "left_out": ["c"]}), "guard.sets.b: the run began without"),
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


def test_a_set_that_was_left_out_at_the_start_needs_no_score(tmp_path):
    (tmp_path / "guard.json").write_text(json.dumps(GOOD | {"scores": {"a": 0.5}, "left_out": ["b"]}))
    assert read_reference(GUARD, tmp_path) == {"a": 0.5}


def test_a_set_that_cannot_be_scored_any_more_has_fallen(tone_run, tmp_path):
    tones = tone_run.parent / "tones"
    sets = hold_folders({"a": tones, "b": tones}, print)
    encoder = WhisperAudioEncoder(tiny_whisper()).eval()
    reference = measure_reference(encoder, sets, GUARD)
    assert list(reference) == ["probe", "scores"]
    assert reference["scores"]["a"] == reference["scores"]["b"] >= 0.5
    write_reference(reference, tmp_path)
    assert describe_guard_drops(encoder, sets, GUARD, tmp_path) == ([], [])
    with torch.no_grad():
        encoder.whisper.layer_norm.weight.fill_(float("nan"))
    sentence = (
        "cannot be scored: embeddings of 40 of 40 clips are not finite (NaN or infinite), such as those of 0.wav; "
        "check the weights of the model, and these clips"
    )
    assert describe_guard_drops(encoder, sets, GUARD, tmp_path) == ([f"a {sentence}", f"b {sentence}"], [])
    with pytest.raises(UserError) as refused:
        measure_reference(encoder, sets, GUARD)
    assert str(refused.value) == f"guard: a {sentence}; b {sentence}"


def test_a_set_without_a_score_at_the_start_is_not_guarded(tone_run, tmp_path, monkeypatch, capsys):
    probed = []

    def probe(encoder, sets, seeds, kinds):
        probed.append([one.name for one in sets])
        return HeldScores({"a": {"knn": {"mean": 0.9}}}, {"b": "embeddings are not finite"}, ["a: 1 row"])

    monkeypatch.setattr(guarding, "probe_held", probe)
    sets = hold_folders({"b": tone_run.parent / "tones", "a": tone_run.parent / "tones"}, print)
    reference = measure_reference(None, sets, GUARD)
    assert reference == {"probe": "knn", "scores": {"a": 0.9}, "left_out": ["b"]}
    assert capsys.readouterr().err.splitlines() == [
        "guard: a: 1 row",
        "guard: b cannot be scored: embeddings are not finite; the set is not guarded",
    ]
    write_reference(reference, tmp_path)
    describe_guard_drops(None, sets, GUARD, tmp_path)
    assert probed == [["b", "a"], ["a"]]


def test_clips_that_are_left_out_of_a_guarded_set_are_said(tone_run, tmp_path, monkeypatch):
    (tmp_path / "guard.json").write_text(json.dumps(GOOD))
    scores = {name: {"knn": {"mean": mean}} for name, mean in (("a", 0.5), ("b", 0.9))}
    monkeypatch.setattr(guarding, "probe_held", lambda *given: HeldScores(scores, {}, ["a: 1 row skipped"]))
    broken, notes = describe_guard_drops(None, [], GUARD, tmp_path)
    assert broken == ["b fell from 1.000 to 0.900, more than 1 point below its score at the start"]
    assert notes == ["a: 1 row skipped"]


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
