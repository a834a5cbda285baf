"""The page over real HTTP, with a stand-in for the model: what it loads, what it answers, what it refuses."""

import json
import re
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers.served_page import NAME, echo, served

from uniaudio.errors import UserError
from uniaudio.serve.limits import Limits

LIMITS = Limits(max_mib=0.01, max_waiting=2)


class Model:
    """Answers as it is set to, and counts how many do at a time."""

    def __init__(self):
        self.answer, self.running, self.most = echo, 0, 0

    def __call__(self, data, question, task):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return self.answer(data, question, task)
        finally:
            self.running -= 1


@pytest.fixture(scope="module")
def page():
    """The stand-in, the address of its page and the folder of uploads."""
    model = Model()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as uploads:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", uploads)
        with served(model, LIMITS) as address:
            yield model, address, Path(uploads)
        assert [file for file in Path(uploads).rglob("*") if file.is_file()] == []


@pytest.fixture
def client(page):
    page[0].answer = echo
    one = Client(page[1], verbose=False, analytics_enabled=False)
    yield one
    one.close()


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "clip.wav").write_bytes(b"x" * 99)
    return handle_file(tmp_path / "clip.wav")


def test_clip_question_and_task_reach_the_model(client, clip):
    answer, labels, plot = client.predict(clip, "which? ü", "tone (2)", api_name="/ask")
    assert answer == "99 which? ü"
    assert [(one["label"], one["confidence"]) for one in labels["confidences"]] == [
        ("low", 0.75),
        ("hi<b>gh", 0.25),
    ]
    assert plot["plot"].startswith("data:image/")
    assert client.predict(clip, "what?", "", api_name="/ask")[:2] == ("99 what?", {})


def test_the_page_loads_nothing_from_elsewhere_and_escapes_names(page):
    _, address, _ = page
    reply = httpx.get(address)
    assert "<script>alert" not in reply.text
    assert NAME.replace("<", "\\u003c").replace(">", "\\u003e") in reply.text
    theme = httpx.get(f"{address}/theme.css").text
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|fonts\.g|preconnect""", reply.text)
    assert not re.findall(r"""url\((?!["']?data:)|@import|@font-face""", theme)
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    config = httpx.get(f"{address}/config").json()
    assert (config["stylesheets"], config["analytics_enabled"]) == ([], False)


def test_files_of_the_machine_are_not_served(page, tmp_path):
    _, address, uploads = page
    (tmp_path / "secret.txt").write_text("secret")
    names = [
        tmp_path / "secret.txt",
        uploads / ".." / tmp_path.name / "secret.txt",
        Path(__file__),
        "/etc/passwd",
        "pyproject.toml",
    ]
    for name in names:
        for path in (f"/gradio_api/file={name}", f"/static/{name}", f"/assets/..%2f..%2f{name}"):
            assert httpx.get(address + path).status_code in (403, 404)


def send_plainly(address, data):
    """Ask without a client that uploads files; returns whether an answer came, and the error."""
    job = {"session_hash": "plain", "fn_index": 1, "data": data}
    httpx.post(f"{address}/gradio_api/queue/join", json=job).raise_for_status()
    with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash=plain", timeout=20) as lines:
        for line in lines.iter_lines():
            message = json.loads(line.removeprefix("data: ") or "{}")
            if message.get("msg") == "process_completed":
                return message["success"], message["output"].get("error")


def test_a_clip_is_an_upload_not_a_path_or_an_address(page, client, tmp_path):
    (tmp_path / "secret.wav").write_bytes(b"secret")
    page[0].answer = echo
    for path in (
        tmp_path / "secret.wav",
        page[2] / ".." / tmp_path / "secret.wav",
        page[2] / "deleted.wav",
        f"{page[1]}/favicon.ico",
    ):
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        for data in ([file, "what?", ""], [None, file, ""], [None, [{"deep": file}], ""]):
            assert send_plainly(page[1], data) == (
                False,
                "the clip is no longer available; upload it again",
            )


def test_too_large_files_are_refused(page, client, tmp_path):
    for size, status in ((10_000, 200), (11_000, 413), (3 << 20, 413)):
        files = {"files": ("a.wav", b"x" * size)}
        assert httpx.post(f"{page[1]}/gradio_api/upload", files=files).status_code == status


def test_failures_are_sentences(page, client, clip):
    cases = [
        (UserError("the file cannot be read as <b>sound</b>"), "the file cannot be read as &lt;b&gt;sound"),
        (RuntimeError("secret path /home/me"), "^((?!secret).)*$"),
    ]
    for problem, message in cases:

        def fail(data, question, task, problem=problem):
            raise problem

        page[0].answer = fail
        with pytest.raises(AppError, match=message):
            client.predict(clip, "what?", "", api_name="/ask")
    with pytest.raises(AppError, match="upload or record a clip first"):
        client.predict(None, "what?", "", api_name="/ask")


def test_one_at_a_time_and_only_so_many_wait(page, client, clip):
    model, go = page[0], threading.Event()

    def wait(data, question, task):
        assert go.wait(20)
        return echo(data, question, task)

    model.answer, model.most = wait, 0
    jobs = [client.submit(clip, str(number), "", api_name="/ask") for number in range(5)]
    until = time.monotonic() + 20
    while sum(job.done() for job in jobs) < 2:  # those that are turned away
        assert time.monotonic() < until
        time.sleep(0.02)
    go.set()
    outcomes = [str(job.exception(20) or job.result()[0]) for job in jobs]
    assert model.most == 1
    # 3: the first was not yet taken
    assert sum("Queue is full" in outcome for outcome in outcomes) in (2, 3), outcomes
    assert sum(outcome.startswith("99 ") for outcome in outcomes) in (2, 3), outcomes
