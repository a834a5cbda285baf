"""Runs one after another in the processes of one launch, which are started and import everything once.

Usage: accelerate launch ... several_runs.py FILE; the file holds a JSON list of the arguments of ``uniaudio train``.
"""

import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from uniaudio.cli import main
from uniaudio.commands import train as training
from uniaudio.launched_processes import end_without_teardown


def run_all(file):
    shutdown, training.shutdown_process_group = (
        training.shutdown_process_group,
        lambda: None,
    )  # the next run exchanges on
    for arguments in json.loads(Path(file).read_text()):
        try:
            main(["train", *arguments])
        except SystemExit as end:
            if end.code:
                raise
        AcceleratorState._reset_state(False)
        GradientState._reset_state()
    shutdown()


if __name__ == "__main__":
    with end_without_teardown():
        run_all(sys.argv[1])
