"""How processes of a launch are started, and how they end."""

import os
import subprocess
import sys
import sysconfig

import pytest

from uniaudio.launched_processes import end_without_teardown, make_module_command

LAUNCH = ("WORLD_SIZE", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
SCRIPT = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from uniaudio.launched_processes import end_without_teardown

class Cleared:
    def __del__(self, write=sys.stdout.write):
        write("cleared away\\n")

def work():
    time.sleep(0.3)
    print("thread finished")

kept = Cleared()
with end_without_teardown():
    atexit.register(print, "exit handler ran")
    ThreadPoolExecutor(1).submit(work)
    {end}
"""


@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("sys.exit()", 0), ("sys.exit(75)", 75)])
@pytest.mark.parametrize("launched", [True, False])
def test_a_rank_does_what_programs_do_at_their_end_but_is_not_cleared_away(end, code, launched):
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCH}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(end=end)],
        env={**environment, **({"TORCHELASTIC_RUN_ID": "none"} if launched else {})},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (code, "")
    ending = [] if launched else ["cleared away"]
    assert done.stdout.splitlines() == ["thread finished", "exit handler ran", *ending]


@pytest.mark.parametrize("code", [0, 2, "a sentence"])
def test_a_process_of_a_shell_ends_as_python_ends_it(monkeypatch, code):
    for name in LAUNCH:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as end, end_without_teardown():
        sys.exit(code)
    assert end.value.code == code


@pytest.fixture
def hostile_folder(tmp_path, monkeypatch):
    """A working folder with files that stand in for modules and say that they were run; it is on no path."""
    for name in ("typer", "torch", "uniaudio"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code of the folder was run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    return tmp_path


def run_help(command):
    return subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)


def test_a_process_that_is_started_runs_nothing_of_the_working_folder(hostile_folder):
    done = run_help(make_module_command("uniaudio.train"))
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout
    assert "code of the folder was run" in run_help([sys.executable, "-m", "uniaudio.train"]).stderr


@pytest.mark.parametrize("place", ["", "{here}", "{here}/sub/.."])
def test_a_process_looks_for_modules_where_the_one_that_starts_it_does(hostile_folder, monkeypatch, place):
    plain, safe = [sys.executable, "-u", "-m", "a.b"], [sys.executable, "-u", "-P", "-m", "a.b"]
    (hostile_folder / "sub").mkdir()
    place, others = place.format(here=hostile_folder), sys.path
    monkeypatch.setattr(sys, "path", [place, *others])  # as `python -m` does it
    assert make_module_command("a.b") == plain
    monkeypatch.setattr(sys, "path", [*others, place])  # as for classes that a config names
    assert sysconfig.get_path("stdlib") in others
    assert make_module_command("a.b") == safe
