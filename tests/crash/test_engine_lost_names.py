"""A failed sync of the engine's directory: what it lost nobody may build upon, on whichever thread."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import EngineFailed, Shared
from tests.crash.crashvfs import CrashVfs, Step


def test_names_that_a_sync_of_a_log_lost_are_not_vouched_for_by_that_of_a_table(place: Path) -> None:
    """A compaction has made its file when the log's sync of the directory fails; its own succeeds: the disk
    has told already. What it would commit has lost its name."""
    vfs = CrashVfs(str(place))
    shared = Shared(str(place), vfs=vfs)
    engine = engine_package.open(str(place / "engine"), shared=shared)
    stream = protocol.encode_put(b"k", b"v")
    for sequence in (1, 2):
        engine.apply(stream, sequence, 1, engine.append([(sequence, 1, stream)]))
        engine.flush()
    before = list(engine.tree.version.tables())

    def fail(vfs: CrashVfs, step: Step) -> None:
        if (step.when, step.kind) == ("after", "create") and step.path.endswith(".sst"):
            vfs.hook = fail_once
            with pytest.raises(EngineFailed, match="sync failed"):
                engine.append([(3, 2, stream)])

    def fail_once(vfs: CrashVfs, step: Step) -> None:
        if (step.when, step.kind) == ("before", "sync directory"):
            vfs.hook = None
            raise OSError(errno.EIO, os.strerror(errno.EIO), step.path)

    vfs.hook = fail
    with pytest.raises(EngineFailed, match="sync failed"):
        engine.compact()
    assert list(engine.tree.version.tables()) == before
    engine.close()
    shared.close()
