"""The watch on the loop: stacks are written when no step comes to an end, and nothing is left when all went well."""

import time

from uniaudio.train.watchdog import HangWatch


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_stacks_are_written_again_and_again_while_nothing_ends(tmp_path, capsys):
    stacks = tmp_path / "run" / "stacks-rank0.txt"
    with HangWatch(tmp_path / "run", 0.05):
        until(lambda: stacks.read_text().count("Timeout") >= 2)
        until(lambda: "no step" in capsys.readouterr().err)
    written = stacks.read_text()
    assert "test_stacks_are_written_again_and_again" in written
    time.sleep(0.2)
    assert stacks.read_text() == written  # the watch is over


def test_steps_that_end_in_time_leave_no_file(tmp_path, capsys):
    with HangWatch(tmp_path / "run", 3.0) as watch:
        for _ in range(4):
            time.sleep(0.01)
            watch.rearm()
    assert not list((tmp_path / "run").iterdir())
    assert capsys.readouterr().err == ""


def test_it_can_be_switched_off(tmp_path):
    """``hang_seconds: .inf``, which is more than a timer takes."""
    with HangWatch(tmp_path / "run", float("inf")) as watch:
        watch.rearm()
    assert not list((tmp_path / "run").iterdir())


def test_a_run_folder_that_cannot_be_written_does_not_end_the_watch(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    said = ""
    with HangWatch(tmp_path / "file", 0.05):
        time.sleep(0.2)
        said = capfd.readouterr().err
    assert "its stacks are here" in said
