"""A Hub that is away: what is said, how soon it ends, and what is read all the same."""

import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from local_hub.clients import go_offline

from uniaudio import hub_connection
from uniaudio.hub_client import HubUnreachableError, can_pass
from uniaudio.model import model_files
from uniaudio.model.model_files import fetch_model_config

NAME = "me/tones"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507, 520, 524, 529])
def test_a_server_that_fails_may_answer_a_little_later(status):
    assert can_pass(make_refusal(status))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416, 451, 501, 505])
def test_a_refusal_stays_one(status):
    assert not can_pass(make_refusal(status))


def make_refusal(status):
    problem = OSError(f"{status}")
    problem.response = SimpleNamespace(status_code=status, headers={})
    return problem


@pytest.fixture
def slept(monkeypatch):
    """Seconds that were slept, in place of all but a moment of sleeping; a wait is announced soon."""
    seconds = []
    monkeypatch.setattr(time, "sleep", lambda wanted: seconds.append(wanted) or threading.Event().wait(0.05))
    monkeypatch.setattr(hub_connection, "SAID_AFTER", 0.01)
    monkeypatch.setattr(model_files, "CONFIG_FOLDERS", {})
    return seconds


@pytest.fixture
def model(hub, tmp_path):
    folder = tmp_path / "hub" / "models" / NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    return folder


def point_at(monkeypatch, port):
    """Let the clients of this process ask a port."""
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", f"http://127.0.0.1:{port}")


def find_closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_closed_port_ends_in_three_seconds_and_the_next_call_at_once(hub, slept, monkeypatch, capsys):
    point_at(monkeypatch, find_closed_port())
    message = (
        r"me/tones .* the Hub \(http://127\S+\) cannot be reached \(127\.0\.0\.1:\d+: Connection refused\)"
    )
    with pytest.raises(HubUnreachableError, match=message):
        fetch_model_config(NAME, None)
    assert slept == [1.0, 2.0]
    assert "waiting for the Hub (http://127.0.0.1:" in capsys.readouterr().err
    with pytest.raises(HubUnreachableError):
        fetch_model_config("me/others", None)
    assert slept == [1.0, 2.0]


def test_what_loads_for_long_without_a_request_is_no_wait_for_the_hub(hub, model, monkeypatch, capsys):
    monkeypatch.setattr(hub_connection, "SAID_AFTER", 0.01)
    for has_request in (False, True):
        with hub_connection.announce_wait(NAME):
            if has_request:
                fetch_model_config(NAME, None)
            time.sleep(0.1)
        assert ("waiting for the Hub" in capsys.readouterr().err) == has_request


def test_the_counter_of_requests_has_those_for_the_hub_alone(monkeypatch):
    monkeypatch.setattr(hub_connection, "REQUESTS", hub_connection.RequestCounter())
    monkeypatch.setattr(hub_connection, "ANSWERED", {constants.ENDPOINT})
    for url in (f"{constants.ENDPOINT}/api/models", "http://127.0.0.1:1/other", f"{constants.ENDPOINT}/x"):
        hub_connection.refuse_unreachable_hub(SimpleNamespace(url=url))
    assert hub_connection.REQUESTS.count == 2


def test_a_server_that_says_nothing_is_given_up(hub, slept, monkeypatch):
    monkeypatch.setattr(hub_connection, "LONGEST_HEAD", 0.05)
    monkeypatch.setattr(hub_connection, "LONGEST_SILENCE", 0.08)
    with socket.create_server(("127.0.0.1", 0)) as server:
        point_at(monkeypatch, server.getsockname()[1])
        begin = time.monotonic()
        with pytest.raises(HubUnreachableError, match="no answer within"):
            fetch_model_config(NAME, None)
        assert time.monotonic() - begin < 5


def test_a_request_without_an_answer_long_ago_does_not_count(hub, model, monkeypatch):
    monkeypatch.setattr(hub_connection, "ANSWERED", set())
    monkeypatch.setattr(hub_connection, "WAITING", {constants.ENDPOINT: (time.monotonic() - 600,) * 2})
    monkeypatch.setattr(model_files, "CONFIG_FOLDERS", {})
    assert (fetch_model_config(NAME, None) / "config.json").is_file()


def test_what_was_fetched_once_is_read_while_the_hub_is_away(hub, model, slept, monkeypatch):
    folder = fetch_model_config(NAME, None)
    model_files.CONFIG_FOLDERS.clear()
    point_at(monkeypatch, find_closed_port())
    assert fetch_model_config(NAME, None) == folder


def test_offline_nothing_is_tried(hub, slept, monkeypatch, capsys):
    go_offline(monkeypatch)
    monkeypatch.setattr(hub_connection, "try_connection", lambda endpoint: pytest.fail("tried"))
    with pytest.raises(Exception, match="HF_HUB_OFFLINE is set"):
        fetch_model_config(NAME, None)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("endpoint", "proxy", "address"),
    [
        ("https://huggingface.co", {}, ("huggingface.co", 443)),
        ("http://mirror:8080/hf", {}, ("mirror", 8080)),
        ("https://huggingface.co", {"https_proxy": "http://proxy:3128"}, ("proxy", 3128)),
        ("https://huggingface.co", {"https_proxy": "proxy:3128", "no_proxy": ".co"}, ("huggingface.co", 443)),
        ("https://huggingface.co", {"all_proxy": "socks5h://proxy"}, ("proxy", 1080)),
        ("huggingface.co", {}, None),
        ("http://mirror:port", {}, None),
    ],
)
def test_the_way_may_lead_through_a_proxy(endpoint, proxy, address, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in proxy.items():
        monkeypatch.setenv(name, value)
    assert hub_connection.find_address(endpoint) == address
