"""Signals during training: noted between steps, and what becomes of their handlers at the end."""

import os
import signal

import pytest

from uniaudio import distributed
from uniaudio.errors import LostProcessError, UserError
from uniaudio.launched_processes import MESSAGES
from uniaudio.train.signals import StopSignal


@pytest.fixture
def custom_handlers():
    """Give the process handlers of its own, and the former ones back."""
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}

    def handle(number, frame):
        pass

    for kind in before:
        signal.signal(kind, handle)
    yield handle
    for kind, handler in before.items():
        signal.signal(kind, handler)


def test_a_signal_is_noted_and_the_handlers_are_given_back(custom_handlers):
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == custom_handlers


@pytest.mark.parametrize(
    ("processes", "messages", "error", "ignored"),
    [
        ("2", None, RuntimeError("Connection closed by peer"), True),
        ("2", None, UserError("no such file"), False),  # a script may catch it and go on
        ("2", "folder", UserError("no such file"), True),
        ("1", "folder", RuntimeError("out of memory"), False),
    ],
)
def test_a_rank_that_ends_with_an_error_is_not_ended_by_its_launcher_before_it_has_said_so(
    custom_handlers, monkeypatch, processes, messages, error, ignored
):
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.delenv(MESSAGES, raising=False)
    if messages is not None:  # `uniaudio launch` started it
        monkeypatch.setenv(MESSAGES, messages)
    with pytest.raises(type(error)), StopSignal():
        raise error
    assert signal.getsignal(signal.SIGTERM) == (signal.SIG_IGN if ignored else custom_handlers)
    assert signal.getsignal(signal.SIGINT) == custom_handlers


def test_a_process_that_has_lost_another_one_is_not_ended_before_it_has_said_so(custom_handlers, monkeypatch):
    """Also outside of training: while models are built, and in an evaluation."""
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    with pytest.raises(RuntimeError), distributed.explain_lost_processes():
        raise RuntimeError("size mismatch")
    assert signal.getsignal(signal.SIGTERM) == custom_handlers
    lost = pytest.raises(LostProcessError, match="process 3 lost another process")
    with lost, distributed.explain_lost_processes():
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == custom_handlers
