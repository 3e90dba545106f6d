"""Namespaces that a test holds for its servers: a network of their own, mounts of their own.

Owns the process that keeps them alive. Nothing is given a name outside of them, and the process dies with the
thread that made it, so the kernel takes everything apart whatever happens to the test.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

MORTAL = ("setpriv", "--pdeathsig", "KILL")
"""In front of a command: it dies with the thread that started it."""

_COMMAND_SECONDS = 20
"""For `ip` and `mount`, which never wait, on a busy machine."""


class Space:
    """Namespaces of their own for what is run `within` them. Skips the test where the kernel refuses."""

    def __init__(self, stack: ExitStack, *kinds: str) -> None:
        """`kinds`: "net", "mount"."""
        self._options = [f"--{kind}" for kind in kinds]
        command = [*MORTAL, "unshare", *self._options, "sh", "-c", "echo held; exec sleep infinity"]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        stack.callback(self._end)
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != b"held\n":
            reason = self._holder.stderr.read().decode().strip()
            pytest.skip(f"needs namespaces ({', '.join(kinds)}): {reason}")

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def prefix(self) -> list[str]:
        """In front of a command that is to run in here; who enters mounts is in their root directory."""
        enter = ["nsenter", "--target", str(self.pid), *self._options]
        return [*enter, "env", f"--chdir={ROOT}"]

    def seen_from_outside(self, path: Path) -> Path:
        """Where a file of these mounts can be opened by everybody."""
        return Path(f"/proc/{self.pid}/root") / path.relative_to("/")

    def run(self, command: str) -> None:
        """Runs a command in here, which must succeed."""
        run([*self.prefix, *command.split()])

    def _end(self) -> None:
        self._holder.kill()
        self._holder.communicate()


def run(command: list[str]) -> str:
    """What a command prints; AssertionError with what it complains of."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout
