"""Directories in memory for tests that write thousands of small files and are about what is read back."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHARED_MEMORY = "/dev/shm"


@contextmanager
def memory_directory(prefix: str) -> Iterator[Path]:
    """On a file system in memory, if there is one: elsewhere syncs take nearly all the time. A process that
    is killed loses nothing of it."""
    place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    directory = tempfile.mkdtemp(prefix=prefix, dir=place)
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory)
