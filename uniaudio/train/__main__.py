"""``python -m uniaudio.train CONFIG ...``: what ``accelerate launch`` starts; the same as ``uniaudio train``."""

import sys

from uniaudio.cli import main
from uniaudio.launched_processes import end_without_teardown

if __name__ == "__main__":
    with end_without_teardown():
        main(["train", *sys.argv[1:]])
