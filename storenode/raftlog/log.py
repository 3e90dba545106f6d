"""RaftLog: the node's log, as its two threads see it (storenode/raftlog/__init__.py says which calls what).

Owns the groups, the segments that are there, and what goes. A segment goes in three steps, so that a lost
name can never be taken for lost data: `collect` finds that nobody needs it; the next batch says so (`oldest`)
and is durable; the next `collect` renames or removes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from storenode.engine.vfs import Vfs
from storenode.raftlog.cache import RecentEntries, SegmentReader
from storenode.raftlog.errors import LogFailed
from storenode.raftlog.group import OFFSET_BITS, GroupLog
from storenode.raftlog.names import segment_path, spare_path
from storenode.raftlog.records import GROUP_MAX, Record
from storenode.raftlog.recovery import Recovery, Tail
from storenode.raftlog.segment import BATCH_HEAD_BYTES, HEADER_BYTES
from storenode.raftlog.writer import Writer, Written

SPARES_MAX: Final = 2
"""One is used while the next one becomes free; the second one evens out that flushes come in bursts."""

SEGMENT_BYTES_MIN: Final = HEADER_BYTES + BATCH_HEAD_BYTES
SEGMENT_BYTES_MAX: Final = (1 << OFFSET_BITS) - 1


class RaftLog:
    """Open, until `close`. The caller sees to it that no other process has this directory."""

    def __init__(
        self,
        vfs: Vfs,
        directory: str,
        node: int,
        *,
        segment_bytes: int = 64 << 20,
        cache_bytes: int = 32 << 20,
    ) -> None:
        """Makes the directory, reads what is in it, and makes that durable. LogCorrupt: it is damaged.
        LogRefused: it is another node's, or of another version. OSError: the disk refuses.
        """
        if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
            raise ValueError(
                f"segment_bytes must be {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}, not {segment_bytes}"
            )
        self._vfs = vfs
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._recent = RecentEntries(cache_bytes)
        self._reader = SegmentReader(vfs, directory)
        self._leaving: dict[int, deque[GroupLog]] = {}
        self._closed = False
        vfs.make_directory(directory)
        found = Recovery(vfs, directory, node, self._new_group).run()
        self._recent.shrink()
        self._groups = found.groups
        self._segments = found.segments
        self._oldest = found.oldest
        outlines = {number: group.outline.copy() for number, group in found.groups.items()}
        number = found.tail.number if found.tail else 0
        self._writer = Writer(vfs, directory, node, segment_bytes, number, outlines)
        self._writer.oldest = found.oldest
        self._settle(found.tail, found.useless)

    def _settle(self, tail: Tail | None, useless: list[str]) -> None:
        """Make durable what was read, and only then remove what it makes useless.

        What nothing proves to be durable is written again: after a sync that failed it may be in memory only,
        and no later sync would write it. What is torn loses its head, so that nothing ever completes it.
        """
        try:
            if tail is not None:
                again = [tail.last, (tail.offset, bytes(tail.torn))]
                self._writer.resume(tail.segment, tail.offset, again if tail.torn else again[:1])
            for path in useless:
                self._vfs.unlink(path)
            if tail is None:
                self._writer.begin(1)
            else:
                self._vfs.sync_directory(self._directory)
        except BaseException:
            self._writer.close()
            raise
        self._segments[self._writer.segment] = self._writer.segment_bytes
        self._newest, self._end = self._writer.segment, self._writer.offset

    def _new_group(self, number: int) -> GroupLog:
        return GroupLog(number, self._recent, self._reader)

    def group(self, number: int) -> GroupLog:
        """Of a group that is not known, an empty one."""
        group = self._groups.get(number)
        if group is None:
            if not 0 <= number <= GROUP_MAX:
                raise ValueError(f"group {number} is not 0 to {GROUP_MAX}")
            group = self._groups[number] = self._new_group(number)
        return group

    @property
    def groups(self) -> Iterable[int]:
        return self._groups.keys()

    def write(self, records: list[Record]) -> Written:
        """Log thread: one batch, one write, one fdatasync, in the order of `records`; what is returned is
        durable and goes to `installed`. LogFailed: final. A batch without records is fine.
        """
        return self._writer.write(records)

    def installed(self, written: Written) -> None:
        """Show what `write` returned for, batch by batch in their order."""
        _, segment, offset, size, segment_bytes, oldest, records = written
        self._segments[segment] = segment_bytes
        self._newest, self._end = segment, offset + size
        self._oldest = oldest
        leaving = self._leaving
        for record in records:
            number = record.group
            if number in leaving:
                if record.entries is None:
                    self._left(number)
                else:
                    leaving[number][0].install(record, segment, offset, size)
            else:
                self.group(number).install(record, segment, offset, size)
        self._recent.shrink()

    def forget(self, number: int) -> Record:
        """The replica is gone for good: `group` gives a new, empty log from now on. The record returned must
        be written, behind all that were made for the group before and ahead of those made after.
        """
        group = self._groups.pop(number, None) or self._new_group(number)
        self._leaving.setdefault(number, deque()).append(group)
        return Record(number, None, None, 0, None)

    def _left(self, number: int) -> None:
        waiting = self._leaving[number]
        waiting.popleft().dispose()
        if not waiting:
            del self._leaving[number]

    def collect(self) -> int:
        """Find the segments that nobody needs, to be said with the next batch, and free those of which a
        batch has said so; the bytes freed. Nothing waits for the disk: a name that comes back after a crash
        is removed when the log is opened. LogFailed: a name could not be changed; final.
        """
        needed = min((place for _, place in self._pins()), default=self._newest)
        self._writer.oldest = max(needed, self._oldest)
        freed = 0
        for segment in sorted(each for each in self._segments if each < self._oldest):
            try:
                self._free(segment)
            except OSError as error:
                self._writer.fail(f"{error.filename}: {error.strerror}; end the process and look at the disk")
                raise LogFailed(self._writer.failure) from error
            freed += self._segments.pop(segment)
        return freed

    def _free(self, segment: int) -> None:
        self._reader.drop(segment)
        path = segment_path(self._directory, segment)
        spares = self._writer.spares
        if len(spares) < SPARES_MAX and self._segments[segment] == self._segment_bytes:
            spare = spare_path(self._directory, segment)
            self._vfs.rename(path, spare)
            spares.append(spare)
        else:
            self._vfs.unlink(path)

    def _pins(self) -> Iterable[tuple[int, int]]:
        """Each group that has entries, with the oldest segment they are in."""
        for group in [*self._groups.values(), *(each for many in self._leaving.values() for each in many)]:
            oldest = group.oldest_segment
            if oldest is not None:
                yield group.number, oldest

    def pinned_by(self) -> list[int]:
        """The groups that keep the oldest segment, if it is not the newest one as well: a flush of them lets
        it go. None while it only waits for a batch and for `collect`.
        """
        first = min(self._segments)
        if first == self._newest:
            return []
        return [number for number, oldest in self._pins() if oldest == first]

    @property
    def bytes_held(self) -> int:
        """What the log takes on the disk, without spares and the unused part of the newest segment."""
        older = sum(size for segment, size in self._segments.items() if segment != self._newest)
        return older + self._end

    def stats(self) -> dict[str, int]:
        """Counters since the start and levels of now; bytes and numbers."""
        writer = self._writer
        return {
            "groups": len(self._groups),
            "segments": len(self._segments),
            "spares": len(writer.spares),
            "bytes_held": self.bytes_held,
            "batches": writer.batches,
            "bytes_written": writer.bytes_written,
            "cache_bytes": self._recent.bytes,
            "disk_reads": self._reader.reads,
        }

    def close(self) -> None:
        """End the log with an empty batch, which proves the one before it to be durable, unless the log has
        failed. No write may be under way."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._writer.failure is None:
                self._writer.write([])
        except LogFailed:
            pass  # without it the log is as good as after a crash
        finally:
            self._writer.fail("the log is closed")
            self._writer.close()
            self._reader.close()
