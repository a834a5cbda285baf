"""Units of bytes and of time."""

GIB = 2**30  # bytes
SECONDS_PER_HOUR = 3600
