"""The log thread's side of the log: batches to the newest segment, and where it is full the next one.

Owns what belongs to the log thread: the file that is written, where, the next number, and an outline of each
group. The loop thread reaches in at two places only, each safe under the interpreter's lock: it adds to
`spares`, and it sets `oldest`.

Invariants: one batch at a time; it is durable before `write` returns. A segment's header, size and name are
durable before its first batch is written. After any error nothing is written any more.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

import msgpack

from storenode.engine.vfs import File, Vfs
from storenode.raftlog.errors import LogFailed
from storenode.raftlog.names import segment_path
from storenode.raftlog.outline import Outline
from storenode.raftlog.records import Payload, Record, Summary
from storenode.raftlog.segment import (
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    batch_bytes,
    encode_batch,
    encode_header,
)

PACKER_BYTES: Final = 1 << 20
"""What the packer begins with; it grows with the largest batch and keeps that, so that packing allocates
nothing but the batch."""


class Written(NamedTuple):
    """One durable batch, for `RaftLog.installed`."""

    number: int
    segment: int
    offset: int
    size: int
    segment_bytes: int
    oldest: int
    records: list[Record]


class Writer:
    """Writes behind what recovery found, or the first segment of a new log."""

    def __init__(
        self,
        vfs: Vfs,
        directory: str,
        node: int,
        segment_bytes: int,
        number: int,
        outlines: dict[int, Outline],
    ) -> None:
        """`number`: of the newest batch, which is durable."""
        self.spares: deque[str] = deque()
        self.oldest = 1
        self.failure: str | None = None
        self.segment = 0
        self.number = number
        self.batches = 0
        self.bytes_written = 0
        self._vfs = vfs
        self._directory = directory
        self._node = node
        self._wanted_bytes = segment_bytes
        self._outlines = outlines
        self._packer = msgpack.Packer(autoreset=True, buf_size=PACKER_BYTES)
        self._file: File | None = None
        self.segment_bytes = 0
        self.offset = 0

    def resume(self, segment: int, offset: int, again: list[tuple[int, bytes]]) -> None:
        """Go on in a segment that is there, once the bytes in `again` are written and all is durable."""
        path = segment_path(self._directory, segment)
        self._file = self._vfs.open(path, writable=True)
        self.segment_bytes = max(self._wanted_bytes, self._vfs.size(path))
        self._file.reserve(self.segment_bytes)
        for at, data in again:
            self._file.write_at(at, data)
        self._file.sync()
        self.segment, self.offset = segment, offset

    def begin(self, segment: int) -> None:
        """The next segment, from a spare one if there is one; first its old name must be gone for good, or
        it could come back with the new content."""
        path = segment_path(self._directory, segment)
        if self.spares:
            self._vfs.sync_directory(self._directory)
            self._vfs.rename(self.spares.popleft(), path)
            file = self._vfs.open(path, writable=True)
        else:
            file = self._vfs.create(path)
        if self._file is not None:
            self._file.close()
        self._file = file
        file.reserve(self._wanted_bytes)
        file.write_at(0, encode_header(self._node, segment, self.number + 1))
        file.sync()
        self._vfs.sync_directory(self._directory)
        self.segment, self.offset, self.segment_bytes = segment, HEADER_BYTES, self._wanted_bytes

    def write(self, records: list[Record]) -> Written:
        if self.failure is not None:
            raise LogFailed(self.failure)
        try:
            return self._write(records)
        except OSError as error:
            assert self._file is not None  # the one at hand, which may be a segment that was being begun
            path = error.filename or self._file.path
            self.fail(
                f"{path}: {error.strerror}; nobody can say what of it is on the disk: end the process, and "
                "start it anew when the disk is sound and has room"
            )
            raise LogFailed(self.failure) from error
        except (ValueError, TypeError, OverflowError) as error:
            self.fail(f"a batch was refused: {error}; this is a defect of the program, please report it")
            raise LogFailed(self.failure) from error

    def fail(self, why: str) -> None:
        """Nothing is written from now on. The first reason stays."""
        self.failure = self.failure or why

    def _write(self, records: list[Record]) -> Written:
        oldest = self.oldest
        payload = self._encode(oldest, [], records)
        if self.offset + batch_bytes(len(payload)) > self.segment_bytes and self.offset > HEADER_BYTES:
            self.begin(self.segment + 1)
        if self.offset == HEADER_BYTES:
            summaries = [outline.summary(group) for group, outline in self._outlines.items()]
            payload = self._encode(oldest, summaries, records)
        for record in records:
            self._note(record)
        number, offset = self.number + 1, self.offset
        data = encode_batch(self.segment, offset, number, self.number, payload)
        file = self._file
        assert file is not None
        if offset + len(data) > self.segment_bytes:  # alone in its segment, and still too large
            self.segment_bytes = offset + len(data)
            file.reserve(self.segment_bytes)
        file.write_at(offset, data)
        file.sync()
        self.number = number
        self.offset = offset + len(data)
        self.batches += 1
        self.bytes_written += len(data)
        return Written(number, self.segment, offset, len(data), self.segment_bytes, oldest, records)

    def _encode(self, oldest: int, summaries: list[Summary], records: list[Record]) -> bytes:
        payload: bytes = self._packer.pack(Payload(oldest, summaries, records))
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"{len(payload)} bytes are more than a batch can hold")
        return payload

    def _note(self, record: Record) -> None:
        group, hard, cut, first_index, entries = record
        if entries is None:
            self._outlines.pop(group, None)
            return
        outline = self._outlines.get(group)
        if outline is None:
            outline = self._outlines[group] = Outline()
        if hard is not None:
            outline.hard = hard
        if cut is not None:
            outline.cut(*cut)
        if entries:
            outline.append(first_index, entries)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
