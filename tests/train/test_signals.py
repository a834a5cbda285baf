"""Signals during training: noted between steps, and what becomes of their handlers at the end."""

import os
import signal

import pytest

from uniaudio.errors import UserError
from uniaudio.train import signals
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
    ("distributed", "error", "ignored"),
    [
        (True, RuntimeError("Connection closed by peer"), True),
        (True, UserError("no such file"), False),
        (False, RuntimeError("out of memory"), False),
    ],
)
def test_a_rank_that_ends_with_an_error_is_not_ended_by_its_launcher_before_it_has_said_so(
    custom_handlers, monkeypatch, distributed, error, ignored
):
    monkeypatch.setattr(signals, "is_distributed", lambda: distributed)
    with pytest.raises(type(error)), StopSignal():
        raise error
    assert signal.getsignal(signal.SIGTERM) == (signal.SIG_IGN if ignored else custom_handlers)
    assert signal.getsignal(signal.SIGINT) == custom_handlers
