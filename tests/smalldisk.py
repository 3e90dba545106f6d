"""A real file system with little room, for tests of full disks."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

NOT_PERMITTED = ("permission denied", "must be superuser", "operation not permitted")
"""What `mount` says where tests run without the right to mount; anything else it says is a failure."""


@contextlib.contextmanager
def small_disk_at(path: Path, mebibytes: int) -> Iterator[Path]:
    """Mounted at `path`, an empty directory. Skips the test where nothing may be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(path)]
    environment = {**os.environ, "LC_ALL": "C"}
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if made.returncode:
        said = made.stderr.strip()
        assert any(reason in said.lower() for reason in NOT_PERMITTED), said
        pytest.skip(f"mounting is not permitted here: {said}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)
