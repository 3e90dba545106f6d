"""Small files of a store that are there whole or not at all, whatever happens while they are written.

Knows no content. OSError is the caller's.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Write `path` durably: under another name first, which is then renamed."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove `path` durably, if it is there."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_way(path: Path) -> None:
    """Make durable that there is a directory `path`, and every one above it: any of them may be new. One that
    we may not read is not.
    """
    for above in path.resolve().parents:
        with contextlib.suppress(PermissionError):
            sync_directory(above)


def sync_directory(path: Path) -> None:
    """Make durable which names a directory has."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
