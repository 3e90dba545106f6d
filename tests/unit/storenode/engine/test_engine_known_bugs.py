"""Bugs that other engines had, each as a test of this one. Where a test for a class of bug stands elsewhere,
it is not repeated here."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import Corruption
from storenode.engine import Engine, EngineReadOnly, Options, Shared, codec
from storenode.engine.background import COMPACTION, FLUSH
from storenode.engine.compaction import EVERYTHING
from storenode.engine.iterator import Iterator as Pairs
from storenode.engine.job import Job
from storenode.engine.manifest import State
from storenode.engine.memtable import Memtable
from storenode.engine.table import Cache, Table
from storenode.engine.vfs import File, Vfs
from storenode.engine.view import View
from tests.property.engine_mutation import FILE_ID, put_together, take_apart

KEYS = [b"key-%04d" % number for number in range(300)]
VALUE = b"value " * 20

SMALL = Options(
    memtable_bytes=16 << 10, block_bytes=512, table_bytes=16 << 10, base_bytes=32 << 10, level0_trigger=2
)
NO_COMPACTION = Options(memtable_bytes=16 << 10, level0_trigger=1000, level0_slow=1000, level0_stop=1000)


class Watched(Vfs):
    """The machine's file system, with a handle on the open tables and a disk that can be full for tables."""

    def __init__(self) -> None:
        self.tables: list[tuple[str, int]] = []
        self.full = False

    def open(self, path: str, *, writable: bool = False) -> File:
        file = super().open(path, writable=writable)
        if path.endswith(".sst"):
            self.tables.append((path, file.fd))
        return file

    def create(self, path: str) -> File:
        if self.full and path.endswith(".sst"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return super().create(path)


@contextmanager
def opened(
    directory: Path,
    options: Options = SMALL,
    *,
    vfs: Vfs | None = None,
    workers: int = 2,
    cache_bytes: int = 0,
) -> Iterator[Engine]:
    shared = Shared(str(directory), vfs=vfs, workers=workers, cache_bytes=cache_bytes)
    try:
        with engine_package.open(str(directory), options=options, shared=shared) as engine:
            yield engine
    finally:
        shared.close()


def fill(engine: Engine, value: bytes = VALUE) -> None:
    for key in KEYS:
        engine.put(key, value)


@contextmanager
def reads_of(files: list[tuple[str, int]], other: str) -> Iterator[None]:
    """Reads of open files go elsewhere for a while."""
    instead = os.open(other, os.O_RDONLY)
    still_open = {fd for path, fd in files if os.path.realpath(f"/proc/self/fd/{fd}") == path}
    kept = [(fd, os.dup(fd)) for fd in still_open]
    assert kept
    for fd, _ in kept:
        os.dup2(instead, fd)
    try:
        yield
    finally:
        for fd, copy in kept:
            os.dup2(copy, fd)
            os.close(copy)
        os.close(instead)


@pytest.mark.parametrize(("instead", "error"), [("/", OSError), (os.devnull, Corruption)])
def test_a_table_that_cannot_be_read_is_not_taken_for_one_that_has_ended(
    tmp_path: Path, instead: str, error: type[Exception]
) -> None:
    """RocksDB: a read error in a file's first block meant "no more keys" to a compaction, which then dropped
    the file."""
    vfs = Watched()
    with opened(tmp_path, NO_COMPACTION, vfs=vfs) as engine:
        for value in (b"old", VALUE):
            fill(engine, value)
            engine.flush()
        with reads_of(vfs.tables, instead):
            with pytest.raises((EngineReadOnly, error)):
                engine.compact()
            with pytest.raises(error):
                engine.scan()
            with pytest.raises(error):
                engine.get(KEYS[0])
        assert engine.scan() == [(key, VALUE) for key in KEYS]
        engine.compact()
        assert engine.scan() == [(key, VALUE) for key in KEYS]
        assert engine.verify() == []


def test_no_second_compaction_is_given_out_while_one_is_running(tmp_path: Path) -> None:
    """RocksDB: two compactions took the same file, and deleted keys came back."""
    with opened(tmp_path, NO_COMPACTION, workers=3) as engine:
        fill(engine)
        engine.flush()
        engine.background.wanted = EVERYTHING
        with engine.shared._condition:
            assert COMPACTION in [due.kind for due in engine.background.due(only_flushes=False)] or (
                COMPACTION in engine.background.running
            )
            engine.background.running.add(COMPACTION)
            assert COMPACTION not in [due.kind for due in engine.background.due(only_flushes=False)]
            engine.background.running.discard(COMPACTION)
        engine.compact()


def run_job(directory: Path, number: int, memtables: tuple[Memtable, ...], tables: tuple[Table, ...]) -> Job:
    """A job that has written its one table."""
    job = Job(
        str(directory),
        memtables,
        tuple((table,) for table in tables),
        (),
        (),
        now_ms=0,
        table_bytes=1 << 20,
        overlap_bytes_max=1 << 20,
        block_bytes=64,
        bits_per_key=10,
    )
    file = Vfs().create(str(directory / f"{number:06d}.sst"))
    try:
        while job.step() == 1:
            job.open_table(file.fd, number, FILE_ID | number, 0)
    finally:
        file.close()
    return job


def test_what_goes_into_a_job_comes_out_or_is_counted(tmp_path: Path) -> None:
    memtables = (Memtable(), Memtable())
    for sequence, memtable in ((9, memtables[0]), (3, memtables[1])):
        memtable.add(b"both", sequence, 1, b"value")
        memtable.add(b"only %d" % sequence, sequence + 1, 1, b"value")
    memtables[0].add(b"gone", 12, 0)
    job = run_job(tmp_path, 1, memtables, ())
    counted = {"entries_in": 5, "entries_out": 3, "dropped_shadowed": 1, "dropped_absent": 1}
    assert job.counts().items() >= counted.items()
    assert job.finished()["entries"] == 3


def test_a_table_out_of_order_is_never_compacted_into_another_and_no_scan_goes_round_in_it(
    tmp_path: Path,
) -> None:
    """Its checksums are right, as if memory had failed while it was written: blocks 2 and 3 have changed
    places."""
    memtable = Memtable()
    for sequence, key in enumerate(KEYS[:40], start=1):
        memtable.add(key, sequence, 1, VALUE)
    run_job(tmp_path, 1, (memtable,), ())
    parts = take_apart((tmp_path / "000001.sst").read_bytes())
    parts.data[2], parts.data[3] = parts.data[3], parts.data[2]
    path = tmp_path / "000000.sst"
    path.write_bytes(put_together(parts))
    cache = Cache(1 << 20)
    table = Table(cache, Vfs().open(str(path)), 0, FILE_ID, path.stat().st_size, KEYS[0], KEYS[39])
    assert sorted(key for key, *_ in table.entries()) == KEYS[:40]
    with pytest.raises(Corruption, match="keys out of order"):
        run_job(tmp_path, 2, (), (table,))
    view = View(cache, str(tmp_path), (Memtable(),), ((table,),))
    for reverse in (False, True):
        with pytest.raises(Corruption, match=r"000000\.sst: keys out of order \(offset \d+\)"):
            list(Pairs(view, b"", None, 100, reverse, 1 << 50, 0))


def test_a_deletion_in_the_log_is_not_passed_over_at_a_damaged_block(tmp_path: Path) -> None:
    """Our own: replay left out what could not be decided, and the deleted key was back."""
    with opened(tmp_path, NO_COMPACTION) as engine:
        fill(engine)
        engine.compact()
        engine.delete(KEYS[7])
    (path,) = tmp_path.glob("*.sst")
    content = path.read_bytes()
    at = int.from_bytes(content[-64:-56], "little")  # the filter: opening does not read it
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(Corruption, match=rf"{path.name}: .*offset {at}"), opened(tmp_path, NO_COMPACTION):
        pass
    path.write_bytes(content)
    with opened(tmp_path, NO_COMPACTION) as engine:
        assert engine.get(KEYS[7]) is None
        assert len(engine.scan()) == len(KEYS) - 1


def test_a_delete_that_cannot_tell_whether_the_key_is_there_says_so(tmp_path: Path) -> None:
    """Our own: the answer of the log entry was dropped, and the key was still there."""
    with opened(tmp_path, NO_COMPACTION) as engine:
        fill(engine)
        engine.compact()
        (table,) = engine.tree.version.tables()
        path = tmp_path / f"{table.number:06d}.sst"
        content = path.read_bytes()
        at = int.from_bytes(content[-64:-56], "little")
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(Corruption, match=rf"table {path.stem}, offset {at}: block checksum mismatch"):
            engine.delete(KEYS[7])
        path.write_bytes(content)
        assert engine.get(KEYS[7]) is not None


def test_a_sequence_that_cannot_be_is_corruption(tmp_path: Path) -> None:
    """Our own: an engine that opened, and then refused every write."""
    record = codec.wal_records([(1 << 56, 1, protocol.encode_put(b"key", b"value"))], 1, 48, 0)
    (tmp_path / "000001.wal").write_bytes(codec.wal_header(0, 1, 0, 0) + record)
    with pytest.raises(Corruption, match=r"000001\.wal: there is no sequence"), opened(tmp_path):
        pass


def test_an_idle_engine_works_off_its_backlog(tmp_path: Path) -> None:
    """Engines that compacted only when somebody wrote kept hundreds of files in level 0 for ever."""
    with opened(tmp_path, NO_COMPACTION) as engine:
        for _ in range(6):
            fill(engine)
            engine.flush()
        assert len(engine.tree.version.levels[0]) >= 6
    with opened(tmp_path) as engine:
        engine.shared.wait_for(
            lambda: (
                len(engine.tree.version.levels[0]) < SMALL.level0_trigger or bool(engine.background.failures)
            )
        )
        assert engine.background.failures == {}
        assert engine.scan() == [(key, VALUE) for key in KEYS]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stalled_write_ends_with_the_reason_or_with_the_stall(tmp_path: Path, workers: int) -> None:
    """Many: writes that waited for ever for a flush that could not be done, or that nobody had scheduled."""
    vfs = Watched()
    with opened(tmp_path, vfs=vfs, workers=workers) as engine:
        vfs.full = True
        stalls = 0
        while not stalls:  # four memtables are all the memory there is
            try:
                fill(engine)
            except EngineReadOnly:
                stalls += 1
        assert engine.pressure() == 2
        vfs.full = False
        for _ in range(3):
            fill(engine)
        assert engine.stats()["failures"] == {}
        assert engine.scan() == [(key, VALUE) for key in KEYS]


def test_who_waits_for_workers_waits_again_when_another_thread_has_undone_it(tmp_path: Path) -> None:
    """Our own: a stalled write was told that the engine was closed, for another had taken the room."""
    with opened(tmp_path) as engine:
        there_is_room = iter([True, False, True, True])
        engine._wait_until(lambda: next(there_is_room), FLUSH)
        assert next(there_is_room, None) is None


def test_the_space_of_deleted_keys_comes_back(tmp_path: Path) -> None:
    """Nothing is left of an engine whose keys were all deleted: no table, and no old log."""
    with opened(tmp_path) as engine:
        fill(engine)
        engine.flush()
        engine.write(b"".join(protocol.encode_delete(key) for key in KEYS))
        engine.compact()
        assert engine.scan() == []
        assert list(engine.tree.version.tables()) == []
    assert list(tmp_path.glob("*.sst")) == []
    assert len(list(tmp_path.glob("*.wal"))) <= 1


def test_replay_ends_memtables_as_writing_does(tmp_path: Path) -> None:
    """fjall: a log of any length was replayed into one memtable."""
    with opened(tmp_path, Options()) as engine:
        for _ in range(5):
            fill(engine)
    vfs = Watched()
    vfs.full = True  # so that they can be counted
    with opened(tmp_path, vfs=vfs) as engine:
        retired = [one.memtable.memory_bytes for one in engine.tree.retired]
        assert len(retired) >= 5
        assert max(retired) < 4 * SMALL.memtable_bytes
        assert engine.scan() == [(key, VALUE) for key in KEYS]


def test_a_manifest_that_lags_behind_is_noticed_while_the_engine_runs(tmp_path: Path) -> None:
    """RocksDB: a manifest that was not written any more was noticed at the next start, two weeks later."""
    with opened(tmp_path) as engine:
        fill(engine)
        engine.flush()
        engine.compact()
        assert engine.verify() == []
        state, tables = engine.shared.manifest.load(engine.engine_id)
        assert state is not None
        engine.shared.manifest.commit(engine.engine_id, State(*state)._replace(flushed_sequence=1), (), ())
        assert any("manifest" in problem for problem in engine.verify())
        engine.shared.manifest.commit(engine.engine_id, state, (), {tables[0].number})
        assert any("manifest" in problem for problem in engine.verify())


def test_running_out_of_file_descriptors_loses_nothing(tmp_path: Path) -> None:
    """Scylla: EMFILE with many shards. A flush that gets no descriptor says so, and is done later."""
    with opened(tmp_path) as engine:
        engine.put(b"key", VALUE, sync=True)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, hard))
            with contextlib.suppress(OSError):
                while True:
                    spare.append(os.dup(0))
            with pytest.raises(EngineReadOnly, match=os.strerror(errno.EMFILE)):
                engine.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in spare:
                os.close(fd)
        assert engine.get(b"key") == VALUE
        engine.put(b"other", VALUE, sync=True)
        engine.flush()
        assert engine.scan() == [(b"key", VALUE), (b"other", VALUE)]
        assert engine.verify() == []


def test_closing_under_a_scan_of_another_thread_harms_neither(tmp_path: Path) -> None:
    """python-rocksdb, electrumx: closing with an iterator in use was a crash of the process."""
    for _ in range(5):
        failures: list[BaseException] = []
        scanning = threading.Event()
        with opened(tmp_path) as engine:
            fill(engine)
            snapshot = engine.snapshot()

            def scan() -> None:
                try:
                    for turn in range(60):
                        assert snapshot.scan(reverse=turn % 2 == 1)[:: 1 - 2 * (turn % 2)] == [  # noqa: B023
                            (key, VALUE) for key in KEYS
                        ]
                        scanning.set()  # noqa: B023
                except BaseException as error:  # noqa: BLE001 - told by the test's own thread
                    failures.append(error)  # noqa: B023
                    scanning.set()  # noqa: B023

            thread = threading.Thread(target=scan)
            thread.start()
            assert scanning.wait(30)
            engine.compact()
        thread.join(30)
        assert not thread.is_alive()
        assert failures == []
        snapshot.close()
