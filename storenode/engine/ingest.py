"""Taking prepared tables into an engine: checking their files, and giving them names among its tables.

Knows nothing of memtables and logs: whoever calls `take_in` has flushed everything, and lets nobody write
meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from kvclient.errors import Corruption
from storenode.engine.errors import EngineFailed
from storenode.engine.jobs import adopt, remove, sync_directory
from storenode.engine.options import Options
from storenode.engine.shared import Shared
from storenode.engine.table import Table
from storenode.engine.tree import Tree, stored_file_id
from storenode.engine.version import TableMeta, is_prepared
from storenode.engine.vfs import Vfs

COUNTS = ("entries", "deletions", "expiring", "raw_key_bytes", "raw_value_bytes", "created_ms")


class Prepared(NamedTuple):
    """A prepared table that was checked. `meta`: with number, level and sequence 0."""

    path: str
    meta: TableMeta


def examine(shared: Shared, paths: Iterable[str]) -> list[Prepared]:
    """Read and check all files; in the order of their keys. Errors as of Engine.ingest."""
    if isinstance(paths, str):
        raise TypeError(f"a list of paths is ingested, not {paths!r}")
    prepared = [_examine(shared, os.path.abspath(path)) for path in paths]
    prepared.sort(key=lambda one: one.meta.smallest)
    for left, right in pairwise(prepared):
        if left.meta.largest >= right.meta.smallest:
            raise ValueError(
                f"{left.path} (up to key {left.meta.largest!r}) and {right.path} (from key "
                f"{right.meta.smallest!r}) share keys: ingest them one after the other"
            )
    return prepared


def _examine(shared: Shared, path: str) -> Prepared:
    file_id = shared.files.opening(partial(stored_file_id, shared.vfs), path)
    size = shared.vfs.size(path)
    if not is_prepared(file_id):
        raise ValueError(
            f"{path} is a table of engine {file_id >> 48}; only what TableWriter wrote can be ingested"
        )
    said = _open(shared, path, file_id, size, b"", b"").properties()
    smallest, largest = said.get("smallest"), said.get("largest")
    counts = {name: said.get(name) for name in COUNTS}
    if not (isinstance(smallest, bytes) and isinstance(largest, bytes) and None not in counts.values()):
        raise Corruption(f"{path}: malformed properties")
    if said.get("max_sequence") != 0:
        raise Corruption(f"{path}: a prepared table with sequences of its own")
    _open(shared, path, file_id, size, smallest, largest).verify()
    meta = TableMeta(
        number=0,
        level=0,
        file_id=file_id,
        size=size,
        min_sequence=0,
        max_sequence=0,
        smallest=smallest,
        largest=largest,
        **{name: count for name, count in counts.items() if isinstance(count, int)},
    )
    return Prepared(path, meta)


def _open(shared: Shared, path: str, file_id: int, size: int, smallest: bytes, largest: bytes) -> Table:
    file = shared.files.open(path)
    try:
        return Table(shared.cache, file, 0, file_id, size, smallest, largest)
    except BaseException:
        file.close()
        raise


def take_in(tree: Tree, prepared: list[Prepared], sequence: int, now_ms: int, options: Options) -> None:
    """Make the tables part of the tree, durably, with this sequence. OSError: nothing changed. EngineFailed:
    nobody knows."""
    tables: list[TableMeta] = []
    made: list[str] = []
    try:
        for path, meta in prepared:
            number = adopt(tree, path, made)
            tables.append(meta._replace(number=number, min_sequence=sequence, max_sequence=sequence))
        sync_directory(tree)
        tree.ingest(tables, now_ms, options)
    except EngineFailed:
        raise  # the commit may count, and then the files must stay
    except BaseException:
        remove(tree, made)
        raise


def forget(vfs: Vfs, prepared: list[Prepared]) -> None:
    """Remove the files' own names, where that can be: the tables are taken in all the same."""
    for path in (one.path for one in prepared):
        with contextlib.suppress(OSError):
            vfs.unlink(path)
