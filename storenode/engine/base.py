"""What every engine is: reads, maintenance and jobs over a tree of memtables and tables.

How writes get in is a subclass's: the one of lsm.py has a log of its own, that of replica_engine.py is given
what another log has. This file knows neither.

A read takes the view and the sequence at once (`moment`): all that it may see is then in the view, and
nothing that it needs has been merged away; nor can it see what came after a range deletion but not the
deletion, which only a newer view has. It sees entries as wholes, those whose `apply` has returned, and a
range deletion from the moment when `apply` gave it to the tree.

Time. The engine's clock is the highest `now_ms` it was given with an entry; an earlier one counts as that. So
what has expired stays expired, and what an entry does depends on the log alone.
"""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Self

from kvclient.errors import Corruption
from storenode.engine import checkpoint, statistics
from storenode.engine.background import COMPACTION, FLUSH, Background
from storenode.engine.compaction import KeyRange
from storenode.engine.core import Core
from storenode.engine.errors import NO_ROOM, EngineClosed, EngineFailed, EngineReadOnly
from storenode.engine.iterator import Iterator
from storenode.engine.options import Options
from storenode.engine.recovery import Recovered
from storenode.engine.shared import Shared
from storenode.engine.snapshot import UNLIMITED, Snapshot
from storenode.engine.stalls import MEMTABLES_SLOW, MEMTABLES_STOP, Measure, Stalls
from storenode.engine.tree import RANGES_SLOW, RANGES_STOP
from storenode.engine.view import View


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class EngineBase(Core, ABC):
    """Its subclasses are made by `open` and `open_replica` (opening.py)."""

    def __init__(self, options: Options, shared: Shared, recovered: Recovered, *, owns_shared: bool) -> None:
        super().__init__()
        self.options = options
        self.shared = shared
        self._owns_shared = owns_shared
        self.tree = recovered.tree
        self.directory = self.tree.directory
        self.engine_id = self.tree.engine_id
        self.next_sequence, self.now_ms = recovered.next_sequence, recovered.now_ms
        self._active_bytes_seen = 0
        self._broken: str | None = None
        self._closed = False
        self.damage: Corruption | None = None
        """The first damaged block that a write op met, if any: this copy of the data should be rebuilt."""
        self.counters = statistics.Counters()
        self.stalls = Stalls()
        self.background = Background(self.tree, options, self.counters, self._before_flush, self._after_flush)

    # Reading

    def read(self, ops: bytes, now_ms: int) -> bytes:
        """Results of a stream of GET, EXISTS and SCAN, of one moment. Corruption if a block fails its
        checksum."""
        view, sequence = self.moment()
        return view.read(ops, sequence, max(now_ms, self.now_ms))

    def multi_get(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The values of many keys, in their order, in one native call."""
        view, sequence = self.moment()
        return view.multi_get(keys, sequence, max(now_ms(), self.now_ms))

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """The first `limit` pairs (all without one) of [start, stop), ascending or descending, of one
        moment."""
        return list(self.iterate(start, stop, limit, reverse))

    def iterate(
        self, start: bytes = b"", stop: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> Iterator:
        """The same pairs one by one, however many there are; it holds what a snapshot of this moment would,
        until it is at its end or closed."""
        bound = UNLIMITED if limit is None else limit
        view, sequence = self.moment()
        return Iterator(view, start, stop, bound, reverse, sequence, self.now_ms)

    def snapshot(self) -> Snapshot:
        """The state of now, for as long as it is open; it keeps replaced tables on the disk and memtables
        in memory meanwhile."""
        view, sequence = self.moment()
        return Snapshot(view, sequence, self.now_ms)

    # Maintenance

    def flush(self, wait: bool = True) -> None:
        """Have everything applied so far written to tables; with `wait`, return when it is. EngineReadOnly
        if the disk refuses."""
        self._view()
        self._retire_for_flush()
        if wait:
            self._wait_until(lambda: not self.tree.retired, FLUSH)

    def compact_range(self, start: bytes | None = None, stop: bytes | None = None) -> None:
        """Merge everything in [start, stop) into one level, dropping all of it that can be dropped: shadowed
        versions, deletions, what has expired. None: no bound. Returns when done. Whole tables are merged,
        with what they hold beside the range; that needs room for a second copy. Flushes go on meanwhile,
        other compactions of this engine after it."""
        for bound in (start, stop):
            if bound is not None and not isinstance(bound, bytes):
                raise TypeError(f"a bound is bytes or None, not {type(bound).__name__}")
        wanted = KeyRange(b"" if start is None else start, stop)
        self.flush()
        if stop is not None and stop <= wanted.start:
            return
        self.background.wanted = wanted
        try:
            self._wait_until(lambda: self.background.wanted is None, COMPACTION)
        finally:
            self.background.wanted = None  # smaller compactions may do what this one could not

    def compact(self) -> None:
        """compact_range of all keys."""
        self.compact_range()

    def checkpoint(self, directory: str) -> None:
        """Make a complete engine of this moment in `directory`, which must not exist or be empty: hard links
        of the tables, copies on another file system, and a manifest of its own. Durable on return.

        Its engine_id is this engine's, since its tables have it; `open` finds it there and need not be told.
        What is applied later, flushed or compacted does not show in it. OSError: nothing is left of it.
        EngineReadOnly, EngineFailed: as `flush`.
        """
        self._view()
        target = os.path.abspath(directory)
        if os.path.commonpath((target, self.directory)) == self.directory:
            raise ValueError(f"{target}: a checkpoint must lie outside of the engine's own directory")
        checkpoint.refuse_used(self.shared.vfs, target)
        self.flush()
        state, tables, view = self.tree.freeze()
        state = state._replace(log_number=0, flushed_sequence=self.next_sequence - 1, now_ms=self.now_ms)
        checkpoint.write(self.shared.vfs, self.directory, target, self.engine_id, state, tables)
        del view  # until here it kept the tables from being removed

    def verify(self) -> list[str]:
        """Check every block of every table, and the manifest against what is in use: what is wrong, if
        anything."""
        return self.tree.verify(self._view())

    def stats(self) -> dict[str, Any]:
        """Figures as plain numbers, strings, lists and dicts; names in statistics.py."""
        return statistics.collect(self, self._log_figures())

    def pressure(self) -> int:
        """0: fine. 1: whoever proposes writes should slow down. 2: should stop until it is less. `apply`
        works all the same."""
        waiting = len(self.tree.retired)
        level0 = len(self.tree.version.levels[0])
        memory = self.shared.memtable_bytes() if waiting else 0
        options, budget = self.options, self.shared.memtable_bytes_max
        ranges = len(self.tree.range_deletions)
        measured: tuple[Measure, ...] = (
            (waiting, MEMTABLES_SLOW, MEMTABLES_STOP, "memtables"),
            (level0, options.level0_slow, options.level0_stop, "level0"),
            (memory, budget + budget // 2, 2 * budget, "memory"),
            (ranges, RANGES_SLOW, RANGES_STOP, "range_deletions"),
        )
        return self.stalls.weigh(measured)

    def end_jobs(self) -> None:
        """Let no job begin any more, and return when none runs: `close`, which must follow, takes no time
        then. Any thread."""
        self.background.stop()
        self.shared.forget(self)

    def close(self) -> None:
        """Stop the jobs, give up the files. Snapshots stay usable. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self.end_jobs()
        self._end_files()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # For Shared

    @property
    def active_bytes(self) -> int:
        return self.tree.active.memory_bytes

    @property
    def memtable_bytes(self) -> int:
        return self.tree.memtable_bytes()

    @abstractmethod
    def retire_memtable(self) -> None:
        """End the memtable, for the sake of the budget that all engines have together."""

    # For subclasses

    @abstractmethod
    def _retire_for_flush(self) -> None:
        """End the memtable, so that a flush covers everything applied so far."""

    @abstractmethod
    def _before_flush(self) -> None:
        """By a worker, before it flushes a memtable."""

    @abstractmethod
    def _after_flush(self) -> None:
        """By a worker, when a memtable is in tables and the manifest says so."""

    @contextlib.contextmanager
    def _taking_in(self) -> Generator[None, None, None]:
        """Around what makes tables from elsewhere part of the tree. EngineReadOnly: there is no room, nothing
        changed. After EngineFailed nobody knows what is durable, so the jobs end, too."""
        try:
            yield
        except EngineFailed as error:
            self.background.broken = str(error)
            raise
        except OSError as error:
            if error.errno in NO_ROOM:
                raise EngineReadOnly(str(error)) from error
            raise

    def _log_figures(self) -> statistics.LogFigures:
        return statistics.NO_LOG

    # Inside

    def _end_files(self) -> None:
        self.tree.close()
        self.shared.release(self.engine_id)
        if self._owns_shared:
            self.shared.close()

    def _view(self) -> View:
        view = self.tree.view
        if view is None:
            raise EngineClosed(f"{self.directory}: the engine is closed")
        return view

    def _wait_until(self, done: Callable[[], bool], *kinds: str) -> None:
        """Wait for the workers to do jobs of these kinds; raise what keeps them from it."""
        background = self.background
        background.retry_now()
        self.shared.wake()

        def broken() -> str | None:
            return self._broken or background.broken

        def failures() -> list[Exception]:
            return [failure.error for kind, failure in background.failures.copy().items() if kind in kinds]

        while True:  # what was waited for may be gone again: other threads write, and jobs fail and succeed
            self.shared.wait_for(lambda: done() or self._closed or bool(broken() or failures()))
            if done():
                return
            reason = broken()
            if reason:
                raise EngineFailed(reason)
            for error in failures():
                if isinstance(error, OSError):
                    raise EngineReadOnly(str(error)) from error
                raise error
            if self._closed:
                raise EngineClosed(f"{self.directory}: the engine was closed")
