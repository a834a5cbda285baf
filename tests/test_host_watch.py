"""Two machines of a launch in one process: their watches speak through a real store."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from uniaudio.errors import UserError
from uniaudio.host_watch import HostPlace, HostWatch, watch_other_hosts

BEAT = 0.02


@pytest.fixture
def port():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield store.port
    del store


def make_watch(port, host, **settings):
    """A watch of a machine, and the endings that it decided on."""
    endings = []
    place = HostPlace(host, host, 2, True, "127.0.0.1", port)
    settings = {"beat": BEAT, "silence": 0.4, "grace": 0.05, "start_seconds": 5.0, **settings}
    return HostWatch(place, lambda code, sentence: endings.append((code, sentence)), **settings), endings


def refuse(watch, sentence):
    with watch:
        wait_for(lambda: len(watch.names) == 2)
        raise UserError(sentence)


def wait_for(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_machines_that_beat_are_left_alone_and_a_silent_one_ends_the_others(port):
    first, ended_first = make_watch(port, 0)
    second, ended_second = make_watch(port, 1)
    with first:
        with second:
            wait_for(lambda: len(first.names) == 2 and len(second.names) == 2)
            time.sleep(0.6)
            assert not ended_first
            assert not ended_second
        begin = time.monotonic()
        wait_for(lambda: ended_first)
        assert time.monotonic() - begin < 5
    ((code, sentence),) = ended_first
    assert code == 1
    assert "no sign of life from" in sentence
    assert "for 0.4 s" in sentence
    assert "--resume" in sentence


def test_the_sentence_of_a_process_that_refuses_reaches_the_other_machine(port):
    first, ended_first = make_watch(port, 0)
    second, ended_second = make_watch(port, 1)
    with first:
        with pytest.raises(UserError, match="no manifest"):
            refuse(second, "there is no manifest /data/a.jsonl")
        wait_for(lambda: ended_first)
    ((code, sentence),) = ended_first
    assert code == 2
    assert sentence.startswith("process 1 on ")
    assert sentence.endswith("ended: there is no manifest /data/a.jsonl")
    assert not ended_second


def test_a_process_that_fails_before_it_has_met_the_others_leaves_its_sentence(port):
    first, endings = make_watch(port, 0)
    second, _ = make_watch(port, 1, beat=0.5)
    with first:
        with pytest.raises(ImportError), second:
            raise ImportError("safetensors is too old")
        wait_for(lambda: endings)
    ((code, sentence),) = endings
    assert code == 1
    assert sentence.endswith("ended: ImportError: safetensors is too old")


def test_all_that_refuse_together_end_with_their_sentence_alone(port):
    first, ended_first = make_watch(port, 0, grace=0.5)
    second, ended_second = make_watch(port, 1, grace=0.5)
    with ThreadPoolExecutor() as pool:
        refusals = [pool.submit(refuse, watch, "seed is wrong") for watch in (first, second)]
    assert all(isinstance(refusal.exception(), UserError) for refusal in refusals)
    time.sleep(0.7)
    assert not ended_first
    assert not ended_second


def test_a_machine_that_never_begins_is_missed(port):
    first, ended = make_watch(port, 0, start_seconds=0.2)
    with first:
        wait_for(lambda: ended)
    assert "no sign of life from machine 1" in ended[0][1]


def test_a_store_that_is_gone_is_missed(port):
    """The launcher of machine 0 was killed: nothing waits for the rest of the silence."""
    first, ended = make_watch(port + 1 if port < 65000 else port - 1, 1, start_seconds=0.1, silence=30.0)
    with first:
        wait_for(lambda: ended)
    assert "no sign of life from 127.0.0.1" in ended[0][1]


def test_one_machine_is_not_watched(monkeypatch):
    for name, value in (("GROUP_WORLD_SIZE", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert HostPlace.read_environment() is None
    with watch_other_hosts() as watch:
        assert watch is None


def test_the_place_is_read_from_what_the_launcher_sets(monkeypatch):
    values = {
        "GROUP_WORLD_SIZE": "3",
        "GROUP_RANK": "1",
        "RANK": "9",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "29501",
        "TORCHELASTIC_RESTART_COUNT": "2",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert HostPlace.read_environment() == HostPlace(9, 1, 3, False, "node0", 29501, "2")
