"""An engine's directory for damage tests, and what may be read from it.

Entry n of a specimen is a function of n alone: puts over older values, and deletions. So the content after
any number of entries is known, and an old value or a deleted key that comes back shows.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from pathlib import Path

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Engine, Options, Shared
from storenode.engine.vfs import File, Vfs

ENTRIES = 260
COMPACTED = 120
FLUSHED = 160
"""Entries up to these are in the lower levels, and in level 0; the rest is in logs only."""

OPS_AN_ENTRY = 8
KEYS = 500

OPTIONS = Options(
    memtable_bytes=12 << 10,
    block_bytes=512,
    table_bytes=12 << 10,
    base_bytes=24 << 10,
    level_ratio=2,
    level0_trigger=3,
)

Content = dict[bytes, bytes]


def operations(entry: int) -> list[tuple[bytes, bytes | None]]:
    """Key and value of each op of an entry; None: deleted."""
    found: list[tuple[bytes, bytes | None]] = []
    for position in range(OPS_AN_ENTRY):
        number = (entry * 131 + position * 37) % KEYS
        key = b"key-%04d" % number
        size = entry * 7 % 200
        filling = random.Random(entry).randbytes(size) if number % 3 else b"v" * size  # compressed, or not
        deleted = (entry + position) % 5 == 0
        found.append((key, None if deleted else b"%d of %d " % (number, entry) + filling))
    return found


def content_after(entries: int) -> Content:
    content: Content = {}
    for entry in range(1, entries + 1):
        for key, value in operations(entry):
            if value is None:
                content.pop(key, None)
            else:
                content[key] = value
    return content


def apply_entry(engine: Engine, entry: int) -> None:
    ops = b"".join(
        protocol.encode_delete(key) if value is None else protocol.encode_put(key, value)
        for key, value in operations(entry)
    )
    first = engine.next_sequence
    engine.apply(ops, first, entry, engine.append([(first, entry, ops)]))


def entries_of(engine: Engine) -> int:
    """How many entries an engine has, whole ones."""
    entries, rest = divmod(engine.next_sequence - 1, OPS_AN_ENTRY)
    assert rest == 0, "a part of an entry"
    return entries


class NoTables(Vfs):
    """A disk on which logs find room, but tables do not while `full`: so logs pile up."""

    full = False

    def create(self, path: str) -> File:
        if self.full and path.endswith(".sst"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return super().create(path)


def come_to_rest(engine: Engine) -> None:
    """Wait until nothing is compacted any more, and no replaced table is left."""
    background = engine.background
    engine.shared.wait_for(lambda: not background.running and not background.due(only_flushes=False))
    deadline = time.monotonic() + 30
    while len(list(Path(engine.directory).glob("*.sst"))) > sum(1 for _ in engine.tree.version.tables()):
        assert time.monotonic() < deadline, "a replaced table is not removed"
        time.sleep(0.01)


def make(directory: Path) -> tuple[Path, Path]:
    """Two specimens: one as a crash leaves it, one cleanly closed."""
    crashed, closed = directory / "crashed", directory / "closed"
    vfs = NoTables()
    shared = Shared(str(closed), vfs=vfs)
    engine = engine_package.open(str(closed), options=OPTIONS, shared=shared)
    for entry in range(1, ENTRIES + 1):
        apply_entry(engine, entry)
        if entry == COMPACTED:
            engine.compact()
        if entry == FLUSHED:
            engine.flush()
            come_to_rest(engine)
            vfs.full = True
    shutil.copytree(closed, crashed)
    engine.close()
    shared.close()
    assert len(list(crashed.glob("*.wal"))) >= 3
    assert len(list(crashed.glob("*.sst"))) >= 3
    return crashed, closed
