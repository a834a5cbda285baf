"""Lines of a run's records that a killed process, a full disk or an editor left."""

import json

import pytest

from uniaudio.evaluate.routing import read_choices
from uniaudio.report.run_folder import read_run
from uniaudio.run_records import has_reached_end, parse_record, read_metrics, read_objects
from uniaudio.train.loggers import keep_rows

ODD = [
    b'{"step": 4, "lo',
    b"7",
    b"null",
    b"[1, 2]",
    b'"text"',
    b"\xff\xfe\x00",
    b"\0" * 30,
    b"[" * 100_000,
    b'{"step": "4", "loss": 1.0}',
    b'{"step": true, "loss": 1.0}',
    b'{"step": -1}',
    b'{"step": NaN, "loss": 1.0}',
    b'{"step": 4, "loss": "low"}',
    b'{"step": 4, "loss": 1.0, "tasks": [1]}',
    b'{"step": 4, "loss": 1.0, "tasks": {"a": "b"}}',
    b'{"step": 4, "audio_seconds": "long"}',
    b'{"step": 4, "audio_seconds": 1' + b"0" * 400 + b"}",  # more than a float holds
    b'{"step": 4, "choices": {"a": 3}}',
    b'{"event": 4, "step": 3}',
    b'{"event": "stage", "step": 0}',
    b'{"event": "saved", "step": 4, "drawn": {"a": "b"}}',
    b'{"event": "evaluation", "step": 4, "results": {"a": 5}}',
    b'{"event": "guard", "step": 4, "broken": 5}',
    b'{"loss": 1.0}',
]
GOOD = [
    {"event": "stage", "step": 0, "stage": "one"},
    {"step": 1, "loss": 2.0, "audio_seconds": 3.0, "seconds": 1.0, "choices": {"asr": {"gate/a": 0.25}}},
    {"step": 2, "loss": None, "grad_norm": None},
]


@pytest.mark.parametrize("odd", ODD, ids=[str(line[:40]) for line in ODD])
def test_an_odd_line_counts_and_hinders_no_reader(tmp_path, odd):
    good = [json.dumps(row).encode() for row in GOOD]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good[0], odd, *good[1:], odd]))
    (tmp_path / "skipped.jsonl").write_bytes(
        b"\n".join([odd, b'{"source": "a", "reason": "b", "rows": 5}', odd])
    )
    assert read_metrics(tmp_path / "metrics.jsonl") == (GOOD_READ, 2)
    run = read_run(tmp_path, "run")
    assert (run.torn, run.last_step) == (2, 2)
    assert run.skipped["a"] == {"b": 5}
    assert read_choices(tmp_path, 1.0)["groups"] == {"gate": {"asr": {"a": 0.25}}}
    keep_rows(tmp_path / "metrics.jsonl", 1)
    assert [row["step"] for row in read_objects(tmp_path / "metrics.jsonl")[0]][:1] == [0]


GOOD_READ = [GOOD[0], GOOD[1], GOOD[2]]


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    assert parse_record('{"step": 1, "loss": NaN, "seconds": Infinity}') == {
        "step": 1,
        "loss": None,
        "seconds": None,
    }
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN, "seconds": Infinity, "balance": -Infinity}\n'
    )
    assert read_metrics(tmp_path / "metrics.jsonl") == ([{"step": 1, "loss": None}], 0)


def test_a_finished_run_that_was_continued_is_finished_no_more():
    """With more steps in its config, it goes on from its last checkpoint, and may be stopped."""
    rows = [{"step": 4, "loss": 1.0}, {"event": "finished", "step": 4}]
    assert not has_reached_end([])
    assert not has_reached_end(rows[:1])
    assert has_reached_end(rows)
    assert not has_reached_end([*rows, {"event": "stage", "step": 4}, {"event": "stopped", "step": 6}])
    assert has_reached_end([*rows, {"step": 6, "loss": 1.0}, {"event": "finished", "step": 6}])
