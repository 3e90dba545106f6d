"""Every operation on the disk fails once while a replica's engine flushes, and while it installs: what it
said was durable stays, content and state stay one, and what can go on does."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from storenode.engine import EngineFailed, EngineReadOnly, Options
from storenode.engine.vfs import Vfs
from tests.crash.crashvfs import CrashVfs, Step
from tests.crash.diskfault import Fault
from tests.crash.replicalife import ReplicaLife, is_state_of, nothing_yet
from tests.unit.storenode.engine.replica_counter import count_of

SMALL = Options(
    memtable_bytes=1 << 12, table_bytes=1 << 12, base_bytes=1 << 12, level_ratio=2, level0_trigger=2
)
MOST = 60
"""More operations of one kind than there are."""

LEAST = {"create": 1, "link": 1, "sync": 2, "sync directory": 2, "commit": 2, "unlink": 0}
"""How many operations of each kind there are at least: of a flush and an installation, without what workers
do in between or later."""

FINAL = ("sync", "sync directory")
"""After these nobody knows what is durable, unless it was for want of room."""


def life_in(place: Path, name: str) -> ReplicaLife:
    directory = str(place / name)
    os.mkdir(directory)
    return ReplicaLife(CrashVfs(directory), directory, SMALL, nothing_yet(), random.Random(7))


def in_engine(fault: Fault) -> Fault:
    """Only what happens to the engine's own files, not to those that arrive."""

    class Own(Fault):
        def __call__(self, vfs: CrashVfs, step: Step) -> None:
            if "incoming" not in step.path:
                super().__call__(vfs, step)

    return Own(fault.kind, fault.left, fault.error)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("kind", LEAST)
def test_each_operation_of_a_flush_and_of_an_installation_fails_once(
    place: Path,
    kind: str,
    number: int,
) -> None:
    struck = 0
    for n in range(1, MOST):
        life = life_in(place, f"{n}")
        life.open()
        assert life.engine is not None
        for _ in range(15):
            life.entry()
        life.flush()
        fault = in_engine(Fault(kind, n, number))
        assert isinstance(life.vfs, CrashVfs)
        life.vfs.hook = fault
        failed = False
        for act in (flush_after_entries, install):
            try:
                act(life)
            except EngineFailed:
                failed = True
            except (EngineReadOnly, OSError):
                act(life)  # the disk is well again
            assert count_of(life.engine.flushed_state) >= life.promised
        life.vfs.hook = None
        if not fault.struck:
            assert not failed
            life.close()
            break
        struck += 1
        assert failed <= (kind in FINAL)
        check(life)
    assert not fault.struck
    assert struck >= LEAST[kind]


def flush_after_entries(life: ReplicaLife) -> None:
    for _ in range(3):
        life.entry()
    life.flush()


def install(life: ReplicaLife) -> None:
    life.install(more=5)


def check(life: ReplicaLife) -> None:
    """Content and state are one now, and after a crash of now."""
    assert life.engine is not None
    life.look()
    expected = life.expected()
    assert isinstance(life.vfs, CrashVfs)
    crash = life.vfs.crash(Step("after", "fault", ""))
    life.engine.close()
    life.shared.close()
    assert is_state_of(life.engine.flushed_state, count_of(life.engine.flushed_state))
    crash.lose_power(life.directory + "-after", random.Random(1))
    again = ReplicaLife(Vfs(), life.directory + "-after", SMALL, expected, random.Random(2))
    again.open()
    again.catch_up()
    again.flush()
    again.look()
    again.close()
