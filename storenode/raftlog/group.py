"""GroupLog: one group's durable log, as the Raft core reads it (storenode/raft/storage.py).

Loop thread only; changes only by `RaftLog.installed`, so what it shows is durable. Knows where each entry
lies, at 20 bytes a record: a log of small entries has millions of them.

Invariants: `_firsts`, `_places` and `_sizes` have one item per record that holds living entries, ascending;
an item's entries end where the next one begins. The entries from `_recent_first` to the last are in memory.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import Final

from kvclient.errors import Corruption
from storenode.raft.messages import Entry, HardState
from storenode.raft.storage import Compacted
from storenode.raftlog.cache import RecentEntries, SegmentReader, entry_bytes
from storenode.raftlog.outline import Outline
from storenode.raftlog.records import Record

OFFSET_BITS: Final = 32  # a batch begins below 4 GiB in its segment: RaftLog bounds the segment's size
_OFFSET_MASK: Final = (1 << OFFSET_BITS) - 1


class GroupLog:
    """Empty until something is installed."""

    def __init__(self, number: int, recent: RecentEntries, reader: SegmentReader) -> None:
        self.number = number
        self.outline = Outline()
        self._recent_entries = recent
        self._reader = reader
        self._firsts = array("Q")
        self._places = array("Q")
        self._sizes = array("I")
        self._recent: list[Entry] = []
        self._recent_first = 1

    @property
    def hard_state(self) -> HardState:
        return self.outline.hard

    @property
    def first_index(self) -> int:
        return self.outline.cut_index + 1

    @property
    def last_index(self) -> int:
        return self.outline.last_index

    @property
    def oldest_segment(self) -> int | None:
        """The oldest one with an entry of this group; None if there are no entries."""
        return self._places[0] >> OFFSET_BITS if self._places else None

    @property
    def complete(self) -> bool:
        """Whether it is known of each entry where it lies: not if a segment is missing."""
        return not self.outline.starts or (bool(self._firsts) and self._firsts[0] <= self.first_index)

    def term(self, index: int) -> int:
        return self.outline.term(index)

    def entries(self, first: int, stop: int, bytes_max: int) -> list[Entry]:
        if first >= stop:
            return []
        if first <= self.outline.cut_index:
            raise Compacted(
                f"group {self.number}: entry {first} lies behind the cut at {self.outline.cut_index}"
            )
        if stop > self.outline.last_index + 1:
            raise IndexError(
                f"group {self.number}: entry {stop - 1} lies beyond the last one, {self.outline.last_index}"
            )
        found: list[Entry] = []
        index = first
        while index < stop:
            if index >= self._recent_first:
                at = index - self._recent_first
                part = self._recent[at : at + stop - index]
            else:
                part = self._stored(index, min(stop, self._recent_first))
            for entry in part:
                bytes_max -= len(entry.data)
                if bytes_max < 0 and found:
                    return found
                found.append(entry)
            index = first + len(found)
        return found

    def place(self, index: int) -> tuple[int, int]:
        """Segment and offset of the batch that holds a living entry."""
        place = self._places[bisect_right(self._firsts, index) - 1]
        return place >> OFFSET_BITS, place & _OFFSET_MASK

    def _stored(self, index: int, stop: int) -> list[Entry]:
        """Those of the record that `index` lies in, from there on, below `stop`."""
        run = bisect_right(self._firsts, index) - 1
        end = self._firsts[run + 1] if run + 1 < len(self._firsts) else self.outline.last_index + 1
        segment, offset = self.place(index)
        held: dict[int, Entry] = {}
        for record in self._reader.records(self.number, segment, offset, self._sizes[run]):
            if record.entries:
                held.update(enumerate(record.entries, record.first_index))
        try:
            return [held[at] for at in range(index, min(stop, end))]
        except KeyError as missing:
            raise Corruption(
                f"segment {segment:08x}, offset {offset}: group {self.number} has no entry {missing} there"
            ) from None

    def restore(self, outline: Outline) -> None:
        """What the first segment says of the ones before it; where the entries lie is not known yet."""
        self.outline = outline
        self._recent_first = outline.last_index + 1

    def install(self, record: Record, segment: int, offset: int, size: int) -> None:
        """What a durable batch said. ValueError: it does not fit behind what came before."""
        _, hard, cut, first, entries = record
        outline = self.outline
        if hard is not None:
            outline.hard = hard
        if cut is not None:
            self._cut(*cut)
        if not entries:
            return
        outline.append(first, entries)
        if self._firsts and self._firsts[-1] >= first:
            keep = bisect_left(self._firsts, first)
            del self._firsts[keep:], self._places[keep:], self._sizes[keep:]
        self._firsts.append(first)
        self._places.append(segment << OFFSET_BITS | offset)
        self._sizes.append(size)
        kept = first - self._recent_first
        if kept < len(self._recent):
            self._recent_entries.bytes -= entry_bytes(self._recent[max(kept, 0) :])
            del self._recent[max(kept, 0) :]
        if kept < 0 or not self._recent:
            self._recent_first = first
        self._recent += entries
        self._recent_entries.add(self, first + len(entries), entry_bytes(entries))

    def _cut(self, index: int, term: int) -> None:
        outline = self.outline
        if outline.cut(index, term) or outline.last_index == index:
            self.drop_recent(self._recent_first + len(self._recent))
            self._recent_first = index + 1
            del self._firsts[:], self._places[:], self._sizes[:]
            return
        self.drop_recent(outline.cut_index + 1)
        gone = bisect_right(self._firsts, outline.cut_index + 1) - 1
        if gone > 0:
            del self._firsts[:gone], self._places[:gone], self._sizes[:gone]

    def drop_recent(self, stop: int) -> None:
        count = min(stop - self._recent_first, len(self._recent))
        if count > 0:
            self._recent_entries.bytes -= entry_bytes(self._recent[:count])
            del self._recent[:count]
            self._recent_first += count

    def dispose(self) -> None:
        """The group is forgotten: nothing of it stays in memory."""
        self.drop_recent(self._recent_first + len(self._recent))
