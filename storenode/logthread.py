"""The thread that writes the node's Raft log, while the loop goes on.

Owns that thread, and the one write that may be under way. Knows no socket and no rule of Raft.

Loop thread: `submit`, `busy`, `longest_s`, `close`; what `submit` was given to call runs there as well. Log
thread: `RaftLog.write`, nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from shared.clock import Clock
from shared.metrics import Histogram
from storenode.raftlog import RaftLog, Record, Written

Done = Callable[[Written | Exception], object]


class LogThread:
    """`notify` is the loop's wake-up: it runs a callback on the loop thread."""

    def __init__(self, log: RaftLog, clock: Clock, notify: Callable[[Callable[[], None]], None]) -> None:
        self.writes = 0
        self.entries = 0
        self.write_time = Histogram()
        self._log = log
        self._clock = clock
        self._notify = notify
        self._since: float | None = None
        self._work: SimpleQueue[tuple[list[Record], Done] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="raft-log", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._since is not None

    def longest_s(self) -> float:
        """How long the write at hand has been under way; 0.0 when there is none."""
        return 0.0 if self._since is None else self._clock.monotonic() - self._since

    def submit(self, records: list[Record], done: Done) -> None:
        """Writes one batch; then `done(written or what went wrong)`. One at a time."""
        assert self._since is None, "one log write at a time"
        self._since = self._clock.monotonic()
        self.writes += 1
        self.entries += sum(len(record.entries or ()) for record in records)
        self._work.put((records, done))

    def close(self, timeout_s: float) -> bool:
        """Ends the thread; False if it is still in a system call after `timeout_s`, when the log must not be
        closed.
        """
        self._work.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            records, done = work
            begin = time.perf_counter_ns()
            outcome: Written | Exception
            try:
                outcome = self._log.write(records)
            except Exception as error:  # noqa: BLE001 - the loop decides what it means
                outcome = error
            self._notify(partial(self._done, done, outcome, time.perf_counter_ns() - begin))

    def _done(self, done: Done, outcome: Written | Exception, elapsed_ns: int) -> None:
        self._since = None
        self.write_time.observe(elapsed_ns)
        done(outcome)
