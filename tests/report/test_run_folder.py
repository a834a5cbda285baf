"""Run folders: half a last line, ends of every kind, and costs by hand."""

import json

import pytest
from helpers.runs import training_rows, write_json, write_rows, write_run

from uniaudio.errors import UserError
from uniaudio.report.run_folder import compute_cost, describe_ending, read_run


def record(tmp_path, events=(), torn="", rows=20, steps=40):
    """A run of one stage with these events at its end."""
    folder = write_run(tmp_path / "run", ["a"], steps=steps, every=2, finished=False)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    write_rows(folder / "metrics.jsonl", [*rows, *events], torn)
    return read_run(folder, "run")


def test_half_a_last_line_is_noted_and_the_rest_is_read(tmp_path):
    run = record(tmp_path, torn='{"step": 42, "lo')
    assert run.torn == 1
    assert run.last_step == 40
    assert len(run.rows) == 20
    assert "after step 40 of 40, and the last line of metrics.jsonl is incomplete" in describe_ending(run)


def test_a_line_that_is_no_object_is_no_row(tmp_path):
    run = record(tmp_path, torn='[1]\n"text"\n\n')
    assert run.torn == 3


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([{"event": "finished", "step": 40}], ""),
        (
            [{"event": "stopped", "step": 40}],
            "it was stopped after step 40 of 40; --resume continues it",
        ),
        (
            [{"event": "guard", "step": 40, "broken": ["esc10 fell"]}, {"event": "stopped", "step": 40}],
            "its guard ended it (esc10 fell) after step 40",
        ),
        (
            [{"event": "guard", "step": 10, "broken": ["esc10 fell"]}, {"event": "stopped", "step": 40}],
            "it was stopped",
        ),
        (
            [{"event": "left_out", "step": s, "reason": "nan"} for s in (39, 40)],
            "Its last 2 steps were skipped",
        ),
        ([], "was killed or failed"),
    ],
)
def test_how_a_run_ended(tmp_path, events, words):
    sentence = describe_ending(record(tmp_path, events))
    assert words in sentence if words else sentence == ""


def test_costs_by_hand(tmp_path):
    run = record(tmp_path, [{"event": "left_out", "step": 3}, {"event": "finished", "step": 40}])
    cost = compute_cost(run)
    # 36 s of audio in each of 40 steps, heard at 50 s of audio a second by two processes
    assert cost.audio_hours == pytest.approx(40 * 36 / 3600)
    assert cost.wall_hours == pytest.approx(40 * 36 / 50 / 3600)
    assert cost.process_hours == pytest.approx(2 * 40 * 36 / 50 / 3600)
    assert cost.audio_rate == pytest.approx(50)
    assert cost.data_wait == pytest.approx(0.02)
    assert (cost.rows_drawn, cost.rows_skipped, cost.steps_left_out) == (1600, 1, 1)


def test_the_rate_of_rows_of_different_speed_is_that_of_the_whole(tmp_path):
    folder = write_run(tmp_path / "run", ["a"], steps=40, every=20)
    rows = training_rows(["a"], 40, 20, 0)
    for row, rate in zip([row for row in rows if "tasks" in row], (10.0, 90.0), strict=True):
        row["seconds"] = row["audio_seconds"] / rate
    write_rows(folder / "metrics.jsonl", rows)
    cost = compute_cost(read_run(folder, "run"))
    assert cost.wall_hours == pytest.approx((720 / 10 + 720 / 90) / 3600)
    assert cost.audio_rate == pytest.approx(1440 / (720 / 10 + 720 / 90))


def test_the_newest_checkpoint_has_the_highest_number(tmp_path):
    folder = write_run(tmp_path / "run", ["a"], steps=40, every=2)
    for name, path in (("step-999999", "old"), ("step-1000000", "new"), ("step-9999999-kept", "other")):
        (folder / "checkpoints" / name).mkdir()
        write_json(folder / "checkpoints" / name / "bases.json", {"decoder": {"path": path}})
    (folder / "checkpoints" / "step-1000008").mkdir()  # which is only half there
    assert read_run(folder, "run").bases == {"decoder": {"path": "new"}}


def test_without_rows_hours_are_not_known(tmp_path):
    folder = write_run(tmp_path / "run", ["a"], steps=40, every=2)
    write_rows(folder / "metrics.jsonl", [{"event": "stage", "step": 0, "stage": "one"}])
    cost = compute_cost(read_run(folder, "run"))
    assert (cost.audio_hours, cost.wall_hours, cost.process_hours, cost.audio_rate) == (None,) * 4
    assert cost.steps == 0


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        read_run(tmp_path, "run")


def test_planned_steps_are_capped_and_unknown_with_hours(tmp_path):
    run = record(tmp_path)
    assert run.planned_steps == 40
    capped = read_run(run.folder, "run")
    object.__setattr__(capped, "config", {**run.config, "train": {"max_steps": 7}})
    assert capped.planned_steps == 7
    object.__setattr__(capped, "config", {"stages": [{"name": "one", "hours": 3.0, "steps": None}]})
    assert capped.planned_steps is None
