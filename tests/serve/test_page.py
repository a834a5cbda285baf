"""The command as a user starts it, on a checkpoint that was really trained."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import quote

import numpy as np
import pytest
import soundfile

from uniaudio.commands.ask import answer_file_question

SOUND = {"Content-Type": "audio/wav"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = ""


def command(*arguments):
    return [sys.executable, "-m", "uniaudio", *map(str, arguments)]


@pytest.fixture
def checkpoint(tone_run):
    """A run of eight steps; its answers mean nothing, but they are those of a real model."""
    subprocess.run(command("train", tone_run), env=ENVIRONMENT, check=True, capture_output=True)
    return tone_run.parent / "out"


@contextmanager
def page_of(*arguments):
    """Start the page and yield a function that asks it; end it with Ctrl-C and look at its exit."""
    process = subprocess.Popen(
        command("serve", *arguments, "--port", 0), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "open http://" in line:
                break
        port = int(line.split(":")[-1].split()[0])

        def call(path, body=None, headers=SOUND):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET" if body is None else "POST", path, body, headers)
            got = connection.getresponse()
            text = got.read().decode()
            return got.status, json.loads(text) if text.startswith("{") else text

        call.said = "".join(lines)
        yield call
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert process.returncode == 0


def wav(seconds):
    file = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(round(seconds * 16000)) * 0.3)
    soundfile.write(file, wave, 16000, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.mark.slow
def test_a_trained_checkpoint_answers_on_its_page(checkpoint):
    question = "<audio>Which tone is it?"
    clip = checkpoint.parent / "tones" / "1.wav"
    expected = answer_file_question(str(checkpoint), clip, question, 256)
    with page_of(checkpoint, "--max-seconds", 2, "--max-mib", 0.1) as call:
        status, page = call("/")
        assert status == 200
        assert "Which tone is it?" in page
        status, reply = call(f"/ask?task=tone&question={quote(question)}", clip.read_bytes())
        assert status == 200
        assert reply["answer"] == expected
        assert {row["label"] for row in reply["labels"]} == {"low", "high"}
        assert sum(row["probability"] for row in reply["labels"]) == pytest.approx(1)
        assert call("/ask?question=what", wav(2.5))[1]["error"].startswith("the clip is 2.5 s long")
        assert call("/ask?question=what", bytes(110_000))[1]["error"].startswith(
            "the file is larger than 0.1 MiB"
        )
        assert "cannot be read as sound" in call("/ask?question=what", b"<html>no sound</html>")[1]["error"]
        assert call("/ask?question=what", wav(0.5))[0] == 200  # none of that did any harm


@pytest.mark.slow
def test_what_is_told_before_a_model_is_loaded(tmp_path):
    """A port in use, a page that other machines can reach, a folder without a checkpoint."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = failed("serve", tmp_path, "--port", port)
    assert f"the address 127.0.0.1:{port} cannot be taken" in told.stderr
    told = failed("serve", tmp_path, "--port", 0, "--host", "0.0.0.0")
    assert "can be reached from other machines" in " ".join(told.stdout.split())
    assert "is neither a checkpoint nor a run folder" in told.stderr


def failed(*arguments):
    """Run a command that ends with a user's mistake, told in one sentence."""
    done = subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done
