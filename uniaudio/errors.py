"""The exceptions that are part of the interface: a user's mistake, an unusable row, a process that was lost."""


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence that names the thing and the fix.

    The command line prints it without a traceback and exits with code 2.
    """


class RowError(Exception):
    """One row of a source cannot be used (missing file, broken audio, unknown label ...).

    The row is skipped, counted by ``reason`` and listed in ``skipped.jsonl``; it never ends the run on its own.

    Args:
        reason: short, stable, countable ("missing file", "non-finite samples", "unknown label" ...).
        detail: what a person needs to find and mend the row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class LostProcessError(Exception):
    """Another process of the run is gone. The command line prints the sentence without a traceback, exit code 1."""
