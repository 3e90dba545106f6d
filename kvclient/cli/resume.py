"""State files: how far an import or export has come, so that it can go on after anything.

A state file is one JSON object, replaced atomically; it says what the job was (so that it is not continued
with another file or another layout) and what is done. It may lag behind what was done, never run ahead of it.
A job holds a lock on its state file while it runs: two jobs never write the same one, nor the files that
belong to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

from kvclient.cli.failure import Failure
from kvclient.errors import Exit

STATE_VERSION = 1

# Bounds what a killed job does twice, and keeps the fsyncs few.
SAVE_SECONDS = 0.1


class StateFile:
    """The state of one job. `job` must be equal when the job is continued."""

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        self.path = path
        self._job = job
        self._saved_at = float("-inf")
        self._claimed = False
        self._held: BinaryIO | None = None

    def claim(self) -> None:
        """From here on the file is this process's: as it is, or as soon as it is saved. Failure if another
        one has it.
        """
        self._claimed = True
        while self._held is None:
            try:
                file = open(self.path, "rb")  # noqa: SIM115 - held until the job or the process ends
            except FileNotFoundError:
                return
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise self._in_use() from None
            # Replaced or removed between opening and locking: that was not the file any more.
            if is_same_file(file, self.path):
                self._held = file
            else:
                file.close()

    def _in_use(self) -> Failure:
        return Failure(
            Exit.ERROR,
            f"another kvcli is at work with {self.path}. Wait for it, or name another --resume file.",
            "IN_USE",
        )

    def load(self) -> dict[str, Any] | None:
        """What is done; None if there is no such file. Failure if it belongs to another job."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return None
        try:
            state = json.loads(text)
            version, job, done = state["kvcli_state"], state["job"], state["done"]
        except (ValueError, KeyError, TypeError):
            raise Failure(
                Exit.USAGE, f"{self.path} is no state file of kvcli. Name another one, or remove it."
            ) from None
        if version != STATE_VERSION:
            raise Failure(
                Exit.VERSION,
                f"{self.path} was written by another version of kvcli (state {version}). Start again.",
            )
        for name, value in self._job.items():
            if job.get(name) != value:
                raise Failure(
                    Exit.USAGE,
                    f"{self.path} belongs to another job: {name} was {job.get(name)!r}, is {value!r}. "
                    "Give the same arguments as before, or start again without --resume.",
                )
        assert isinstance(done, dict)
        return done

    def save(self, done: dict[str, Any], now: bool = False) -> None:
        """Record what is done; at most every `SAVE_SECONDS` unless `now`."""
        clock = time.monotonic()
        if not now and clock - self._saved_at < SAVE_SECONDS:
            return
        self._saved_at = clock
        text = json.dumps({"kvcli_state": STATE_VERSION, "job": self._job, "done": done}).encode() + b"\n"
        if not self._claimed:
            replace_file(self.path, text)
            return
        if self.path.exists() and (self._held is None or not is_same_file(self._held, self.path)):
            # Two began at the same moment, when there was no file yet; the other one was faster.
            raise self._in_use()
        held = replace_file(self.path, text, locked=True)
        self._release()
        self._held = held

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


def is_same_file(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is the one at `path` now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def replace_file(path: Path, data: bytes, locked: bool = False) -> BinaryIO:
    """Write a file so that a crash leaves the old or the new one, never half of it. Gives the new file,
    closed unless it was asked for `locked`: then nobody else can have locked it first.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    file = open(temporary, "wb")  # noqa: SIM115 - closed below, or kept by the caller
    try:
        if locked:
            fcntl.flock(file, fcntl.LOCK_EX)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        file.close()
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    if not locked:
        file.close()
    return file


def scratch_directory() -> Path:
    """Where state and reject files go: here, or in the temporary directory if here is read-only."""
    here = Path.cwd()
    return here if os.access(here, os.W_OK) else Path(tempfile.gettempdir())
