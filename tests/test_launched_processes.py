"""How a process of a launch ends."""

import os
import subprocess
import sys

import pytest

from uniaudio.launched_processes import end_without_teardown

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
