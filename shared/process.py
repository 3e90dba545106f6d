"""What a process tells of itself: memory, processor, file descriptors. Linux (/proc)."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Any, Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PYTHON: Final = platform.python_version()


def figures() -> dict[str, Any]:
    """`memory_bytes` resident, `cpu_s` of all threads since the start, descriptors in use and their limit."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "pid": os.getpid(),
        "python": _PYTHON,
        "memory_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES,
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "open_fds": len(os.listdir("/proc/self/fd")),
        "max_fds": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
