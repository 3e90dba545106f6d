"""Writes the new tables of a repair: readable versions of old ones, merged by key and sequence, one block of
each in memory."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator

from storenode.engine.options import Options
from storenode.engine.tools.blocks import TableWriter
from storenode.engine.tools.examine import TableReport
from storenode.engine.tools.places import Place
from storenode.engine.tools.plan import Rewrite
from storenode.engine.tools.tablefile import TableFile, Version
from storenode.engine.version import TableMeta
from storenode.engine.vfs import File, Vfs

Ordered = tuple[bytes, int, int, bytes, int]
"""A version with its sequence negated: ascending is the order of a table."""


class Numbers:
    """Gives out the file numbers of an engine that nobody has used."""

    def __init__(self, following: int) -> None:
        self.following = following

    def take(self) -> int:
        self.following += 1
        return self.following - 1


def write_tables(
    vfs: Vfs, place: Place, rewrite: Rewrite, numbers: Numbers, below: int, created: list[str]
) -> list[TableMeta]:
    """The new tables, durable but for their names. `below`: versions from this sequence on come from the
    logs. Appends each file to `created` before it writes to it."""
    written: list[TableMeta] = []
    writer: TableWriter | None = None
    file: File | None = None
    try:
        for key, sequence, kind, value, deadline in _newest(vfs, place, rewrite, below):
            if writer is not None and writer.size >= Options().table_bytes:
                assert file is not None
                written.append(_finish(writer, file, rewrite.level))
                writer = None
            if writer is None:
                number = numbers.take()
                path = f"{place.directory}/{number:06d}.sst"
                created.append(path)
                file = vfs.create(path)
                file_id = place.engine_id << 48 | number
                writer = TableWriter(file, number, file_id, time.time_ns() // 1_000_000)
            writer.add(key, sequence, kind, value, deadline)
        if writer is not None:
            assert file is not None
            written.append(_finish(writer, file, rewrite.level))
    finally:
        if file is not None:
            file.close()
    return written


def _finish(writer: TableWriter, file: File, level: int) -> TableMeta:
    finished = writer.finish()
    file.sync()
    file.close()
    return TableMeta(level=level, **finished)


def _newest(vfs: Vfs, place: Place, rewrite: Rewrite, below: int) -> Iterator[Version]:
    """The newest version of each key. Deletions stay: only an engine knows whether they may go."""
    sources = [_versions(vfs, place, source, below) for source in rewrite.sources]
    last: bytes | None = None
    for key, negated, kind, value, deadline in heapq.merge(*sources):
        if key != last:
            yield key, -negated, kind, value, deadline
            last = key


def _versions(vfs: Vfs, place: Place, source: TableReport, below: int) -> Iterator[Ordered]:
    """The readable versions of a table in order. One that is out of order would spoil the merge: it is left
    out."""
    last: tuple[bytes, int] | None = None
    with TableFile(vfs, source.path, source.number, place.engine_id, source.facts) as table:
        for block in table.data():
            for key, sequence, kind, value, deadline in block.versions:
                at = key, -sequence
                if sequence < below and (last is None or at > last):
                    yield key, -sequence, kind, value, deadline
                    last = at
