"""Group commit: the log writes of a node's replicas, on threads of their own, while the loop goes on.

Owns the log threads and which replicas have something to log. Each replica has at most one log write under
way; what gathers meanwhile goes into its next one. So the batches grow with the load, a lone write waits for
nobody, and a slow disk under one log does not hold up the others. Knows no socket and no message.

Loop thread: `dirty`, `flush`, `idle`, `close` and all calls of replicas. Log threads: `Engine.append`,
nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Final

from shared import logs
from shared.clock import Clock
from shared.metrics import Histogram
from storenode.engine import EngineReadOnly
from storenode.replica.replica import Entry, Replica

LOG_THREADS: Final = 4
"""Waiting for the disk takes no processor: fdatasync of 16 logs takes 5.7 ms one after the other, 1.9 ms by 4
threads, 1.5 ms by 8.
"""

LATE_LOOK_S: Final = 1.0
"""How often what waits for a log write that does not end is looked through for deadlines that passed."""

STUCK_S: Final = 5.0
"""A log write that takes longer is worth a line: a healthy disk needs milliseconds, a busy one a second."""

_LOG_INTERVAL_S: Final = 10.0  # a full disk is one line now and then, not one per write; a stuck one as well

_log = logs.get("groupcommit")


class GroupCommit:
    """The node's log writes. `notify` is the loop's wake-up: it runs a callback on the loop thread."""

    def __init__(self, clock: Clock, notify: Callable[[Callable[[], None]], None]) -> None:
        self.writes = 0
        self.entries = 0
        self.refused = 0
        self.failed = 0
        self.append_time = Histogram()
        self.apply_time = Histogram()
        self._clock = clock
        self._notify = notify
        self._dirty: dict[Replica, None] = {}
        self._writing: dict[Replica, float] = {}  # since when
        self._late_look_at = float("-inf")
        self._refusal_logged_at = float("-inf")
        self._stuck_logged_at = float("-inf")
        self._work: SimpleQueue[tuple[Replica, list[Entry]] | None] = (
            SimpleQueue()
        )  # holds a replica at most once
        self._threads = [
            threading.Thread(target=self._run, name=f"log-{number}", daemon=True)
            for number in range(LOG_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def idle(self) -> bool:
        """Nothing is being logged and nothing waits for it."""
        return not self._writing and not self._dirty

    def longest_s(self) -> float:
        """How long the oldest log write has been under way; 0.0 when there is none."""
        return self._clock.monotonic() - next(iter(self._writing.values())) if self._writing else 0.0

    def dirty(self, replica: Replica) -> None:
        """`replica` has pending writes."""
        self._dirty[replica] = None

    def flush(self) -> None:
        """Starts a log write of each replica that has pending writes and no log write under way; call at the
        end of each turn.
        """
        if not self._dirty:
            return
        now = self._clock.monotonic()
        for replica in [replica for replica in self._dirty if replica not in self._writing]:
            del self._dirty[replica]
            entries = replica.seal(now)
            if entries:
                self._writing[replica] = now
                self.writes += 1
                self.entries += len(entries)
                self._work.put((replica, entries))
        if self._dirty and now >= self._late_look_at:
            self._late_look_at = now + LATE_LOOK_S
            self._look_late(now)

    def _look_late(self, now: float) -> None:
        """What is still dirty waits for a log write under way."""
        for replica in self._dirty:
            replica.drop_late(now)
        stuck = [replica.partition for replica in self._dirty if now - self._writing[replica] >= STUCK_S]
        if stuck and now - self._stuck_logged_at >= _LOG_INTERVAL_S:
            self._stuck_logged_at = now
            _log.error("log_write_stuck", partitions=sorted(stuck), seconds=round(self.longest_s(), 1))

    def close(self, timeout_s: float) -> bool:
        """Ends the log threads; False if one is still in a system call after `timeout_s`, when its engine
        must not be closed.
        """
        for _ in self._threads:
            self._work.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            replica, entries = work
            begin = time.perf_counter_ns()
            outcome = _append(replica, entries)
            self._notify(partial(self._done, replica, outcome, time.perf_counter_ns() - begin))

    def _done(self, replica: Replica, outcome: int | Exception, elapsed_ns: int) -> None:
        del self._writing[replica]
        self.append_time.observe(elapsed_ns)
        if isinstance(outcome, int):
            self._apply(replica, outcome)
        elif isinstance(outcome, EngineReadOnly):
            self._refuse(replica, outcome)
        else:
            self.failed += 1
            error = f"{type(outcome).__name__}: {outcome}"
            _log.error("log_write_failed", partition=replica.partition, error=error)
            replica.lost(f"the log write failed: {error}")

    def _apply(self, replica: Replica, wal: int) -> None:
        begin = time.perf_counter_ns()
        try:
            replica.committed(wal)
        except Exception:  # noqa: BLE001 - the replica has answered and stopped itself; the loop goes on
            _log.exception("apply_failed", partition=replica.partition)
        self.apply_time.observe(time.perf_counter_ns() - begin)

    def _refuse(self, replica: Replica, error: EngineReadOnly) -> None:
        self.refused += 1
        replica.refused(str(error))
        now = self._clock.monotonic()
        if now - self._refusal_logged_at >= _LOG_INTERVAL_S:
            self._refusal_logged_at = now
            _log.error("log_write_refused", partition=replica.partition, error=str(error))


def _append(replica: Replica, entries: list[Entry]) -> int | Exception:
    try:
        return replica.engine.append(entries)
    except Exception as error:  # noqa: BLE001 - sorted out and answered on the loop thread
        return error
