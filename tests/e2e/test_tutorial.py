"""The tutorial does what it says: its files are written and its commands run, in order, in an empty folder."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial-add-a-task.md"
BLOCK = re.compile(
    r'```(?P<kind>bash|yaml|console)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)```', re.DOTALL
)


def run(line, folder):
    """Run one command of the page with this Python's ``uniaudio``."""
    words = shlex.split(line)
    if words[0] == "uniaudio":
        words[:1] = [sys.executable, "-m", "uniaudio"]
    environment = {**os.environ, "UNIAUDIO_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_block_of_the_tutorial_in_order(tmp_path):
    done = []
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        lines = block["text"].replace("\\\n", " ").splitlines()
        if block["kind"] == "yaml":
            file = tmp_path / block["title"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block["text"], encoding="utf-8")
        elif block["kind"] == "bash":
            for line in lines:
                result = run(line, tmp_path)
                assert result.returncode == 0, line + result.stdout + result.stderr
                done.append(line)
        else:
            result = run(lines[0].removeprefix("$ "), tmp_path)
            assert result.returncode == 2
            message = result.stderr.splitlines()
            for line in lines[1:]:
                assert any(single.startswith(line) for single in message), (line, message)
    assert [line.split()[1] for line in done if line.startswith("uniaudio")] == [
        *("demo", "check", "preview", "train", "eval", "probe", "report", "ask"),
    ]
    check_what_was_learned(tmp_path / "runs" / "notes")


def check_what_was_learned(run_folder):
    """Look at the files that the tutorial promises, and at its task."""
    events = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "finished"
    answers = json.loads((run_folder / "answers.json").read_text())["notes:note_height"]
    assert answers["examples"] == 16
    assert {item["reference"] for item in answers["answers"]} == {"low", "high"}
    first = next(row["loss"] for row in events if "loss" in row)
    assert answers["loss"] < first / 2  # clips that were not trained on, after 150 steps
    assert set(json.loads((run_folder / "probes.json").read_text())["scores"]["instruments"]) == {
        "runs/demo",
        "runs/notes",
    }
    assert "note_height" in (run_folder / "report.html").read_text()
