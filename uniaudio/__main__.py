"""``python -m uniaudio``: the same as the command ``uniaudio``."""

from uniaudio.cli import main

if __name__ == "__main__":
    main()
