"""Units of bytes and of time."""

import sys

GIB = 2**30  # bytes
MAXRSS_UNIT = (
    1 if sys.platform == "darwin" else 1024
)  # bytes; of ``ru_maxrss``, see getrusage(2) of each system
SECONDS_PER_HOUR = 3600
