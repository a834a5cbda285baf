"""Which requests the server answers."""

import pytest
from starlette.datastructures import Headers

from uniaudio.serve.server import Guard

LOCAL = {"host": "127.0.0.1:7860"}
POST = {**LOCAL, "content-length": "10"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", LOCAL, None),
        ("GET", "/", {"host": "localhost"}, None),
        ("GET", "/", {"host": "[::1]:7860"}, None),
        ("GET", "/assets/index.js", {**LOCAL, "origin": "http://127.0.0.1:7860"}, None),
        ("POST", "/gradio_api/upload", POST, None),
        # a foreign page that reaches this machine under a name of its own
        ("GET", "/", {"host": "evil.example:7860"}, 400),
        ("GET", "/", {}, 400),
        ("GET", "/", {"host": "[::1"}, 400),
        ("GET", "/", {**LOCAL, "origin": "http://[::1"}, 400),
        # a foreign page in a browser on this machine
        ("POST", "/gradio_api/upload", {**POST, "origin": "http://evil.example"}, 403),
        ("POST", "/gradio_api/queue/join", {**POST, "origin": "http://localhost:8000"}, 403),
        ("POST", "/gradio_api/queue/join", {**POST, "origin": "null"}, 403),
        # what the page does not need
        ("GET", "/gradio_api/proxy=http://x.example", LOCAL, 404),
        ("GET", "/gradio_api/file=http://x.example/a.wav", LOCAL, 404),
        ("POST", "/gradio_api/process_recording", POST, 404),
        ("GET", "/monitoring", LOCAL, 404),
        # sizes, before a byte of them is read
        ("POST", "/gradio_api/upload", LOCAL, 411),
        ("POST", "/gradio_api/upload", {**POST, "content-length": str(3 << 20)}, 413),
    ],
)
def test_requests_that_are_answered_and_refused(method, path, headers, status):
    guard = Guard(None, ("127.0.0.1", "localhost", "::1"), max_bytes=1 << 20)
    refusal = guard.check_request(method, path, Headers(headers))
    assert (refusal and refusal[0]) == status


def test_a_host_name_in_capitals_is_the_one_that_browsers_send():
    guard = Guard(None, ("GPU7",), max_bytes=1)
    assert guard.check_request("GET", "/", Headers({"host": "gpu7:7860"})) is None


def test_a_page_for_all_addresses_is_reached_under_any_name_but_not_from_other_pages():
    guard = Guard(None, (), max_bytes=1)
    other = {"host": "gpu7.example"}
    assert guard.check_request("GET", "/", Headers(other)) is None
    assert guard.check_request("GET", "/", Headers({**other, "origin": "http://evil.example"}))[0] == 403
