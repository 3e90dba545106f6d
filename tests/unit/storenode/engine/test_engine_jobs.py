"""Workers, opening and closing beside each other: what one does must not harm the other."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import Corruption
from storenode.engine import Engine, EngineFailed, EngineReadOnly, Options, Shared
from storenode.engine.background import COMPACTION, Failure
from storenode.engine.compaction import Proposal
from storenode.engine.jobs import compact
from storenode.engine.options import LEVELS
from storenode.engine.vfs import File, Vfs


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    opened = Shared(str(tmp_path))
    yield opened
    opened.close()


def put(engine: Engine, key: bytes, value: bytes = b"") -> None:
    engine.put(key, value, sync=True)


def test_opening_an_engine_a_second_time_leaves_the_first_ones_files_alone(
    tmp_path: Path, shared: Shared
) -> None:
    path = str(tmp_path / "p")
    with engine_package.open(path, shared=shared) as engine:
        put(engine, b"a")
        unfinished = tmp_path / "p" / "000077.sst"  # what a job is writing just now
        unfinished.write_bytes(b"half a table")
        with open(tmp_path / "p" / "000001.wal", "ab") as log:
            log.write(b"half a record")
        before = (tmp_path / "p" / "000001.wal").read_bytes()
        with pytest.raises(ValueError, match="is open already"):
            engine_package.open(path, shared=shared)
        assert unfinished.exists()
        assert (tmp_path / "p" / "000001.wal").read_bytes() == before
    with engine_package.open(path, shared=shared) as engine:
        assert engine.get(b"a") == b""


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_deletion_stays_above_what_it_hides_in_any_level(
    tmp_path: Path, shared: Shared, depth: int
) -> None:
    options = Options(level0_trigger=100, level0_slow=100, level0_stop=100)
    with engine_package.open(str(tmp_path / "p"), options=options, shared=shared) as engine:
        for key in (b"a", b"b", b"c"):
            put(engine, key, b"older")
        engine.compact()
        engine.delete(b"b")
        engine.flush()
        upper = engine.tree.version.levels[0]
        proposal = Proposal(0, LEVELS - 1 - depth, upper, (), False, 1.0)
        compact(engine.tree, proposal, options, lambda job: False)
        assert engine.scan() == [(b"a", b"older"), (b"c", b"older")]
        assert engine.stats()["table_deletions"] == 1
        engine.compact()
        assert engine.stats()["table_deletions"] == 0


def test_an_engine_that_could_not_be_opened_can_be_opened_later(tmp_path: Path, shared: Shared) -> None:
    path = tmp_path / "p"
    with engine_package.open(str(path), shared=shared) as engine:
        put(engine, b"a")
    log = path / "000001.wal"
    content = log.read_bytes()
    log.write_bytes(b"x" + content[1:])
    with pytest.raises(Corruption):
        engine_package.open(str(path), shared=shared)
    log.write_bytes(content)
    with engine_package.open(str(path), shared=shared) as engine:
        assert engine.get(b"a") == b""


class TakenByAnother(deque[str]):
    """A queue whose last element another worker takes between the look and the grip."""

    def popleft(self) -> str:
        super().popleft()
        return super().popleft()


def test_a_worker_lives_on_when_another_one_removed_the_last_file(tmp_path: Path, shared: Shared) -> None:
    with engine_package.open(str(tmp_path / "p"), shared=shared) as engine:
        shared._obsolete = TakenByAnother()
        shared.discard(str(tmp_path / "gone"))
        put(engine, b"a")
        engine.flush()
        assert all(thread.is_alive() for thread in shared._threads)
        shared._obsolete = deque()


class RemovesLate(Vfs):
    """Removes nothing before somebody has looked whether it is gone."""

    def __init__(self) -> None:
        self.looked_at = threading.Event()

    def unlink(self, path: str) -> None:
        self.looked_at.wait(10)
        super().unlink(path)


def test_who_waits_for_a_file_to_go_hears_of_it(tmp_path: Path) -> None:
    """It was told of jobs only: with none due, the wait had no end."""
    disk = RemovesLate()
    shared = Shared(str(tmp_path), vfs=disk)
    path = tmp_path / "replaced"
    path.touch()

    def gone() -> bool:
        found = path.exists()
        disk.looked_at.set()
        return not found

    shared.discard(str(path))
    waiting = threading.Thread(target=shared.wait_for, args=(gone,), daemon=True)
    waiting.start()
    waiting.join(10)
    assert not waiting.is_alive()
    shared.close()


class Vanishing(Vfs):
    """Another worker removes a replaced table right after it was listed."""

    def listdir(self, path: str) -> list[str]:
        return [*super().listdir(path), "000900.sst"]


def test_a_replaced_table_that_goes_while_the_engine_is_opened_is_no_error(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path), vfs=Vanishing())
    engine_package.open(str(tmp_path / "p"), shared=shared).close()
    shared.close()


class NoRoomFor(Vfs):
    """A disk that has no room for tables while `full`."""

    def __init__(self) -> None:
        self.full = False

    def create(self, path: str) -> File:
        if self.full and path.endswith(".sst"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return super().create(path)


def test_a_compact_that_failed_does_not_stand_in_the_way_of_ordinary_compactions(tmp_path: Path) -> None:
    disk = NoRoomFor()
    shared = Shared(str(tmp_path), vfs=disk)
    with engine_package.open(str(tmp_path / "p"), options=Options(level0_trigger=9), shared=shared) as engine:
        for number in range(3):
            put(engine, b"k", b"%d" % number)
            engine.flush()
        disk.full = True
        with pytest.raises(EngineReadOnly):
            engine.compact()
        assert engine.background.wanted is None
        disk.full = False
        engine.compact()
        assert engine.stats()["tables"] == 1
    shared.close()


def test_a_failing_compaction_is_not_the_error_of_a_flush(tmp_path: Path, shared: Shared) -> None:
    with engine_package.open(str(tmp_path / "p"), shared=shared) as engine:
        put(engine, b"k")
        flush = engine.background._flush

        def slow_flush() -> None:
            engine.background.failures[COMPACTION] = Failure(
                Corruption("000003.sst: damaged"), 30.0, time.monotonic() + 600
            )
            with shared._condition:
                shared._condition.notify_all()
            flush()

        engine.background._flush = slow_flush  # type: ignore[method-assign]
        engine.flush()
        assert engine.stats()["memtable_entries"] == 0


class NoMemory:
    """A view whose entry finds no memory half-way."""

    def __init__(self, engine: Engine) -> None:
        view = engine.tree.view
        assert view is not None
        self.active = view.active

    def apply(self, *arguments: object) -> None:
        raise MemoryError


def test_a_flush_after_an_entry_without_memory_fails_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path)) as engine:
        put(engine, b"a")
        view = engine.tree.view
        engine.tree.view = NoMemory(engine)  # type: ignore[assignment]
        with pytest.raises(MemoryError):
            put(engine, b"b")
        engine.tree.view = view
        with pytest.raises(EngineFailed, match="out of memory"):
            engine.flush()


class SlowSync(Vfs):
    """Syncs of logs wait until they may go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def create(self, path: str) -> File:
        return SlowFile(self, path, super().create(path).fd)


