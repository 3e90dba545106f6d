"""State files: how far an import or export has come, so that it can go on after anything.

A state file is one JSON object, replaced atomically; it says what the job was (so that it is not continued
with another file or another layout) and what is done. It may lag behind what was done, never run ahead of it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

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
        replace_file(
            self.path,
            json.dumps({"kvcli_state": STATE_VERSION, "job": self._job, "done": done}).encode() + b"\n",
        )

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def scratch_directory() -> Path:
    """Where state and reject files go: here, or in the temporary directory if here is read-only."""
    here = Path.cwd()
    return here if os.access(here, os.W_OK) else Path(tempfile.gettempdir())
