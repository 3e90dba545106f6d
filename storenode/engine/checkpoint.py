"""Writing a checkpoint: the directory of an engine of its own, from tables that nobody changes any more
(docs/formats.md section 1).

It is made under another name and renamed when all of it is durable. Whoever calls sees to it that the tables
stay on the disk meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Collection

from storenode.engine.errors import EngineFailed
from storenode.engine.manifest import Manifest, State
from storenode.engine.tree import table_path
from storenode.engine.version import TableMeta
from storenode.engine.vfs import Vfs

INCOMPLETE = ".incomplete"

OURS = re.compile(r"\d{6,}\.sst|manifest")

MANIFEST = "manifest/data.mdb"


def checkpoint_files(directory: str, vfs: Vfs | None = None) -> list[tuple[str, int]]:
    """What another node needs of a checkpoint, as (name in it, bytes); the manifest is the last. LMDB's lock
    file stays here: it says who has the manifest open.
    """
    vfs = Vfs() if vfs is None else vfs
    names = sorted(name for name in vfs.listdir(directory) if name.endswith(".sst"))
    return [(name, vfs.size(os.path.join(directory, name))) for name in (*names, MANIFEST)]


def refuse_used(vfs: Vfs, target: str) -> None:
    """FileExistsError if there is something where a checkpoint is to be made."""
    try:
        names = vfs.listdir(target)
    except FileNotFoundError:
        return
    if names:
        raise FileExistsError(errno.EEXIST, "a checkpoint needs a new or an empty directory", target)


def write(
    vfs: Vfs, source: str, target: str, engine_id: int, state: State, tables: Collection[TableMeta]
) -> None:
    """Make the engine of `tables`, which lie in `source`, in `target`; durable on return. OSError: nothing is
    left of it, but what a disk that fails does not let us remove."""
    parent, made = os.path.dirname(target), target + INCOMPLETE
    vfs.make_directory(parent)
    remove(vfs, made)
    try:
        vfs.mkdir(made)
        for table in tables:
            vfs.duplicate(table_path(source, table.number), table_path(made, table.number))
        _write_manifest(vfs, os.path.join(made, "manifest"), engine_id, state, tables)
        vfs.sync_directory(made)
        vfs.rename(made, target)
        made = target
        vfs.sync_directory(parent)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(vfs, made)
        raise


def _write_manifest(
    vfs: Vfs, directory: str, engine_id: int, state: State, tables: Collection[TableMeta]
) -> None:
    vfs.mkdir(directory)
    manifest = Manifest(directory, vfs)
    try:
        manifest.commit(engine_id, state, tables, ())
    except EngineFailed as error:  # of this manifest only: the engine goes on
        raise OSError(errno.EIO, str(error), directory) from error
    finally:
        manifest.close()


def remove(vfs: Vfs, directory: str) -> None:
    """Remove a checkpoint, or what was made of one, if anything was."""
    try:
        names = vfs.listdir(directory)
    except FileNotFoundError:
        return
    foreign = [name for name in names if not OURS.fullmatch(name)]
    if foreign:
        what = f"{foreign[0]} is no part of a checkpoint that was given up: remove it, or choose another name"
        raise OSError(errno.ENOTEMPTY, what, directory)
    for name in names:
        path = os.path.join(directory, name)
        if name == "manifest":
            for file in vfs.listdir(path):
                vfs.unlink(os.path.join(path, file))
            vfs.rmdir(path)
        else:
            vfs.unlink(path)
    vfs.rmdir(directory)
