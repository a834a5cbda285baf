"""``python -m uniaudio.train CONFIG ...``: what ``accelerate launch`` starts; the same as ``uniaudio train``."""

import sys

from uniaudio.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
