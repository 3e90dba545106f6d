"""What the workers do for one engine: which job is due, running it, and what comes of a failure.

A job that fails for want of room, or by an unreadable input, is tried again after a pause that doubles; data
is never given up for it. A failing compaction does not hold up flushes. A manifest commit with unknown
outcome ends the engine's writing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from storenode.engine.compaction import KeyRange, Proposal, propose, propose_range
from storenode.engine.errors import Cancelled, EngineFailed
from storenode.engine.job import Job
from storenode.engine.jobs import compact, flush
from storenode.engine.limiter import PAUSE_BYTES
from storenode.engine.options import Options
from storenode.engine.ranges import Ranges
from storenode.engine.shared import Shared
from storenode.engine.statistics import Counters
from storenode.engine.tree import RANGES_SLOW, Settled, Tree
from storenode.engine.version import Version

FLUSH = "flush"
COMPACTION = "compaction"

URGENCY_FLUSH = 1e6
"""Over any compaction score: memory is what runs out first."""

URGENCY_WANTED = 1e3
"""Somebody waits for it."""

RETRY_SECONDS_FIRST = 0.5
RETRY_SECONDS_MAX = 30.0
"""Of the pause after a failed job: that a full disk has room again is noticed within half a minute."""


class Due(NamedTuple):
    """A job that could be done from `not_before` (monotonic seconds) on."""

    urgency: float
    kind: str
    not_before: float


class Failure(NamedTuple):
    """Why a kind of job does not get done, until it does."""

    error: Exception
    pause: float
    not_before: float


class Background:
    """The jobs of one engine: at most one flush and one compaction at a time.

    `due` and `running` under the workers' lock; `run` without it.
    """

    def __init__(
        self,
        tree: Tree,
        options: Options,
        counters: Counters,
        before_flush: Callable[[], None],
        after_flush: Callable[[], None],
    ) -> None:
        self._tree = tree
        self._options = options
        self._counters = counters
        self._before_flush = before_flush
        self._after_flush = after_flush
        self._proposed: tuple[Version, Settled, Proposal | None] | None = None
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._held = False
        self.running: set[str] = set()
        self.wanted: KeyRange | None = None
        """What somebody waits for to be compacted."""
        self.failures: dict[str, Failure] = {}
        self.broken: str | None = None
        """Why the engine must not write any more."""

    def due(self, only_flushes: bool) -> list[Due]:
        """What could be done."""
        found: list[Due] = []
        if self._stops or self.broken:
            return found
        if self._tree.retired and FLUSH not in self.running:
            found.append(self._due(URGENCY_FLUSH + len(self._tree.retired), FLUSH))
        if not only_flushes and COMPACTION not in self.running:
            proposal = self._propose()
            if self.wanted is not None:
                found.append(self._due(URGENCY_WANTED, COMPACTION))
            elif proposal is not None:
                found.append(self._due(proposal.score, COMPACTION))
        return found

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for a compaction: one that asked for it, or writers that are slowed down."""
        slow = len(self._tree.version.levels[0]) >= self._options.level0_slow
        return self.wanted is not None or slow or len(self._tree.range_deletions) >= RANGES_SLOW

    def run(self, kind: str) -> None:
        """Do a job. Never raises: a worker must live on."""
        try:
            if kind == FLUSH:
                self._flush()
            else:
                self._compact()
        except Cancelled:
            return
        except EngineFailed as error:
            self.broken = str(error)
        except Exception as error:  # noqa: BLE001 - a defect must not stop the workers; stats show it
            self._failed(kind, error)
        else:
            self.failures.pop(kind, None)
        finally:
            with self._lock:
                self._jobs.pop(kind, None)

    def retry_now(self) -> None:
        """Somebody is about to wait: do not make them wait for a pause."""
        self.failures.clear()

    def stop(self) -> None:
        """Cancel what runs and start nothing more."""
        with self._lock:
            self._stopping = True
            for job in self._jobs.values():
                job.cancel()

    def hold(self) -> None:
        """Cancel what runs, start nothing more until `go_on`; return when nothing runs. Not on a worker."""
        with self._lock:
            self._held = True
            for job in self._jobs.values():
                job.cancel()
        self._tree.shared.wake()  # a job may rest
        self._tree.shared.wait_for(lambda: not self.running)

    def go_on(self) -> None:
        """What failed before is tried again at once."""
        self._held = False
        self.failures.clear()
        self._tree.shared.wake()

    @property
    def _stops(self) -> bool:
        return self._stopping or self._held

    def _due(self, urgency: float, kind: str) -> Due:
        failure = self.failures.get(kind)
        return Due(urgency, kind, failure.not_before if failure else 0.0)

    def _propose(self) -> Proposal | None:
        version, settled = self._tree.version, self._tree.settled
        known = self._proposed
        if known is None or known[0] is not version or known[1] is not settled:
            proposal = propose(version, self._options, settled.ranges)
            self._proposed = known = (version, settled, proposal)
        return known[2]

    def _choose(self, wanted: KeyRange | None, version: Version, ranges: Ranges) -> Proposal | None:
        if wanted is None:
            return propose(version, self._options, ranges)
        return propose_range(version, wanted, ranges)

    def _watch(self, kind: str, job: Job) -> bool:
        with self._lock:
            self._jobs[kind] = job
            return self._stops

    def _watch_paced(self, pace: Pace, job: Job) -> bool:
        pace.keep(job)
        return self._watch(COMPACTION, job)

    def _flush(self) -> None:
        started = time.monotonic()
        self._before_flush()
        result = flush(self._tree, self._tree.retired[-1], self._options, partial(self._watch, FLUSH))
        self._counters.flushed(result, time.monotonic() - started)
        self._after_flush()

    def _compact(self) -> None:
        started = time.monotonic()
        wanted = self.wanted
        proposal = self._tree.reserve(partial(self._choose, wanted))
        if proposal is not None:
            pace = Pace(self._tree.shared, lambda: self._stops)
            watch = partial(self._watch_paced, pace)
            try:
                result = compact(self._tree, proposal, self._options, watch, pace.pause_bytes)
            finally:
                self._tree.release()
            self._counters.compacted(result, time.monotonic() - started)
        if wanted is not None:
            self.wanted = None

    def _failed(self, kind: str, error: Exception) -> None:
        self._counters.jobs_failed += 1
        before = self.failures.get(kind)
        pause = min(before.pause * 2, RETRY_SECONDS_MAX) if before else RETRY_SECONDS_FIRST
        self.failures[kind] = Failure(error, pause, time.monotonic() + pause)


class Pace:
    """Keeps one compaction to the limit that all of a Shared have together."""

    def __init__(self, shared: Shared, stopping: Callable[[], bool]) -> None:
        self._shared = shared
        self._stopping = stopping
        self._counted = 0
        self.pause_bytes = 0 if shared.limiter is None else PAUSE_BYTES

    def keep(self, job: Job) -> None:
        """Wait until the job may go on: not at all, or no longer, if it is to stop or if somebody waits for a
        compaction of any engine: they would wait for this one's worker, too."""
        limiter = self._shared.limiter
        moved = job.bytes_moved - self._counted
        if limiter is None or moved == 0:
            return
        self._counted += moved
        if self._hurries():
            limiter.pass_by(moved)
            return
        seconds = limiter.take(moved)
        if seconds > 0:
            started = time.monotonic()
            self._shared.rest(seconds, self._hurries)
            limiter.waited(time.monotonic() - started)

    def _hurries(self) -> bool:
        return self._stopping() or self._shared.compaction_awaited()
