"""Flush and compaction: from a tree's state to a new one. Run by workers; the loops over keys are native
(job.pyx).

A job that does not come to its end leaves nothing behind: its files are removed, the tree is as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from storenode.engine.compaction import OVERLAP_TABLES_MAX, Proposal
from storenode.engine.errors import NO_ROOM, Cancelled, sync_failed
from storenode.engine.job import Job
from storenode.engine.options import LEVELS, Options
from storenode.engine.table import Table
from storenode.engine.tree import Retired, Tree, table_path
from storenode.engine.version import TableMeta
from storenode.engine.vfs import File

DONE = 0
NEEDS_FILE = 1
TABLE_FINISHED = 2
PAUSED = 3
UNLIMITED = (1 << 63) - 1

PLAIN, LZ4, ZSTD = 0, 1, 2
"""Types of blocks (docs/formats.md section 3)."""

Watch = Callable[[Job], bool]
"""Called with a job before each of its steps and after the last; True: stop. Whoever watches may also cancel
it later, from any thread."""


class JobResult(NamedTuple):
    """What a job did, for the statistics."""

    bytes_read: int
    bytes_written: int
    tables_written: int
    block_bytes: int = 0
    """Of the data blocks before compression."""
    block_bytes_stored: int = 0
    moved: bool = False
    level: int = 0
    """Where the outputs are."""
    bytes_from_above: int = 0
    """Of `bytes_read`: what came from the levels above it."""
    tables_dropped: int = 0
    """Whose keys a range deletion covers: gone without being read."""


def compression_at(level: int, options: Options) -> int:
    """The type of the blocks of a table that is written for a level.

    Tables above the last level are rewritten soon: Zstandard's time would be spent on them in vain.
    """
    if options.compression == "none":
        return PLAIN
    return ZSTD if options.compression == "zstd" and level == LEVELS - 1 else LZ4


def flush(tree: Tree, retired: Retired, options: Options, watch: Watch) -> JobResult:
    """Write the oldest retired memtable as a table of level 0."""
    view = tree.view
    if view is None:
        raise Cancelled(tree.directory)
    job = Job(
        tree.directory,
        (retired.memtable,),
        (),
        view.runs,
        (),
        now_ms=retired.now_ms,
        table_bytes=UNLIMITED,
        overlap_bytes_max=UNLIMITED,
        block_bytes=options.block_bytes,
        bits_per_key=options.bits_per_key,
        restart_interval=options.restart_interval,
        compression=compression_at(0, options),
        ranges=tree.ranges_until(retired.last_sequence),
    )
    outputs = _run(tree, job, 0, retired.last_sequence, watch)
    _install(tree, outputs, (), flushed=retired)
    return _result(job, retired.memtable.memory_bytes, outputs)


def compact(
    tree: Tree, proposal: Proposal, options: Options, watch: Watch, pause_bytes: int = 0
) -> JobResult:
    """Carry out a proposal for the tree's current version. A table that is compressed otherwise than its new
    level wants is rewritten instead of moved. `pause_bytes`: a step takes about so much reading and writing;
    0: as much as a table.

    What counts as expired is what had expired at the last flush: entries that are only in the log are
    replayed from that moment on, and must find what they found the first time.
    """
    if proposal.drop:
        tree.install((), {table.number for table in proposal.upper})
        return JobResult(0, 0, 0, tables_dropped=len(proposal.upper))
    settled = tree.settled
    compression = compression_at(proposal.output_level, options)
    if proposal.move and all(table.compression == compression for table in tree.tables_of(proposal.upper)):
        tree.install([table._replace(level=proposal.output_level) for table in proposal.upper], ())
        return JobResult(0, 0, 0, moved=True, level=proposal.output_level)
    inputs = (*proposal.upper, *proposal.lower)
    numbers = {table.number for table in inputs}
    level0, *levels = tree.version.levels
    runs: list[tuple[TableMeta, ...]] = [(table,) for table in level0 if table.number in numbers]
    runs.extend(tuple(table for table in level if table.number in numbers) for level in levels)
    deeper = tree.version.levels[proposal.output_level + 1 :]
    below = [tuple(table for table in level if table.number not in numbers) for level in deeper]
    job = Job(
        tree.directory,
        (),
        _tables(tree, runs),
        _tables(tree, below),
        tree.tables_of(deeper[0]) if deeper else (),
        now_ms=tree.flushed_now_ms,
        table_bytes=options.table_bytes,
        overlap_bytes_max=OVERLAP_TABLES_MAX * options.table_bytes,
        block_bytes=options.block_bytes,
        bits_per_key=options.bits_per_key,
        restart_interval=options.restart_interval,
        compression=compression,
        pause_bytes=pause_bytes,
        ranges=settled.ranges,
    )
    outputs = _run(tree, job, proposal.output_level, settled.sequence, watch)
    _install(tree, outputs, numbers)
    result = _result(job, sum(table.size for table in inputs), outputs)
    from_above = sum(table.size for table in proposal.upper if table.level != proposal.output_level)
    return result._replace(level=proposal.output_level, bytes_from_above=from_above)


def _result(job: Job, bytes_read: int, outputs: list[TableMeta]) -> JobResult:
    counts = job.counts()
    return JobResult(
        bytes_read,
        sum(table.size for table in outputs),
        len(outputs),
        counts["block_bytes"],
        counts["block_bytes_stored"],
    )


def _tables(tree: Tree, runs: list[tuple[TableMeta, ...]]) -> tuple[tuple[Table, ...], ...]:
    return tuple(tree.tables_of(run) for run in runs if run)


def _run(tree: Tree, job: Job, level: int, cleaned_sequence: int, watch: Watch) -> list[TableMeta]:
    """The tables that a job writes, durable under their names. `cleaned_sequence`: the job knows all range
    deletions up to it."""
    outputs: list[TableMeta] = []
    created: list[str] = []
    file: File | None = None
    status = PAUSED
    try:
        while True:
            if watch(job):
                raise Cancelled(tree.directory)
            if status == DONE:
                break
            status = job.step()
            if status == NEEDS_FILE:
                number = tree.take_number()
                file = tree.shared.files.opening(tree.shared.vfs.create, table_path(tree.directory, number))
                created.append(file.path)
                job.open_table(file.fd, number, tree.engine_id << 48 | number, time.time_ns() // 1_000_000)
            elif status == TABLE_FINISHED:
                assert file is not None
                sync_table(file.path, file.sync)
                file.close()
                outputs.append(TableMeta(level=level, cleaned_sequence=cleaned_sequence, **job.finished()))
        if outputs:
            sync_directory(tree)
    except BaseException:
        if file is not None:
            file.close()
        remove(tree, created)
        raise
    return outputs


def adopt(tree: Tree, path: str, made: list[str]) -> int:
    """Give a table from elsewhere a name among the tree's, with durable content; its number. `made` gets the
    new path first, since it may be there even if this fails. The name is durable after `sync_directory`."""
    vfs, files = tree.shared.vfs, tree.shared.files
    number = tree.take_number()
    made.append(table_path(tree.directory, number))
    files.opening(partial(vfs.duplicate, path), made[-1])
    sync_table(made[-1], partial(files.opening, vfs.sync, made[-1]))
    return number


def sync_table(path: str, sync: Callable[[], None]) -> None:
    try:
        sync()
    except OSError as error:
        if error.errno in NO_ROOM:  # that concerns this file alone, and the next try makes a new one
            raise
        raise sync_failed(path, error) from error


def sync_directory(tree: Tree) -> None:
    """Any failure is final: it may have cost the name of a log."""
    try:
        tree.sync_directory()
    except OSError as error:
        raise sync_failed(tree.directory, error) from error


def _install(
    tree: Tree,
    outputs: list[TableMeta],
    removed: set[int] | tuple[()],
    *,
    flushed: Retired | None = None,
) -> None:
    try:
        tree.install(outputs, removed, flushed=flushed)
    except OSError:
        remove(tree, [table_path(tree.directory, table.number) for table in outputs])
        raise


def remove(tree: Tree, paths: list[str]) -> None:
    for path in paths:
        tree.shared.discard(path)
