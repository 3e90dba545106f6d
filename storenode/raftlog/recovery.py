"""Reading the log after a start: where it ends, and whether it ends where it may (docs/raft.md section 4).

Changes nothing on the disk. Every group ends up as its records say; the rest is judged to be a torn tail, or
the log is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from storenode.engine.vfs import Vfs
from storenode.raftlog.errors import LogCorrupt, LogRefused
from storenode.raftlog.group import GroupLog
from storenode.raftlog.names import is_spare, segment_number, segment_path, spare_path
from storenode.raftlog.outline import Outline
from storenode.raftlog.records import Payload, Summary, decode
from storenode.raftlog.segment import (
    BATCH_HEAD_BYTES,
    HEADER_BYTES,
    VERSION,
    Batch,
    Header,
    batches,
    decode_header,
    strays,
)


class Tail(NamedTuple):
    """Where the log ends."""

    segment: int
    offset: int
    number: int
    """Of the last batch."""
    last: tuple[int, bytes]
    """Offset and bytes of what nothing later proves to be durable: the header, or the last batch."""
    torn: int
    """How many bytes behind the end were the head of a torn batch, or of an old one; 0 if they are zeros."""


class Recovered(NamedTuple):
    groups: dict[int, GroupLog]
    segments: dict[int, int]
    """Number and size of those that belong to the log; none of a new log."""
    oldest: int
    """The oldest segment that anybody needs, as the last batch says."""
    tail: Tail | None
    useless: list[str]
    """Files to be removed: segments that nobody needs, that were not begun, that wait to be used again."""


class Recovery:
    """Reads the segments in order."""

    def __init__(self, vfs: Vfs, directory: str, node: int, make_group: Callable[[int], GroupLog]) -> None:
        self._vfs = vfs
        self._directory = directory
        self._node = node
        self._make_group = make_group
        self._groups: dict[int, GroupLog] = {}
        self._segments: dict[int, int] = {}
        self._not_begun: list[int] = []
        self._useless: list[str] = []
        self._oldest = 1
        self._expected = 1
        self._content = b""
        self._tail: Tail | None = None

    def run(self) -> Recovered:
        numbers = self._list()
        for segment in numbers:
            self._read(segment)
        if self._tail is not None:
            self._prove_nothing(self._tail.segment, self._tail.offset, self._content, self._tail)
        self._check_whole(numbers)
        self._useless += [self._path(segment) for segment in self._not_begun]
        for segment in [each for each in self._segments if each < self._oldest]:
            del self._segments[segment]
            self._useless.append(self._path(segment))
        return Recovered(self._groups, self._segments, self._oldest, self._tail, self._useless)

    def _list(self) -> list[int]:
        """The segments without a hole up to the newest; what lies before a hole was removed, but its name
        came back."""
        names = self._vfs.listdir(self._directory)
        found = sorted(number for name in names if (number := segment_number(name)) is not None)
        first = len(found)
        while first and (first == len(found) or found[first - 1] + 1 == found[first]):
            first -= 1
        self._useless += [self._path(number) for number in found[:first]]
        self._useless += [spare_path(self._directory, int(name[:8], 16)) for name in names if is_spare(name)]
        return found[first:]

    def _read(self, segment: int) -> None:
        content = self._vfs.read(self._path(segment))
        header = self._header(segment, content)
        if header is None:
            for batch in strays(content, segment, 0, self._expected):
                raise self._corrupt(segment, 0, f"the header is damaged, but batch {batch.number} is there")
            self._not_begun.append(segment)
            return
        if self._not_begun:
            raise self._corrupt(
                self._not_begun[0], 0, f"the header is damaged, but segment {segment:08x} follows"
            )
        if self._tail is None:
            self._expected = header.first_batch
        elif header.first_batch != self._expected:
            raise self._corrupt(
                self._tail.segment,
                self._tail.offset,
                f"batch {self._expected} is damaged, segment {segment:08x} begins with {header.first_batch}",
            )
        self._read_batches(segment, content)

    def _header(self, segment: int, content: bytes) -> Header | None:
        header = decode_header(content, segment)
        if header is None:
            return None
        if header.version != VERSION:
            raise LogRefused(
                f"{self._path(segment)}: version {header.version}, known is {VERSION}: start the release "
                "that wrote it"
            )
        if header.node != self._node:
            raise LogRefused(
                f"{self._path(segment)}: written by node {header.node}, this is node {self._node}: check the "
                "data directory and the node id in the configuration"
            )
        return header

    def _read_batches(self, segment: int, content: bytes) -> None:
        offset = HEADER_BYTES
        last = (0, content[:HEADER_BYTES])
        for batch in batches(content, segment, self._expected):
            self._take(segment, batch)
            last = (batch.offset, content[batch.offset : batch.offset + batch.size])
            offset = batch.following
            self._expected += 1
        rest = content[offset : offset + BATCH_HEAD_BYTES]
        torn = len(rest) if any(rest) else 0
        self._segments[segment] = len(content)
        self._content = content
        self._tail = Tail(segment, offset, self._expected - 1, last, torn)

    def _take(self, segment: int, batch: Batch) -> None:
        try:
            payload = decode(batch.payload)
            if payload.oldest > segment:
                raise ValueError(f"it says that segment {payload.oldest} is the oldest")
            if batch.offset == HEADER_BYTES:
                self._take_summaries(payload.summaries)
            self._take_records(payload, segment, batch)
        except ValueError as error:
            raise self._corrupt(segment, batch.offset, f"batch {batch.number}: {error}") from None
        self._oldest = max(self._oldest, payload.oldest)

    def _take_summaries(self, summaries: list[Summary]) -> None:
        """They begin the groups in the first segment; in the others they say what is known already."""
        if self._tail is None:
            for summary in summaries:
                self._group(summary.group).restore(Outline.of(summary))
            return
        known = {number: group.outline.summary(number) for number, group in self._groups.items()}
        if known != {summary.group: summary for summary in summaries}:
            raise ValueError("the segment's summaries contradict the segments before it")

    def _take_records(self, payload: Payload, segment: int, batch: Batch) -> None:
        for record in payload.records:
            if record.entries is None:
                if record.group in self._groups:
                    self._groups.pop(record.group).dispose()
            else:
                self._group(record.group).install(record, segment, batch.offset, batch.size)

    def _group(self, number: int) -> GroupLog:
        group = self._groups.get(number)
        if group is None:
            group = self._groups[number] = self._make_group(number)
        return group

    def _prove_nothing(self, segment: int, offset: int, content: bytes, tail: Tail) -> None:
        missing = tail.number + 1
        for batch in strays(content, segment, offset, missing):
            if batch.synced >= missing:
                raise self._corrupt(
                    segment,
                    offset,
                    f"batch {missing} is damaged, but was durable when batch {batch.number} was written",
                )

    def _check_whole(self, numbers: list[int]) -> None:
        if numbers and numbers[0] > self._oldest:
            raise self._corrupt(numbers[0] - 1, 0, "the segment is missing")
        for number, group in self._groups.items():
            oldest = group.oldest_segment
            if not group.complete or (oldest is not None and oldest < self._oldest):
                raise self._corrupt(
                    numbers[0], HEADER_BYTES, f"entries of group {number} are missing before it"
                )

    def _path(self, segment: int) -> str:
        return segment_path(self._directory, segment)

    def _corrupt(self, segment: int, offset: int, what: str) -> LogCorrupt:
        return LogCorrupt(self._path(segment), offset, what)
