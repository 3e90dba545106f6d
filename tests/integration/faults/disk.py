"""Disks that can be made to fail: by filling them, and by refusing to sync.

Owns a file system of a few megabytes in a mount namespace of its own, and the preloaded library that makes
fsync fail.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.faults.space import Space

SOURCE = Path(__file__).with_name("failing_sync.c")
COMPILE_SECONDS = 60


class SmallDisk:
    """A file system in memory, seen only by those who run behind `prefix`."""

    def __init__(self, stack: ExitStack, path: Path, megabytes: int) -> None:
        """At `path`, which is made."""
        path.mkdir()
        space = Space(stack, "mount")
        space.run(f"mount -t tmpfs -o size={megabytes}m small {path}")
        self.path = path
        self.prefix = space.prefix
        self.outside = space.seen_from_outside(path)
        self._ballast = self.outside / "ballast"

    def fill(self) -> None:
        """Until nothing more can be written."""
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (1 << 20, 4096):
                _write_until_full(descriptor, bytes(size))
        finally:
            os.close(descriptor)

    def make_room(self) -> None:
        self._ballast.unlink()


class FailingSync:
    """Whether what runs behind `prefix` can sync. Skips the test where nothing can be compiled."""

    def __init__(self, directory: Path, name: str) -> None:
        self._control = directory / f"{name}.sync-fails"
        self.prefix = ["env", f"LD_PRELOAD={_library(directory)}", f"FAILING_SYNC={self._control}"]

    def begin(self) -> None:
        self._control.touch()

    def end(self) -> None:
        self._control.unlink(missing_ok=True)


def _library(directory: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, to make fsync fail")
    built = directory / "failing_sync.so"
    if not built.exists():
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, timeout=COMPILE_SECONDS)
    return built


def _write_until_full(descriptor: int, block: bytes) -> None:
    while True:
        try:
            if os.write(descriptor, block) < len(block):
                return
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return
