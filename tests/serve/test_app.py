"""The page over real HTTP, with a stand-in for the model: sizes, kinds, hosts, queue, and what goes wrong."""

import json
import threading
import time

from served_page import SOUND, echo, served

from uniaudio.errors import UserError
from uniaudio.serve.limits import Limits, OutOfTimeError


def test_clip_question_and_task_reach_the_model():
    with served(echo) as call:
        status, body, headers = call(path="/ask?question=which%3F%20%C3%BC&task=tone", body=b"x" * 99)
        assert status == 200
        assert json.loads(body) == {
            "answer": "99 which? ü",
            "labels": [{"label": "low", "probability": 0.5}, {"label": "hi<b>gh", "probability": 0.5}],
            "seconds": 1.0,
            "took": 0.1,
            "mel": "data:image/png;base64,cG5n",
        }
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert json.loads(call()[1])["labels"] == []
        status, body, _ = call(path="/ask?question=a&task=nothing")
        assert (status, "there is no task 'nothing'" in body) == (400, True)


def test_the_page_loads_nothing_from_elsewhere_and_escapes_names():
    with served(echo) as call:
        status, body, headers = call("GET", "/", None)
        assert status == 200
        assert "<script>alert" not in body
        assert "&lt;script&gt;alert" in body
        assert "//" not in body.replace("</", "")
        assert headers["X-Content-Type-Options"] == "nosniff"
        for name in ("page.js", "page.css"):
            status, text, _ = call("GET", f"/static/{name}", None)
            assert status == 200
            assert "//" not in text.replace("// ", "")
        assert call("GET", "/static/../app.py", None)[0] == 404
        assert call("GET", "/ask", None)[0] == 405


def test_too_large_by_its_header_and_as_it_comes():
    with served(echo, Limits(max_mib=0.01)) as call:
        most = int(0.01 * 2**20)
        assert call(body=b"x" * most)[0] == 200
        for options in ({}, {"encode_chunked": True}):
            body = b"x" * (most + 1) if not options else iter([b"x" * 4096] * 3)
            headers = SOUND if not options else {**SOUND, "Transfer-Encoding": "chunked"}
            status, text, _ = call(body=body, headers=headers, **options)
            assert status == 413
            assert "the file is larger than 0.01 MiB" in json.loads(text)["error"]


def test_forms_of_other_pages_and_other_hosts_are_refused():
    with served(echo) as call:
        for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
            assert call(headers={"Content-Type": kind})[0] == 415
        assert call(headers={})[0] == 415
        assert call(headers={**SOUND, "Host": "evil.example"})[0] == 400
        assert (
            call("OPTIONS", headers={"Origin": "http://evil.example"})[2]["Access-Control-Allow-Origin"]
            is None
        )


def test_failures_are_sentences(capfd):
    def failing(problem):
        def answer(data, question, offer):
            raise problem

        return answer

    cases = [
        (UserError("the clip is empty"), 400, "the clip is empty"),
        (OutOfTimeError(), 504, "the model took too long"),
        (RuntimeError("secret path /home/me"), 500, "something failed on this page's side"),
    ]
    for problem, expected, sentence in cases:
        with served(failing(problem)) as call:
            status, body, _ = call()
            assert status == expected
            assert json.loads(body)["error"].startswith(sentence)
            assert "Traceback" not in body
            assert "secret" not in body


def test_a_clip_that_comes_too_slowly():
    def drip():
        for _ in range(8):
            time.sleep(0.2)
            yield b"x"

    with served(echo, Limits(timeout=0.5)) as call:
        try:
            status, body, _ = call(body=drip(), headers={**SOUND, "Transfer-Encoding": "chunked"})
        except (
            BrokenPipeError,
            ConnectionResetError,
        ):  # the answer came and the connection went before the last part
            return
        assert status == 408
        assert "did not arrive within 0.5 s" in body


def test_one_at_a_time_in_order_and_only_so_many_wait():
    running, most, done, go = 0, 0, [], threading.Event()

    def slow(data, question, offer):
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert go.wait(20)
        running -= 1
        done.append(question)
        return echo(data, question, offer)

    statuses = {}
    with served(slow, Limits(max_waiting=2)) as call:

        def ask(number):
            statuses[number] = call(path=f"/ask?question={number}")[0]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        go.set()
        for thread in threads:
            thread.join()
    assert most == 1
    assert done == ["0", "1", "2"]
    assert statuses == {0: 200, 1: 200, 2: 200, 3: 503, 4: 503}
