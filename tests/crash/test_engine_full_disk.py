"""An engine on a disk that is full, read-only, or fails to sync: nothing acknowledged is lost."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Engine, EngineFailed, EngineReadOnly, Options, Shared
from storenode.engine.vfs import File, Vfs


def log_and_apply(engine: Engine, number: int, count: int = 1) -> None:
    """Entry `number`: `count` puts whose values tell their keys."""
    ops = b"".join(protocol.encode_put(*pair(number * 1000 + i)) for i in range(count))
    first = engine.next_sequence
    wal = engine.append([(first, 1000 + number, ops)])
    engine.apply(ops, first, 1000 + number, wal)


def pair(number: int) -> tuple[bytes, bytes]:
    return b"key-%08d" % number, b"value-%08d" % number


def logs(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.wal"))


class NoTables(Vfs):
    """A disk on which logs find room, but tables do not while `full`."""

    def __init__(self) -> None:
        self.full = True

    def create(self, path: str) -> File:
        if self.full and path.endswith(".sst"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return super().create(path)


class FullDisk(Vfs):
    """A disk that takes no more than `room` bytes of logs, and whose syncs can be made to fail."""

    def __init__(self) -> None:
        self.room = 1 << 30
        self.error = errno.ENOSPC
        self.sync_fails = False

    def create(self, path: str) -> File:
        return FullDiskFile(self, path, super().create(path).fd)


class FullDiskFile(File):
    """Writes what there is room for, then fails, as a file system does."""

    def __init__(self, disk: FullDisk, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self.disk = disk

    def write_at(self, offset: int, data: bytes) -> None:
        super().write_at(offset, data[: self.disk.room])
        if len(data) > self.disk.room:
            raise OSError(self.disk.error, os.strerror(self.disk.error), self.path)

    def sync(self) -> None:
        if self.disk.sync_fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)
        super().sync()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_log_without_room_is_cut_back_and_goes_on_when_there_is_room(tmp_path: Path, error: int) -> None:
    disk = FullDisk()
    shared = Shared(str(tmp_path), vfs=disk)
    engine = engine_package.open(str(tmp_path), shared=shared)
    log_and_apply(engine, 1)
    length = logs(tmp_path)[0].stat().st_size
    disk.error = error
    for room in (0, 1, 40, 60):
        disk.room = room
        with pytest.raises(EngineReadOnly, match=rf"000001\.wal: {os.strerror(error)}"):
            log_and_apply(engine, 2)
        assert logs(tmp_path)[0].stat().st_size == length
    assert engine.get(pair(1000)[0]) == pair(1000)[1]
    disk.room = 1 << 30
    log_and_apply(engine, 2)
    engine.close()
    shared.close()
    with engine_package.open(str(tmp_path)) as engine:
        assert engine.scan() == [pair(1000), pair(2000)]


def test_a_new_log_without_room_leaves_the_old_one_in_use(tmp_path: Path) -> None:
    disk = FullDisk()
    shared = Shared(str(tmp_path), vfs=disk)
    engine = engine_package.open(str(tmp_path), options=Options(memtable_bytes=1), shared=shared)
    log_and_apply(engine, 1)
    disk.room = 10
    with pytest.raises(EngineReadOnly):
        log_and_apply(engine, 2)
    disk.room = 1 << 30
    log_and_apply(engine, 2)
    engine.close()
    shared.close()
    with engine_package.open(str(tmp_path)) as engine:
        assert engine.scan() == [pair(1000), pair(2000)]


def test_a_failed_sync_is_final(tmp_path: Path) -> None:
    disk = FullDisk()
    shared = Shared(str(tmp_path), vfs=disk)
    engine = engine_package.open(str(tmp_path), shared=shared)
    log_and_apply(engine, 1)
    disk.sync_fails = True
    with pytest.raises(EngineFailed, match="sync failed"):
        log_and_apply(engine, 2)
    disk.sync_fails = False
    with pytest.raises(EngineFailed, match="open the engine anew"):
        log_and_apply(engine, 3)
    assert engine.get(pair(1000)[0]) == pair(1000)[1]
    engine.close()
    shared.close()


def test_a_replica_says_when_its_writes_wait_for_room_on_the_disk(tmp_path: Path) -> None:
    disk = NoTables()
    shared = Shared(str(tmp_path), workers=0, vfs=disk)
    engine = engine_package.open_replica(str(tmp_path / "0"), shared=shared, engine_id=0)
    engine.on_retire = lambda: b"state"
    sequence = 1
    while engine.pressure() < 2:
        assert engine.out_of_room is None
        engine.apply([protocol.encode_put(b"key", b"value")], sequence, 0)
        engine.end_entry()
        engine.flush(wait=False)
        shared.run_pending()
        sequence += 1
    assert engine.out_of_room is not None
    assert engine.out_of_room.errno == errno.ENOSPC
    disk.full = False
    engine.flush()
    assert engine.out_of_room is None
    engine.close()
    shared.close()


def test_a_flush_without_room_loses_nothing_and_is_done_when_there_is_room(tmp_path: Path) -> None:
    disk = NoTables()
    shared = Shared(str(tmp_path), vfs=disk)
    engine = engine_package.open(str(tmp_path), shared=shared)
    log_and_apply(engine, 1, count=10)
    with pytest.raises(EngineReadOnly, match="No space left"):
        engine.flush()
    assert "No space left" in engine.stats()["failures"]["flush"]["error"]
    failed = engine.stats()["jobs_failed"]
    assert engine.scan() == [pair(1000 + i) for i in range(10)]
    log_and_apply(engine, 2)
    assert engine.stats()["jobs_failed"] <= failed + 1, "a failing job must not spin"
    disk.full = False
    engine.flush()
    assert engine.stats()["failures"] == {}
    assert engine.stats()["flushed_sequence"] == 11
    engine.close()
    shared.close()
    with engine_package.open(str(tmp_path)) as engine:
        assert engine.scan() == [pair(1000 + i) for i in range(10)] + [pair(2000)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 8 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize("short", [True, False], ids=["put", "apply"])
def test_a_really_full_disk_stops_writes_and_loses_nothing(small_disk: Path, short: bool) -> None:
    options = Options(memtable_bytes=1 << 18, table_bytes=1 << 18, base_bytes=1 << 20)
    value = random.Random(1).randbytes(1000)  # one that compression cannot make small
    engine = engine_package.open(str(small_disk / "engine"), options=options)

    def write_all() -> None:
        for number in range(100_000):
            if short:
                engine.put(b"%08d" % number, value)
                continue
            ops = protocol.encode_put(b"%08d" % number, value)
            first = engine.next_sequence
            engine.apply(ops, first, 0, engine.append([(first, 0, ops)]))

    with pytest.raises(EngineReadOnly, match="No space left on device"):
        write_all()
    written = engine.next_sequence - 1
    assert written > 1000
    assert len(engine.scan()) == written
    engine.close()
    with engine_package.open(str(small_disk / "engine"), options=options) as engine:
        assert engine.scan() == [(b"%08d" % number, value) for number in range(written)]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    with engine_package.open(str(small_disk / "engine"), options=options) as engine:
        engine.compact()
        engine.put(b"one more", b"", sync=True)
        assert len(engine.scan()) == written + 1
        assert engine.verify() == []
