"""The newest entries of all groups in memory, within one bound; and entries read back from segments.

Loop thread only.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Final, Protocol

from kvclient.errors import Corruption
from storenode.engine.vfs import File, Vfs
from storenode.raft.messages import Entry
from storenode.raftlog.names import segment_path
from storenode.raftlog.records import Record, records_of, unpack
from storenode.raftlog.segment import decode_batch

ENTRY_OVERHEAD_BYTES: Final = 160
"""Of an entry in memory, beside its data: a tuple, a bytes header, a place in a list, an integer."""


def entry_bytes(entries: list[Entry]) -> int:
    """What they take in memory."""
    return sum([len(entry.data) for entry in entries]) + ENTRY_OVERHEAD_BYTES * len(entries)


class Holder(Protocol):
    """Who holds entries in memory."""

    def drop_recent(self, stop: int) -> None:
        """Hold none below `stop` any more, and tell the cache."""


class RecentEntries:
    """Which entries are in memory, oldest first: only their number of bytes, the groups hold them."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._order: deque[tuple[Holder, int]] = deque()

    def add(self, holder: Holder, stop: int, size: int) -> None:
        """`holder` holds entries up to `stop` now, of so many bytes more."""
        self.bytes += size
        self._order.append((holder, stop))

    def shrink(self) -> None:
        """Down to 7/8 of the bound once it is passed: to drop the front of a list costs as much as the list
        is long, so it is done in strides."""
        if self.bytes <= self.bytes_max:
            return
        order = self._order
        goal = self.bytes_max * 7 // 8
        while self.bytes > goal and order:
            holder, stop = order.popleft()
            holder.drop_recent(stop)


class SegmentReader:
    """Reads batches back and checks them again."""

    def __init__(self, vfs: Vfs, directory: str) -> None:
        self.reads = 0
        self._vfs = vfs
        self._directory = directory
        self._files: dict[int, File] = {}
        self._place = (0, 0)
        self._payload: Any = None  # of the batch read last: followers of several groups lag alike

    def records(self, group: int, segment: int, offset: int, size: int) -> list[Record]:
        """What a batch says of a group. Corruption: it is not the one that was written there."""
        if self._place != (segment, offset):
            self._read(segment, offset, size)
        return records_of(group, self._payload)

    def _read(self, segment: int, offset: int, size: int) -> None:
        file = self._files.get(segment)
        if file is None:
            file = self._files[segment] = self._vfs.open(segment_path(self._directory, segment))
        batch = decode_batch(os.pread(file.fd, size, offset), segment, offset, 0)
        if batch is None:
            raise Corruption(
                f"{file.path}: offset {offset}: a batch does not pass its checksum any more; stop this node, "
                "give it an empty data directory and a new id, and let its peers fill it"
            )
        self.reads += 1
        self._place, self._payload = (segment, offset), unpack(batch.payload)

    def drop(self, segment: int) -> None:
        """The segment goes, or becomes another one."""
        if self._place[0] == segment:
            self._place, self._payload = (0, 0), None
        if segment in self._files:
            self._files.pop(segment).close()

    def close(self) -> None:
        for segment in list(self._files):
            self.drop(segment)
