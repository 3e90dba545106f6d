"""What the log raises."""

from __future__ import annotations

from kvclient.errors import Corruption


class LogRefused(Exception):
    """The log is of another node or of another version; nothing is wrong with it."""


class LogCorrupt(Corruption):
    """What was durable once cannot be read any more. The message has segment, offset and what to do."""

    def __init__(self, path: str, offset: int, what: str) -> None:
        super().__init__(
            f"{path}: offset {offset}: {what}; the log was damaged after it was written: do not remove "
            "parts of it, give this node an empty data directory and a new id, and let its peers fill it"
        )
        self.path = path
        self.offset = offset
        self.what = what


class LogFailed(Exception):
    """A write or a sync failed, so nobody can say what is on the disk. Final: every later write raises it
    too; the process must end, the next one reads what is there.
    """
