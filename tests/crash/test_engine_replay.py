"""Replaying a log gives what applying it gave: no answer changes, and nothing refused comes back."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import InvalidRequest
from storenode.engine import Engine, EngineReadOnly, Options, Shared
from storenode.engine.background import COMPACTION, FLUSH, Failure
from storenode.engine.compaction import EVERYTHING
from storenode.engine.vfs import File, Vfs


def run(engine: Engine, ops: bytes, now: int) -> list[Any]:
    first = engine.next_sequence
    return protocol.decode_results(engine.apply(ops, first, now, engine.append([(first, now, ops)])))


def after_a_crash(directory: Path) -> Path:
    """A copy of what is on the disk now, as a process finds it that starts after this one was killed."""

    def copy_if_there(source: str, target: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # a worker removes what nobody needs
            shutil.copy(source, target)

    copy = directory.parent / "after-a-crash"
    shutil.copytree(directory, copy, copy_function=copy_if_there)
    return copy


def hold(engine: Engine, kind: str) -> None:
    """No job of this kind until `retry_now`."""
    engine.background.failures[kind] = Failure(OSError(), 1.0, time.monotonic() + 600)


def test_replay_is_not_changed_by_a_compaction_that_ran_at_a_later_time(tmp_path: Path) -> None:
    """The compaction must not drop what an entry that is only in the log still has to find."""
    directory = tmp_path / "engine"
    options = Options(level0_trigger=1)
    with engine_package.open(str(directory), options=options) as engine:
        background = engine.background
        hold(engine, COMPACTION)
        run(engine, protocol.encode_put(b"k", b"1", 1000), 1000)
        run(engine, protocol.encode_put(b"n", b"7", 1000), 1000)
        engine.flush()
        hold(engine, COMPACTION)
        assert run(engine, protocol.encode_put(b"k", b"2", None, (1,)), 1500) == [[2, 1]]
        assert run(engine, protocol.encode_increment(b"n", 1), 1500) == [[0, 8, 4]]
        assert run(engine, protocol.encode_put(b"later", b""), 9000) == [[0, 5]]
        background.wanted = EVERYTHING
        background.retry_now()
        engine.shared.wake()
        engine.shared.wait_for(lambda: background.wanted is None)
        before = engine.scan(), engine.next_sequence, engine.stats()["levels"][0]["tables"]
        copy = after_a_crash(directory)
    assert before == ([(b"later", b"")], 6, 0)
    with engine_package.open(str(copy), options=options) as engine:
        assert (engine.scan(), engine.next_sequence, 0) == before


def test_entries_that_change_nothing_do_not_keep_their_logs_for_ever(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path), options=Options(memtable_bytes=1)) as engine:
        for number in range(50):
            assert run(engine, protocol.encode_delete(b"missing"), 1000 + number) == [[1]]
        engine.shared.wait_for(lambda: not engine.tree.retired and not engine.shared._obsolete)
        engine.flush()
    assert len(list(tmp_path.glob("*.wal"))) < 5
    with engine_package.open(str(tmp_path)) as engine:
        assert engine.next_sequence == 51


def test_time_does_not_go_back_with_a_dropped_log_whose_entries_changed_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "engine"
    with engine_package.open(str(directory), options=Options(memtable_bytes=1)) as engine:
        hold(engine, FLUSH)  # until the log of the deletion is over
        run(engine, protocol.encode_put(b"k", b""), 1000)
        run(engine, protocol.encode_delete(b"missing"), 5000)
        run(engine, protocol.encode_put(b"t", b"", 100), 2000)  # the clock was set back: counts as 5000
        engine.background.retry_now()
        engine.shared.wake()
        engine.shared.wait_for(lambda: not engine.tree.retired)
        copy = after_a_crash(directory)
    with engine_package.open(str(copy)) as engine:
        assert protocol.decode_results(engine.read(protocol.encode_get(b"t"), 5040)) == [[0, b"", 3, 60]]


def test_a_stream_that_was_refused_does_not_move_time_when_it_is_replayed(tmp_path: Path) -> None:
    directory = tmp_path / "engine"
    with engine_package.open(str(directory)) as engine:
        with pytest.raises(InvalidRequest):
            run(engine, b"nonsense", 9000)
        run(engine, protocol.encode_put(b"t", b"", 100), 1000)
        copy = after_a_crash(directory)
    with engine_package.open(str(copy)) as engine:
        assert protocol.decode_results(engine.read(protocol.encode_get(b"t"), 1040)) == [[0, b"", 1, 60]]


class PowerCut(Vfs):
    """Remembers how long each log was when it was last synced."""

    def __init__(self) -> None:
        self.durable: dict[str, int] = {}

    def create(self, path: str) -> File:
        return PowerCutFile(self, path, super().create(path).fd)


class PowerCutFile(File):
    def __init__(self, disk: PowerCut, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self.disk = disk

    def sync(self) -> None:
        super().sync()
        self.disk.durable[os.path.basename(self.path)] = os.fstat(self.fd).st_size


def test_a_power_cut_between_a_flush_and_its_commit_does_not_keep_the_engine_from_opening(
    tmp_path: Path,
) -> None:
    """A table must not be durable before the log of its entries is, also if they were not to be synced:
    alone, it looks like a proof that the manifest is an old one."""
    directory = tmp_path / "engine"
    disk = PowerCut()
    shared = Shared(str(directory), vfs=disk)
    engine = engine_package.open(str(directory), shared=shared)
    for number in range(10):
        engine.put(b"%d" % number, b"", sync=False)
    copies: list[tuple[Path, dict[str, int]]] = []
    commit = shared.manifest.commit

    def cut(*arguments: Any) -> None:
        copies.append((after_a_crash(directory), dict(disk.durable)))
        commit(*arguments)

    shared.manifest.commit = cut  # type: ignore[method-assign]
    engine.flush()
    engine.close()
    shared.close()
    ((copy, durable),) = copies
    assert len(list(copy.glob("*.sst"))) == 1
    (log,) = copy.glob("*.wal")
    os.truncate(log, durable[log.name])
    with engine_package.open(str(copy)) as engine:
        assert engine.scan() == [(b"%d" % number, b"") for number in range(10)]


class Refusing(Vfs):
    """Logs find no room while `full`; writes down what became durable after a refusal."""

    def __init__(self) -> None:
        self.full = False
        self.events: list[str] = []

    def create(self, path: str) -> File:
        return RefusingFile(self, path, super().create(path).fd)

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self.events.append("unlink")

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self.events.append("sync directory")


class RefusingFile(File):
    def __init__(self, disk: Refusing, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self.disk = disk

    def write_at(self, offset: int, data: bytes) -> None:
        super().write_at(offset, data)
        if self.disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def truncate(self, size: int) -> None:
        super().truncate(size)
        self.disk.events.append("truncate")

    def sync(self) -> None:
        super().sync()
        self.disk.events.append("sync")


@pytest.mark.parametrize(
    ("memtable_bytes", "expected"), [(1 << 20, ["truncate", "sync"]), (1, ["unlink", "sync directory"])]
)
def test_that_an_entry_was_refused_is_durable_before_it_is_said(
    tmp_path: Path, memtable_bytes: int, expected: list[str]
) -> None:
    disk = Refusing()
    shared = Shared(str(tmp_path), vfs=disk, workers=1)
    engine = engine_package.open(str(tmp_path), options=Options(memtable_bytes=memtable_bytes), shared=shared)
    engine.background.stop()  # only the log's events count here
    run(engine, protocol.encode_put(b"k", b""), 0)
    disk.full = True
    mark = len(disk.events)
    with pytest.raises(EngineReadOnly):
        run(engine, protocol.encode_put(b"l", b""), 0)
    assert disk.events[mark:] == expected
    engine.close()
    shared.close()
