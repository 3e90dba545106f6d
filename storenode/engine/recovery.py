"""Opening an engine's directory: manifest, tables, logs, and what a crash left behind.

Refuses (Corruption) whenever manifest, tables and logs cannot all be right; removes files only when it is
certain that nothing in them is missing.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from kvclient.errors import Corruption, InvalidRequest
from storenode.engine.log_chain import Log, read_chain
from storenode.engine.manifest import State
from storenode.engine.options import Options
from storenode.engine.shared import Shared
from storenode.engine.table import Table
from storenode.engine.tree import Tree, open_table, stored_file_id, table_path
from storenode.engine.version import PREPARED_ID, TableMeta, Version
from storenode.engine.wal import wal_path

SEQUENCE_MAX = (1 << 56) - 1
"""A sequence shares eight bytes with the kind of its entry."""


class Recovered(NamedTuple):
    """An engine's state after a restart. `last_log`: number and length of the newest log, (0, 0) without
    one."""

    tree: Tree
    next_sequence: int
    now_ms: int
    last_log: tuple[int, int]
    logs: list[int]


def recover(shared: Shared, directory: str, engine_id: int, options: Options) -> Recovered:
    """Bring memtables and tables back to what they were at the last entry that was logged. ValueError: the
    engine has no log of its own."""
    shared.vfs.make_directory(directory)
    state, metas = shared.manifest.load(engine_id)
    table_files, log_files = _list_files(shared, directory)
    state = state or State(1, 0, 0, 0)
    if state.replica is not None:
        raise ValueError(
            f"{directory}: a replica's engine, which has no log of its own: open it with open_replica"
        )
    state = state._replace(
        next_file=max([state.next_file, *(number + 1 for number in (*table_files, *log_files))])
    )
    tables = open_tables(shared, directory, metas, table_files)
    tree = Tree(shared, directory, engine_id, state, version_of(directory, metas), tables)
    needed = [number for number in log_files if number >= state.log_number]
    chain = read_chain(shared.vfs, directory, engine_id, needed, state.log_number)
    logs = chain.logs
    next_sequence, now_ms = _replay(tree, logs, options)
    _remove_orphans(shared, directory, engine_id, table_files - tables.keys(), next_sequence)
    chain.make_durable(shared.vfs)
    for number in log_files:
        if number < state.log_number:
            shared.vfs.unlink(wal_path(directory, number))
    # A process that was killed may have left names to the page cache; from now on they are built upon.
    shared.vfs.sync_directory(directory)
    last_log = (logs[-1].number, logs[-1].length) if logs else (0, 0)
    return Recovered(tree, next_sequence, now_ms, last_log, [log.number for log in logs])


def recover_replica(shared: Shared, directory: str, engine_id: int) -> Recovered:
    """Bring the tables back to what the manifest recorded last; what came later is in the replica's log.
    ValueError: the engine has a log of its own.

    A table that the manifest does not name proves nothing here: whatever is newer than the manifest is in
    that log.
    """
    shared.vfs.make_directory(directory)
    state, metas = shared.manifest.load(engine_id)
    table_files, log_files = _list_files(shared, directory)
    if log_files or (state is not None and state.replica is None):
        raise ValueError(f"{directory}: an engine with a log of its own, not a replica's: open it with open")
    state = state or State(1, 0, 0, 0, replica=b"")
    state = state._replace(next_file=max([state.next_file, *(number + 1 for number in table_files)]))
    tables = open_tables(shared, directory, metas, table_files)
    tree = Tree(shared, directory, engine_id, state, version_of(directory, metas), tables)
    _remove_orphans(shared, directory, engine_id, table_files - tables.keys(), None)
    shared.vfs.sync_directory(directory)
    return Recovered(tree, tree.flushed_sequence + 1, tree.flushed_now_ms, (0, 0), [])


def _list_files(shared: Shared, directory: str) -> tuple[set[int], list[int]]:
    tables: set[int] = set()
    logs: list[int] = []
    for name in shared.vfs.listdir(directory):
        stem, kind = os.path.splitext(name)
        if stem.isdecimal() and kind == ".sst":
            tables.add(int(stem))
        elif stem.isdecimal() and kind == ".wal":
            logs.append(int(stem))
    return tables, sorted(logs)


def open_tables(shared: Shared, directory: str, metas: list[TableMeta], files: set[int]) -> dict[int, Table]:
    """By number. Corruption: one is not among `files`, of another size, or not the one that is meant."""
    tables: dict[int, Table] = {}
    for meta in metas:
        path = table_path(directory, meta.number)
        if meta.number not in files:
            raise Corruption(f"{path}: the table is missing")
        size = shared.vfs.size(path)
        if size != meta.size:
            raise Corruption(f"{path}: {size} bytes, the manifest says {meta.size}")
        tables[meta.number] = open_table(shared, directory, meta)
    return tables


def version_of(directory: str, metas: list[TableMeta]) -> Version:
    """Corruption if these tables cannot be one."""
    try:
        return Version.of(metas)
    except ValueError as error:
        raise Corruption(f"{directory}: {error}") from error


def _replay(tree: Tree, logs: list[Log], options: Options) -> tuple[int, int]:
    """Apply what is in the logs but not in tables; the next sequence and the engine's time."""
    next_sequence, now_ms = tree.flushed_sequence + 1, tree.flushed_now_ms
    for log in logs:
        tree.retire(log.number, next_sequence - 1, now_ms)
        for first_sequence, entry_now_ms, ops in log.entries:
            if first_sequence <= tree.flushed_sequence:
                continue  # exact: an entry is in one memtable as a whole, and memtables are flushed in order
            if first_sequence < next_sequence:
                raise Corruption(f"{log.path}: sequence {first_sequence} comes after {next_sequence - 1}")
            if first_sequence > SEQUENCE_MAX - len(ops):
                raise Corruption(f"{log.path}: there is no sequence {first_sequence}")
            if tree.active.memory_bytes >= options.memtable_bytes or tree.wants_flush:
                tree.retire(log.number, next_sequence - 1, now_ms)
            at_ms = max(now_ms, entry_now_ms)
            try:
                _, count, damage = tree.apply(ops, first_sequence, at_ms)
            except InvalidRequest:
                continue  # it was refused as a whole when it was applied, too
            if damage is not None:
                raise damage  # an op was left out, and when it was applied first it may have been executed
            next_sequence, now_ms = first_sequence + count, at_ms
    return next_sequence, now_ms


