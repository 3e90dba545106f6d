"""Processes of a bench: started with their output in a file, ended by their id, and what the kernel counts of
them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

STOP_SECONDS = 20.0
"""For a clean end; then it is killed."""
LOG_TAIL_BYTES = 2000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Server:
    """A process that can be started again. Its output goes to `log`."""

    def __init__(self, stack: ExitStack, name: str, command: Sequence[str], log: Path, cwd: Path) -> None:
        self.name = name
        self._command = list(command)
        self._log = log
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        stack.callback(self.stop)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert not self.running, f"{self.name} runs"
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL. Nothing if it does not run."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tail(self) -> str:
        """The end of its output."""
        return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


def wait_until(condition: Callable[[], bool], seconds: float, what: str, servers: Sequence[Server]) -> None:
    """Polls; TimeoutError after `seconds`, RuntimeError with its last words if a server ends meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        for server in servers:
            if not server.running:
                raise RuntimeError(f"{server.name} ended while waiting for {what}. It said:\n{server.tail()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def cpu_seconds(process_id: int) -> float:
    """User and system time of a live process; to a hundredth of a second."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def written_bytes(process_id: int) -> int:
    """What a live process caused to be written to storage."""
    for line in Path(f"/proc/{process_id}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{process_id}/io has no write_bytes")
