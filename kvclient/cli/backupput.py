"""The engine of `kvcli backup restore`: blocks of a backup, put into a cluster of any shape.

The main thread reads; `IN_FLIGHT` threads put a block each. A key occurs once in a backup, so blocks may be
put in any order, and twice: every put is of a fixed value. What is recorded as done is the longest prefix of
the backup of which every record is acknowledged. Knows no click; raises KVError when patience is over, and
BadBackup at damage.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvclient.cli.backupfile import Record
from kvclient.cli.backupset import Backup
from kvclient.cli.retrying import Patience, is_transient
from kvclient.errors import BatchError, KVError
from kvclient.protocol import TTL_MS_MAX

if TYPE_CHECKING:
    from kvclient.pipeline import Pipeline

IN_FLIGHT: Final = 4
"""Enough to keep every store busy; bounds memory, and what is put a second time."""

OpenPipeline = Callable[[], "Pipeline[bytes]"]


class Done:
    """What is acknowledged, as it is written to the state file: all partitions below `partition`, and its
    file up to `offset` (0: nothing of it). `size`: bytes of files.
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.partition: int = state.get("partition", 0)
        self.offset: int = state.get("offset", 0)
        self.restored: int = state.get("restored", 0)
        self.expired: int = state.get("expired", 0)
        self.size: int = state.get("size", 0)
        self.finished: bool = state.get("finished", False)

    def state(self) -> dict[str, Any]:
        return dict(vars(self))


class _UnderWay(NamedTuple):
    expired: Future[int]
    records: int
    partition: int
    end: int
    size: int


class Restorer:
    """One run. `on_done` is called on the main thread whenever `done` has moved; `held` puts off
    interrupts.
    """

    def __init__(
        self,
        pipeline: OpenPipeline,
        patience: Patience,
        done: Done,
        on_done: Callable[[Done], None],
        held: Callable[[], AbstractContextManager[None]] = nullcontext,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._pipeline = pipeline
        self._patience = patience
        self._done = done
        self._on_done = on_done
        self._held = held
        self._wall_ms = wall_ms
        self._under_way: deque[_UnderWay] = deque()

    def run(self, backup: Backup) -> None:
        """Put everything from where `done` is. Afterwards, or after an exception, `done` says how far it
        came.
        """
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="restore") as threads:
            try:
                for row in backup.partitions[self._done.partition :]:
                    self._partition(backup, row, threads)
                while self._under_way:
                    self._take_in()
            except BaseException:
                self._patience.stop()
                raise

    def _partition(self, backup: Backup, row: dict[str, Any], threads: ThreadPoolExecutor) -> None:
        number = row["partition"]
        start = self._done.offset if number == self._done.partition else 0
        for block in backup.reader(row).blocks(start):
            while len(self._under_way) >= IN_FLIGHT:
                self._take_in()
            future = threads.submit(self._put, block.records)
            size = block.end - block.offset
            self._under_way.append(_UnderWay(future, len(block.records), number, block.end, size))

    def _take_in(self) -> None:
        """Wait for the oldest block."""
        one = self._under_way.popleft()
        expired = one.expired.result()
        done = self._done
        with self._held():
            done.partition, done.offset = one.partition, one.end
            done.restored += one.records - expired
            done.expired += expired
            done.size += one.size
            self._on_done(done)

    def _put(self, records: list[Record]) -> int:
        """Put a block until it is there; how many had expired."""
        trouble = self._patience.session()
        while True:
            try:
                return self._once(records)
            except KVError as error:
                trouble.wait_or_raise(_worst(error))

    def _once(self, records: list[Record]) -> int:
        expired = 0
        now = self._wall_ms()
        with self._pipeline() as pipeline:
            for key, value, _, expires_ms in records:
                if not expires_ms:
                    pipeline.put(key, value)
                elif expires_ms > now:
                    pipeline.put(key, value, ttl=min(expires_ms - now, TTL_MS_MAX) / 1000)
                else:
                    expired += 1
        return expired


def _worst(error: KVError) -> KVError:
    """Of what happened to a block, what another try does not mend, if there is such."""
    errors = [one for _, one in error.errors] if isinstance(error, BatchError) else [error]
    return next((one for one in errors if not is_transient(one)), errors[0])
