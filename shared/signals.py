"""Signals as bytes on a pipe, so that a loop can wait for them together with everything else.

Nothing of ours runs inside a signal handler: the interpreter writes the signal's number into the pipe, the
loop reads it. A signal that arrives just before the loop begins to wait is therefore not lost. Main thread
only.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class SignalPipe:
    """Catches signals until it is closed; then the handlers are again what they were."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A full pipe loses nothing that matters: the numbers in it are unread, and the same few.
        self._previous_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._previous: dict[int, Any] = {}

    def fileno(self) -> int:
        """What becomes readable when a signal has arrived."""
        return self._read

    def catch(self, number: signal.Signals) -> None:
        """Have this signal arrive here instead of doing what it did."""
        previous = signal.signal(number, _noted)
        self._previous.setdefault(number, previous)

    def take(self) -> list[int]:
        """The numbers that arrived since the last look, each once."""
        try:
            return sorted(set(os.read(self._read, 4096)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Give the signals back."""
        signal.set_wakeup_fd(self._previous_fd)
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        os.close(self._read)
        os.close(self._write)


def _noted(_: int, __: FrameType | None) -> None:
    """Does nothing; the interpreter writes to the pipe only for signals that have a handler."""
