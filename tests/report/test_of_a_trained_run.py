"""The page of a trained run: its clips, its embedding map, and what is told when they are gone."""

import base64
import io
import json
import re
import shutil

import pytest
import soundfile

from uniaudio.commands.evaluate import run_evaluation
from uniaudio.commands.report import Wanted, report_runs
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run


@pytest.mark.slow
def test_clips_and_map_of_a_trained_run(tone_run, fresh_accelerate):
    run = tone_run.parent / "out"
    assert run_training(load_run(tone_run), None) == 0
    run_evaluation(str(run), None, run / "answers.json", None)
    stored = json.loads((run / "answers.json").read_text())
    for item in stored["tones:tone"]["answers"]:
        item |= {"answer": "neither", "right": False}  # so many wrong answers that each number is known
    (run / "answers.json").write_text(json.dumps(stored))

    text = report_runs([run], None, Wanted()).read_text()
    assert "10 of 10 wrong answers" in text
    sounds = re.findall(r'<audio [^>]*src="data:audio/mpeg;base64,([^"]+)" aria-label="([^"]+)"', text)
    assert len(sounds) == 4 + 2  # of four wrong answers, and of either label
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0][0])))
    assert (rate, sounds[0][1]) == (16000, "clip of tones/test/30.wav")
    assert 0.4 < len(samples) / rate < 0.8
    maps = re.findall(r"<svg class=\"square\".*?</svg>", text, re.DOTALL)
    assert len(maps) == 2
    for drawn in maps:
        assert drawn.count("<use ") == 10
        assert drawn.count("<title>low: tones/test/") == 5
    assert "CC0-1.0" in text
    assert "manifest " in text

    bare = report_runs([run], None, Wanted(audio=False, embedding_map=False)).read_text()
    assert "<audio" not in bare
    assert 'class="square"' not in bare
    assert "10 of 10 wrong answers" in bare

    shutil.rmtree(tone_run.parent / "tones")
    gone = report_runs([run], None, Wanted()).read_text()
    assert "clips of tones:tone: " in gone
    assert "embedding map: " in gone
    shutil.rmtree(run / "checkpoints")
    assert report_runs([run], None, Wanted()).is_file()
