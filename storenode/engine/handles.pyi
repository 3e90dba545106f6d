"""Open files of tables within a bound (native/handles.h)."""

from collections.abc import Callable
from typing import TypeVar

from storenode.engine.vfs import File, Vfs

Opened = TypeVar("Opened")

class Handles:
    """At most `most` descriptors of tables are open, but for those that are read from just now and those of
    replaced tables that a snapshot still reads. Any thread."""

    def __init__(self, vfs: Vfs, most: int) -> None: ...
    def opening(self, function: Callable[[str], Opened], path: str) -> Opened:
        """Call `function(path)`, which opens or creates files. When the process or the machine has no more
        descriptors, tables' are closed for it; OSError when none of them is left to close."""
    def open(self, path: str) -> File:
        """A file for reading, in the same way."""
    def stats(self) -> dict[str, int]:
        """open and open_max (descriptors); since the start: reads (of files), reopened (by reads that found
        the descriptor closed), evicted."""
