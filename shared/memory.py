"""The process's memory: gives back what is free but still resident, and keeps Python's collector from walking
what stays.

The C library keeps the pages of what was freed in the middle of its heaps for good. Messages wait in memory
that libzmq takes from there, so that after one flood a process would stay as large as its longest queue.
Must not know what the memory was for.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from collections.abc import Callable
from typing import Final

from shared import logs

LOOK_SECONDS: Final = 2.0
GROWN_BYTES: Final = 8 << 20
"""Growth since the last time that is worth a trim: the loop stands still for 1 or 2 ms."""
STEADY_BYTES: Final = 1 << 20
"""Growth between two looks above which the burst is still under way: its pages would be taken again."""

YOUNG_MAX: Final = 20_000
"""Objects made before the collector looks at them, about 2 MiB. Requests in flight are some thousands, and no
garbage: with Python's 700 every turn of a busy loop walks them, in vain.
"""

_log = logs.get("memory")


def settle() -> None:
    """Call once before a loop runs: what is here now stays, so collections need not look at it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX)


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


class Trimmer:
    """Looks every LOOK_SECONDS, by a loop's `call_later`; trims when growth of GROWN_BYTES has come to rest.

    Does nothing where the C library has no `malloc_trim` or the system no /proc.
    """

    def __init__(self, call_later: Callable[[float, Callable[[], object]], object]) -> None:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is None or not os.path.exists("/proc/self/statm"):
            return
        self._trim: Callable[[int], int] = trim
        self._call_later = call_later
        self._in_use = self._last = resident_bytes()
        call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._call_later(LOOK_SECONDS, self._look)
        resident = resident_bytes()
        if resident >= self._in_use + GROWN_BYTES and resident < self._last + STEADY_BYTES:
            self._trim(0)
            before, resident = resident, resident_bytes()
            self._in_use = resident
            _log.debug("trimmed", freed_bytes=before - resident, resident_bytes=resident)
        self._in_use = min(self._in_use, resident)
        self._last = resident