class SlowFile(File):
    def __init__(self, disk: SlowSync, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self.disk = disk

    def sync(self) -> None:
        self.disk.entered.set()
        assert self.disk.go_on.wait(30)
        super().sync()


def test_closing_while_an_append_is_under_way_is_refused(tmp_path: Path) -> None:
    """Its file would be closed under it, and the number of the descriptor may be another file's by then."""
    disk = SlowSync()
    shared = Shared(str(tmp_path), vfs=disk)
    engine = engine_package.open(str(tmp_path), shared=shared)
    logged: list[int] = []
    ops = protocol.encode_put(b"a", b"")
    thread = threading.Thread(target=lambda: logged.append(engine.append([(1, 0, ops)])))
    thread.start()
    assert disk.entered.wait(30)
    with pytest.raises(RuntimeError, match="append"):
        engine.close()
    disk.go_on.set()
    thread.join()
    engine.apply(ops, 1, 0, logged[0])
    engine.close()
    shared.close()


def test_without_workers_jobs_are_done_by_who_asks_or_waits_and_by_nobody_else(tmp_path: Path) -> None:
    others = set(threading.enumerate())
    shared = Shared(str(tmp_path), workers=0)
    engine = engine_package.open(str(tmp_path / "p"), shared=shared, engine_id=0)
    assert not shared.run_pending()
    put(engine, b"a", b"1")
    engine.flush(wait=False)
    assert engine.stats()["tables"] == 0
    assert shared.run_pending()
    assert not shared.run_pending()
    assert engine.stats()["tables"] == 1
    put(engine, b"b", b"2")
    engine.compact()
    assert engine.scan() == [(b"a", b"1"), (b"b", b"2")]
    started = set(threading.enumerate()) - others
    assert not [thread for thread in started if thread.name.startswith("engine-")]
    engine.close()
    shared.close()
