"""What the engines of one process share: block cache, manifest, memory budget for memtables, background
workers.

Workers take flushes first, then the compaction with the highest score. The first worker takes nothing but
flushes while there is another one, so a long compaction never holds up a flush. They sleep on a condition;
nothing here polls. A job that fails is tried again after a growing pause that `stats` shows. The engines of
one Shared are applied to by one thread (docs/architecture.md, the store's loop).
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from storenode.engine.handles import Handles
from storenode.engine.limiter import RateLimiter
from storenode.engine.manifest import Manifest
from storenode.engine.options import MIB
from storenode.engine.statistics import memory
from storenode.engine.table import Cache
from storenode.engine.vfs import Vfs

if TYPE_CHECKING:
    from storenode.engine.base import EngineBase

COMPACTION_NICENESS = 10
"""Compaction gives way to everything that somebody waits for; flushes do not, writes wait for them."""

OPEN_FILES_MAX = 8192
"""Tables that are open by default at most: 128 GiB of them, and each costs kernel memory."""


def default_open_files() -> int:
    """Half of what the process may open: the rest is for logs, sockets and whatever else it does."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    return OPEN_FILES_MAX if unlimited else max(1, min(soft // 2, OPEN_FILES_MAX))


class Shared:
    """Opens `directory/manifest`. `workers`: background threads, started with the first job; 0: there are
    none, jobs are done on the caller's thread, by `run_pending` and by who waits for them. `open_files`:
    bound on the descriptors of tables, see default_open_files. `compaction_bytes_per_second`: of reading and
    writing by compactions, but for those that somebody waits for; None: no limit. Close it after its
    engines."""

    def __init__(
        self,
        directory: str,
        *,
        cache_bytes: int = 32 * MIB,
        memtable_bytes: int = 64 * MIB,
        workers: int = 2,
        open_files: int | None = None,
        compaction_bytes_per_second: int | None = None,
        vfs: Vfs | None = None,
    ) -> None:
        if workers < 0:
            raise ValueError("workers must be at least 0")
        self.directory = os.path.abspath(directory)
        self.vfs = Vfs() if vfs is None else vfs
        self.cache = Cache(cache_bytes)
        self.files = Handles(self.vfs, default_open_files() if open_files is None else open_files)
        self.memtable_bytes_max = memtable_bytes
        self.limiter = (
            None if compaction_bytes_per_second is None else RateLimiter(compaction_bytes_per_second)
        )
        manifest_directory = os.path.join(self.directory, "manifest")
        self.vfs.make_directory(manifest_directory)
        self._lock_file = self.vfs.lock(os.path.join(manifest_directory, "LOCK"))
        try:
            self.manifest = Manifest(manifest_directory, self.vfs)
        except BaseException:
            self._lock_file.close()
            raise
        self.engines: dict[int, EngineBase] = {}
        self._claimed: set[int] = set()
        self._worker_count = workers
        self._threads: list[threading.Thread] = []
        self._condition = threading.Condition()
        self._obsolete: deque[str] = deque()  # bounded by the tables that there are
        self._closed = False

    def claim(self, engine_id: int) -> None:
        """Take an id, before anything of the engine is touched. ValueError if it is taken."""
        with self._condition:
            if engine_id in self._claimed:
                raise ValueError(f"engine {engine_id} is open already")
            self._claimed.add(engine_id)

    def release(self, engine_id: int) -> None:
        """The engine of this id is closed, or could not be opened."""
        with self._condition:
            self._claimed.discard(engine_id)

    def register(self, engine: EngineBase) -> None:
        """Let the workers look after an engine whose id is claimed."""
        with self._condition:
            self.engines[engine.engine_id] = engine

    def forget(self, engine: EngineBase) -> None:
        """Return when no worker is, or ever will be, busy with the engine."""
        with self._condition:
            self.engines.pop(engine.engine_id, None)
            self._condition.notify_all()  # a job of it may rest
            while engine.background.running:
                self._condition.wait()

    def memtable_bytes(self) -> int:
        return sum(engine.memtable_bytes for engine in list(self.engines.values()))

    def stats(self) -> dict[str, Any]:
        """`cache`, `files` and `limiter` (None without one) as their `stats` say, and `memory`: bytes by what
        they are for, of all engines, with their sum. Index and filter blocks are in the cache, pinned or not;
        `cache_map` is what finds its blocks."""
        cache = self.cache.stats()
        used = Counter(
            cache=cache["bytes"], cache_map=cache["map_bytes"], memtables=0, tables=0, log_window=0
        )
        for engine in list(self.engines.values()):
            used.update(memory(engine))
        return {
            "engines": len(self.engines),
            "cache": cache,
            "files": self.files.stats(),
            "limiter": None if self.limiter is None else self.limiter.stats(),
            "memory": {**used, "total": used.total()},
        }

    def enforce_memtable_budget(self) -> None:
        """Over budget: retire the largest memtable of all. Only by the applying thread.

        Not while most of the memory is retired already and waits for its flush: that would only make many
        small tables.
        """
        engines = list(self.engines.values())
        growing = sum(engine.active_bytes for engine in engines)
        if growing >= self.memtable_bytes_max // 2 and self.memtable_bytes() > self.memtable_bytes_max:
            max(engines, key=lambda engine: engine.active_bytes).retire_memtable()

    def discard(self, path: str) -> None:
        """Remove a file that nobody needs, soon, by a worker. May be called from a finalizer, on any
        thread."""
        self._obsolete.append(path)
        self.wake()

    def wake(self) -> None:
        """Something may be due."""
        with self._condition:
            if not self._threads and not self._closed:
                self._start_workers()
            self._condition.notify_all()

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Return when `done()`; it is asked again whenever a worker has finished something. Not on a
        worker."""
        if not self._worker_count:
            while not done():
                if not self.run_pending():
                    raise RuntimeError("nothing is left to do that could end this wait")
            return
        with self._condition:
            self._condition.wait_for(done)

    def run_pending(self) -> bool:
        """Do one job that is due, if there is any; whether there was. Only without workers: the order of jobs
        is then the caller's, and the same each time."""
        assert not self._worker_count, "the workers do what is due"
        self._remove_obsolete()
        with self._condition:
            claimed = self._claim(only_flushes=False)
        if not isinstance(claimed, tuple):
            return False
        self._run_job(*claimed)
        return True

    def rest(self, seconds: float, ends: Callable[[], bool]) -> None:
        """Sleep in the middle of a job, until `ends()`; that is asked whenever something may be due."""
        with self._condition:
            self._condition.wait_for(ends, seconds)

    def compaction_awaited(self) -> bool:
        """Whether somebody waits for a compaction of any engine."""
        return any(engine.background.awaited for engine in list(self.engines.values()))

    def close(self) -> None:
        """Stop the workers and close the manifest. Engines must be closed; views and snapshots may live
        on."""
        with self._condition:
            if self._closed:
                return
            if self._claimed:
                raise RuntimeError("close the engines before what they share")
            self._closed = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        self._remove_obsolete()
        self.manifest.close()
        self._lock_file.close()

    def _start_workers(self) -> None:
        for number in range(self._worker_count):
            only_flushes = number == 0 and self._worker_count > 1
            thread = threading.Thread(
                target=self._work, args=(only_flushes,), name=f"engine-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _work(self, only_flushes: bool) -> None:
        if not only_flushes:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), COMPACTION_NICENESS)
        while not self._closed:
            self._run_one(only_flushes)

    def _remove_obsolete(self) -> bool:
        """Whether there was anything to remove."""
        found = False
        while True:
            try:
                path = self._obsolete.popleft()
            except IndexError:  # never asked before: another worker may take the last one meanwhile
                return found
            found = True
            with contextlib.suppress(OSError):  # an orphan is removed when the engine is opened next
                self.vfs.unlink(path)

    def _claim(self, only_flushes: bool) -> tuple[EngineBase, str] | float | None:
        """A job to do, seconds to wait for the next try of one, or None if nothing is due. The condition
        is held."""
        now = time.monotonic()
        jobs = [
            (due, engine) for engine in self.engines.values() for due in engine.background.due(only_flushes)
        ]
        ready = [(due.urgency, due.kind, engine) for due, engine in jobs if due.not_before <= now]
        if not ready:
            return min((due.not_before - now for due, _ in jobs), default=None)
        _, kind, engine = max(ready, key=lambda job: job[0])
        engine.background.running.add(kind)
        return engine, kind

    def _run_one(self, only_flushes: bool) -> None:
        """One round of a worker: a job, or a sleep until something may be due."""
        removed = self._remove_obsolete()
        with self._condition:
            if removed:
                self._condition.notify_all()
            claimed = None if self._closed else self._claim(only_flushes)
            if claimed is None or isinstance(claimed, float):
                if not self._obsolete and not self._closed:
                    self._condition.wait(claimed)
                return
        self._run_job(*claimed)

    def _run_job(self, engine: EngineBase, kind: str) -> None:
        try:
            engine.background.run(kind)
            engine.pressure()  # notes that it is less now
        finally:
            with self._condition:
                engine.background.running.discard(kind)
                self._condition.notify_all()