def _remove_orphans(
    shared: Shared, directory: str, engine_id: int, numbers: set[int], next_sequence: int | None
) -> None:
    """Remove tables that the manifest does not name, unless one is not this engine's, or proves that the
    manifest is not the newest: that it holds `next_sequence` or a later one (None: that proves nothing)."""
    owners: set[int] = set()
    for number in sorted(numbers):
        path = table_path(directory, number)
        with contextlib.suppress(Corruption, OSError):  # never finished, or gone meanwhile
            owners.add(stored_file_id(shared.vfs, path) >> 48)
        if not owners <= {engine_id, PREPARED_ID}:
            raise Corruption(
                f"{path}: a table of another engine than {engine_id}: open it with its engine_id"
            )
        if next_sequence is None:
            continue
        newest = _newest_sequence(shared, directory, engine_id, number)
        if newest >= next_sequence:
            raise Corruption(
                f"{path}: holds sequence {newest}, manifest and logs end at {next_sequence - 1}: "
                "the manifest is not the newest"
            )
    for number in numbers:
        shared.vfs.unlink(table_path(directory, number))


def _newest_sequence(shared: Shared, directory: str, engine_id: int, number: int) -> int:
    """The highest sequence in a complete table, 0 for one that was never finished or that a worker of the
    same process has just removed."""
    try:
        size = shared.vfs.size(table_path(directory, number))
        meta = TableMeta(number, 0, engine_id << 48 | number, size, 0, 0, 0, 0, 0, 0, 0, 0, b"", b"")
        newest = open_table(shared, directory, meta).properties().get("max_sequence", 0)
    except (Corruption, OSError):
        return 0
    return newest if isinstance(newest, int) else 0
