"""What a run writes, and what it takes back when it is continued."""

import json
from dataclasses import dataclass

import pytest

from uniaudio.errors import UserError
from uniaudio.train.loggers import Tracker


@dataclass
class Skip:
    source: str
    row: str


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_continued_run_tells_of_every_step_once(tmp_path):
    first = Tracker(tmp_path, main=True, start_step=0, total_steps=9)
    for step in (1, 2, 3):
        first.log({"step": step, "loss": 1.0})
        first.write_skips(step, [Skip("tones", str(step))])
    first.log_event("finished", step=3)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')  # killed while writing
    second = Tracker(tmp_path, main=True, start_step=2, total_steps=9)
    second.log({"step": 3, "loss": 2.0})
    second.write_skips(3, [Skip("tones", "3")])
    second.close()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 2.0},
    ]
    assert [(row["step"], row["row"]) for row in lines(tmp_path / "skipped.jsonl")] == [
        (1, "1"),
        (2, "2"),
        (3, "3"),
    ]


def test_a_new_run_in_an_old_folder_starts_with_empty_records(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (tmp_path / "skipped.jsonl").write_text('{"step": 1, "row": "1"}\n')
    Tracker(tmp_path, main=True, start_step=0, total_steps=9).close()
    assert lines(tmp_path / "metrics.jsonl") == lines(tmp_path / "skipped.jsonl") == []


def test_other_ranks_write_skips_only(tmp_path):
    other = Tracker(tmp_path / "run", main=False, start_step=0, total_steps=9)
    other.log({"step": 1, "loss": 1.0})
    other.log_event("finished", step=1)
    assert not (tmp_path / "run").exists()
    other.write_skips(1, [Skip("tones", "7")])
    assert lines(tmp_path / "run" / "skipped.jsonl") == [{"step": 1, "source": "tones", "row": "7"}]
    other.close()


def test_records_that_cannot_be_written_are_reported(tmp_path):
    (tmp_path / "skipped.jsonl").mkdir()
    tracker = Tracker(tmp_path, main=True, start_step=0, total_steps=9)
    with pytest.raises(UserError, match=r"skipped\.jsonl could not be written .*; checkpoints are intact"):
        tracker.write_skips(1, [Skip("tones", "1")])
    tracker.close()


def test_scores_of_an_evaluation_are_printed(tmp_path, capsys):
    tracker = Tracker(tmp_path, main=True, start_step=0, total_steps=9)
    results = {
        "birds:call": {
            "metric": "accuracy",
            "score": 0.25,
            "loss": 1.5,
            "labels": {"accuracy": 0.5, "map": 0.75},
        },
        "birds:tags": {
            "metric": "map",
            "score": 0.125,
            "loss": None,
            "labels": {"accuracy": 0.5, "map": 0.75},
        },
        "talks:emotion": {
            "metric": "uar",
            "score": 0.625,
            "loss": None,
            "labels": {"accuracy": 0.5, "map": 0.75, "uar": 0.375},
        },
        "talks:asr": {"metric": "wer", "score": 0.3, "loss": 2.0},
        "talks:captions": {
            "metric": "cider",
            "score": None,
            "loss": 3.0,
            "undefined": {"cider": "it needs two clips"},
        },
    }
    tracker.log_evaluation(3, results, [])
    tracker.close()
    printed = "".join(capsys.readouterr())
    assert "step 3  birds:call  accuracy 0.250  by label 0.500  loss 1.5000\n" in printed
    assert "step 3  birds:tags  map 0.125  by label 0.750\n" in printed
    assert "step 3  talks:emotion  uar 0.625  by label 0.375\n" in printed
    assert "step 3  talks:asr  wer 0.300  loss 2.0000\n" in printed
    assert "step 3  talks:captions  cider undefined  loss 3.0000\n" in printed
    assert "talks:captions: cider is undefined: it needs two clips\n" in printed
