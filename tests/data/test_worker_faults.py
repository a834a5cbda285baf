"""What torch says about data workers becomes a sentence with the row or the setting; all else passes as it is."""

import errno
import os
import resource
import signal
import sys
from dataclasses import dataclass, field
from multiprocessing import current_process, get_context
from multiprocessing.connection import Client
from multiprocessing.resource_sharer import DupFd

import pytest
import torch

from uniaudio.data.loader import isolate_worker
from uniaudio.data.worker_faults import (
    WORKERS,
    ensure_open_files,
    explain_worker_faults,
    find_row_of,
    share_tensors,
)
from uniaudio.errors import UserError
from uniaudio.ragged import Ragged
from uniaudio.train.signals import StopSignal


@dataclass(frozen=True)
class Worker:
    at: object = field(default_factory=lambda: get_context().Array("c", 40))
    pid: object = field(default_factory=lambda: get_context().Value("q", 0))


@pytest.fixture
def workers():
    both = [Worker(), Worker()]
    for index, worker in enumerate(both):
        worker.at.value = f"tones, row {index}".encode()
        worker.pid.value = 7000 + index
        WORKERS[id(worker)] = worker
    return both


def sentence(problem, worker=None):
    with pytest.raises(UserError) as message, explain_worker_faults(worker):
        raise problem
    assert "\n" not in str(message.value)
    return str(message.value)


KILLED = "DataLoader worker (pid {}) is killed by signal: {}. "


def test_a_death_that_comes_up_anywhere_names_the_row_of_that_process(workers):
    message = sentence(RuntimeError(KILLED.format(7001, "Killed")))
    assert message.startswith("a data worker died; it was at: tones, row 1 (killed by the system")
    assert "data.workers" in message
    exited = "DataLoader worker (pid(s) 12, 7000) exited unexpectedly"
    assert sentence(RuntimeError(exited)) == "a data worker died; it was at: tones, row 0"
    lost = "DataLoader worker (pid 7001) exited unexpectedly with exit code 1. Details are lost"
    assert sentence(RuntimeError(lost), workers[0]).endswith("tones, row 1")


@pytest.mark.parametrize("problem", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_pipe_that_ends_is_the_death_of_the_worker_that_was_waited_for(workers, problem):
    assert sentence(problem, workers[1]) == "a data worker died; it was at: tones, row 1"


@pytest.mark.parametrize(
    ("problem", "setting"),
    [
        (RuntimeError(KILLED.format(7000, "Bus error") + "It is possible that ..."), "--shm-size"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), "--shm-size"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"), "--shm-size"),
        (OSError(errno.ENOSPC, "No space left on device"), "--shm-size"),
        (RuntimeError("Too many open files. Communication with the workers"), "ulimit -n"),
        (RuntimeError("received 0 items of ancillary data"), "ulimit -n"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    ],
)
def test_what_does_not_suffice_is_reported_with_its_setting(workers, problem, setting):
    message = sentence(problem, workers[0])
    assert setting in message
    assert "data.workers" in message


def test_other_problems_pass(workers):
    alone = Worker()  # serves in this process
    for problem, worker in (
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (EOFError(), alone),
        (RuntimeError("shape mismatch"), workers[0]),
        (RuntimeError("Caught OSError in DataLoader worker process 0.\nread timed out"), workers[0]),
    ):
        with pytest.raises(type(problem)) as passed, explain_worker_faults(worker):
            raise problem
        assert passed.value is problem


def test_a_worker_that_is_not_used_any_more_is_forgotten():
    worker = Worker()
    worker.pid.value = 7777
    worker.at.value = b"tones, row 7"
    WORKERS[id(worker)] = worker
    assert find_row_of("7777") == "tones, row 7"
    del worker
    assert find_row_of("7777") == ""


def test_all_tensors_of_a_batch_are_shared():
    ragged = Ragged(torch.arange(3), torch.tensor([1, 2]))
    part, empty = torch.ones(4), torch.zeros(0)
    share_tensors({"a": (ragged, [part, empty]), "b": "text"})
    assert all(tensor.is_shared() for tensor in (ragged.values, ragged.lengths, part))


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes_and_else_refused(monkeypatch):
    limits = {"now": (40, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.update(now=pair))
    ensure_open_files(8, 2)
    assert limits["now"] == (4096, 4096)
    limits["now"] = (60, 60)
    with pytest.raises(
        UserError, match="ulimit -n is 60, but 4 data workers with 8 micro-batches ready need about"
    ):
        ensure_open_files(4, 8)
    limits["now"] = (256, 256)
    ensure_open_files(8, 2)


def hand_over(pipe, problems):
    """Do what a data worker does: hand over open files and wait; then let its thread meet problems of its own."""
    isolate_worker(0)
    pipe.send(DupFd(os.pipe()[0]))
    pipe.recv()
    for problem in problems:
        sys.excepthook(type(problem), problem, None)


@pytest.mark.parametrize(("problems", "said"), [([], ""), ([KeyError("lost")], "KeyError: 'lost'\n")])
def test_a_run_that_is_stopped_at_once_leaves_its_workers_without_a_word(capfd, problems, said):
    """It is stopped while it takes an open file, and the terminal sends SIGINT to all processes of the run."""
    here, there = get_context("fork").Pipe()
    with StopSignal():
        process = get_context("fork").Process(target=hand_over, args=(there, problems))
        process.start()
    file = here.recv()
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
    address, _ = file._id
    Client(address, authkey=current_process().authkey).close()
    os.close(file.detach())  # the next one is handed over as ever
    here.send("end")
    process.join(60)
    assert process.exitcode == 0
    assert capfd.readouterr().err == said
