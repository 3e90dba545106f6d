"""A state of an engine that stays as it is while it is looked at.

It holds the memtables and tables of its moment; newer versions in the memtable that still grew then are above
its sequence and not seen. So flushes and compactions need not know of snapshots: they never change what one
holds.
"""

from __future__ import annotations

from types import TracebackType

from storenode.engine.errors import EngineClosed
from storenode.engine.view import View

PAGE_PAIRS = 10_000
"""Pairs per native call of a scan without the interpreter's lock; a page also ends at 4 MiB."""

REVERSE = 1


def scan_pairs(
    view: View,
    sequence: int,
    now_ms: int,
    start: bytes,
    stop: bytes | None,
    limit: int | None,
    reverse: bool,
) -> list[tuple[bytes, bytes]]:
    """The pairs of a state of a view, page by page."""
    pairs: list[tuple[bytes, bytes]] = []
    flags = REVERSE if reverse else 0
    while limit is None or len(pairs) < limit:
        wanted = PAGE_PAIRS if limit is None else min(PAGE_PAIRS, limit - len(pairs))
        page, resume = view.scan_page(start, stop, wanted, flags, sequence, now_ms)
        if resume is None:
            return pairs + page if pairs else page
        pairs += page
        if reverse:
            stop = resume
        else:
            start = resume
    return pairs


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

    def get(self, key: bytes) -> bytes | None:
        return self._view().get(key, self.sequence, self.now_ms)

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Like Engine.scan."""
        return scan_pairs(self._view(), self.sequence, self.now_ms, start, stop, limit, reverse)

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
