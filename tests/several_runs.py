"""Runs one after another in the processes of one launch, which are started and import everything once.

Usage: accelerate launch ... several_runs.py FILE; the file holds a JSON list of the arguments of ``uniaudio train``.
"""

import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from uniaudio.cli import main
from uniaudio.commands import train as training

if __name__ == "__main__":
    shutdown, training.shutdown_process_group = (
        training.shutdown_process_group,
        lambda: None,
    )  # the next run exchanges on
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        try:
            main(["train", *arguments])
        except SystemExit as end:
            if end.code:
                raise
        AcceleratorState._reset_state(False)
        GradientState._reset_state()
    shutdown()
