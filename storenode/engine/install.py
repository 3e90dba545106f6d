"""Taking a checkpoint of another node into a replica's engine, in the place of everything that is there.

`examine` reads and changes nothing. `take_in` gives the tables names among the engine's, where they keep
their file ids, and has one manifest transaction replace all; whoever calls it lets no job run meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from kvclient.errors import Corruption
from storenode.engine.errors import EngineFailed
from storenode.engine.ingest import COUNTS
from storenode.engine.jobs import adopt, remove, sync_directory
from storenode.engine.manifest import Manifest, State
from storenode.engine.recovery import open_tables, version_of
from storenode.engine.shared import Shared
from storenode.engine.table import Table
from storenode.engine.tree import Tree, table_path
from storenode.engine.version import TableMeta, is_prepared
from storenode.engine.vfs import Vfs


class Examined(NamedTuple):
    """A checkpoint whose files fit together. `tables`: with the numbers that they have there."""

    directory: str
    engine_id: int
    state: State
    tables: tuple[TableMeta, ...]

    @property
    def replica(self) -> bytes:
        """The replica state that belongs to it."""
        assert self.state.replica is not None
        return self.state.replica


def examine(shared: Shared, directory: str, engine_id: int, *, blocks: bool) -> Examined:
    """Check a checkpoint: its manifest, and of each table footer and properties; with `blocks` all of it.
    Corruption: it is damaged or not complete. ValueError: it is not one of this engine of another node."""
    state, metas = _manifest_of(shared.vfs, directory, engine_id)
    if state.replica is None:
        raise ValueError(f"{directory}: a checkpoint of an engine with a log of its own, not of a replica's")
    version_of(directory, metas)
    names = {meta.number for meta in metas if _is_there(shared.vfs, table_path(directory, meta.number))}
    tables = open_tables(shared, directory, metas, names)
    for meta in metas:
        _check_table(tables.pop(meta.number), meta, engine_id, state.flushed_sequence, blocks=blocks)
    return Examined(directory, engine_id, state, tuple(metas))


def _manifest_of(vfs: Vfs, directory: str, engine_id: int) -> tuple[State, list[TableMeta]]:
    place = os.path.join(directory, "manifest")
    if not _is_there(vfs, os.path.join(place, "data.mdb")):
        raise Corruption(f"{place}/data.mdb: missing: {directory} is no checkpoint")
    manifest = Manifest(place, vfs)
    try:
        engines = manifest.engines()
        if engines != [engine_id]:
            raise ValueError(f"{directory}: a checkpoint of engines {engines}, not of engine {engine_id}")
        state, metas = manifest.load(engine_id)
    finally:
        manifest.close()
    assert state is not None
    return state, metas


def _is_there(vfs: Vfs, path: str) -> bool:
    try:
        return vfs.size(path) > 0
    except (FileNotFoundError, NotADirectoryError):
        return False


def _check_table(table: Table, meta: TableMeta, engine_id: int, flushed: int, *, blocks: bool) -> None:
    """The table is what its record says, and no newer than its manifest."""
    if not is_prepared(meta.file_id) and meta.file_id >> 48 != engine_id:
        raise ValueError(f"{table.path}: a table of engine {meta.file_id >> 48}, not of {engine_id}")
    if meta.max_sequence > flushed:
        raise Corruption(f"{table.path}: holds sequence {meta.max_sequence}, the manifest ends at {flushed}")
    said = table.properties()
    sequences = () if is_prepared(meta.file_id) else ("min_sequence", "max_sequence")
    for name in (*COUNTS, *sequences, "smallest", "largest"):
        if said.get(name) != getattr(meta, name):
            raise Corruption(f"{table.path}: {name} is {said.get(name)!r}, not {getattr(meta, name)!r}")
    if blocks:
        table.verify()


def take_in(tree: Tree, examined: Examined, entered: Callable[[], None]) -> None:
    """Replace everything, durably. `entered`: called when it is durable, before any reader sees it. OSError:
    nothing changed. EngineFailed: nobody knows."""
    tree.skip_numbers(examined.state.next_file)  # or a later table would get the file id of one of these
    tables: list[TableMeta] = []
    made: list[str] = []
    try:
        for meta in examined.tables:
            number = adopt(tree, table_path(examined.directory, meta.number), made)
            tables.append(meta._replace(number=number))
        sync_directory(tree)
        tree.replace(tables, examined.state, entered)
    except EngineFailed:
        raise  # the commit may count, and then the files must stay
    except BaseException:
        remove(tree, made)
        raise
