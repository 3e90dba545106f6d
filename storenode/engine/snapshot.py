"""A state of an engine that stays as it is while it is looked at.

It holds the memtables and tables of its moment; newer versions in the memtable that still grew then are above
its sequence and not seen. So flushes and compactions need not know of snapshots: they never change what one
holds.
"""

from __future__ import annotations

from types import TracebackType

from storenode.engine.errors import EngineClosed
from storenode.engine.iterator import Iterator
from storenode.engine.view import View

UNLIMITED = (1 << 64) - 1


class Snapshot:
    """Made by Engine.snapshot; usable even after the engine was closed. Close it to let replaced files and
    memory go."""

    def __init__(self, view: View, sequence: int, now_ms: int) -> None:
        self._open_view: View | None = view
        self.sequence = sequence
        """The last sequence it sees."""
        self.now_ms = now_ms
        """The engine's time then: what had expired by it is absent, what expires later is not."""

    def read(self, ops: bytes) -> bytes:
        """Like Engine.read."""
        return self._view().read(ops, self.sequence, self.now_ms)

    def at(self, now_ms: int) -> Snapshot:
        """The same content at another time, for what expires; it is held for as long as either is."""
        return Snapshot(self._view(), self.sequence, now_ms)

    def get(self, key: bytes) -> bytes | None:
        return self._view().get(key, self.sequence, self.now_ms)

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Like Engine.scan."""
        return list(self.iterate(start, stop, limit, reverse))

    def iterate(
        self, start: bytes = b"", stop: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> Iterator:
        """Like Engine.iterate. The iterator outlives the snapshot."""
        bound = UNLIMITED if limit is None else limit
        return Iterator(self._view(), start, stop, bound, reverse, self.sequence, self.now_ms)

    def close(self) -> None:
        self._open_view = None

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _view(self) -> View:
        if self._open_view is None:
            raise EngineClosed("the snapshot is closed")
        return self._open_view
