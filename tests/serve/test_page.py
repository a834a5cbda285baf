"""The command as a user starts it."""

import os
import signal
import socket
import subprocess
import sys
from importlib import util

import pytest
from gradio_client import Client, handle_file

from uniaudio.cli import main
from uniaudio.commands.ask import answer_file_question

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}


@pytest.mark.slow
def test_a_trained_checkpoint_answers_on_its_page(tone_run, tmp_path):
    """As ``uniaudio ask`` does; Ctrl-C ends the page, and nothing of the clips is left."""
    with pytest.raises(SystemExit):
        main(["train", str(tone_run)])
    run, clip, question = (
        tone_run.parent / "out",
        tone_run.parent / "tones" / "1.wav",
        "<audio>Which tone is it?",
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "uniaudio", "serve", str(run), "--port", "0", "--max-seconds", "0.5"]
    environment = {**ENVIRONMENT, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            address = next(line for line in process.stdout if "open http://" in line).split()[1]
            client = Client(address, verbose=False, analytics_enabled=False)
            answer, labels, _ = client.predict(handle_file(clip), question, "tone", api_name="/ask")
            with pytest.raises(Exception, match=r"the clip is 0\.7 s long, more than 0\.5 s"):
                client.predict(handle_file(clip.with_name("8.wav")), question, "tone", api_name="/ask")
            assert list(temporary.rglob("1.wav"))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
        assert (process.returncode, "Traceback" in process.stderr.read()) == (0, False)
    assert not list(temporary.rglob("*.wav"))
    assert answer == answer_file_question(str(run), clip, question, 256)
    assert {one["label"] for one in labels["confidences"]} == {"low", "high"}
    assert sum(one["confidence"] for one in labels["confidences"]) == pytest.approx(1)


def test_what_is_refused_before_a_model_is_loaded(tmp_path, capsys, monkeypatch):
    """A port in use, a folder without a checkpoint behind an address that others reach, a missing package."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"the address 127.0.0.1:{port} cannot be used" in run_and_fail(
            capsys, tmp_path, "--port", port
        )
    text = run_and_fail(capsys, tmp_path, "--port", 0, "--host", "0.0.0.0")
    assert "other machines can reach the page through" in text
    assert "is neither a checkpoint nor a run folder" in text
    find = util.find_spec
    monkeypatch.setattr(
        "uniaudio.extras.importlib.util.find_spec", lambda name: None if name == "gradio" else find(name)
    )
    assert "pip install 'uniaudio[serve]'" in run_and_fail(capsys, tmp_path)


def run_and_fail(capsys, *arguments):
    """Return what a command printed that ended with a user's mistake."""
    with pytest.raises(SystemExit) as end:
        main(["serve", *map(str, arguments)])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join((captured.out + captured.err).split())
