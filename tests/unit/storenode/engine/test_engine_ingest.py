"""What an engine makes of prepared tables: newer than all before, all or none, checked as a whole, at the
right level, also beside compactions."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import InvalidRequest
from storenode.engine import Engine, EngineFailed, EngineReadOnly, Options, Shared, TableWriter
from storenode.engine.compaction import level_for
from storenode.engine.version import TableMeta, Version
from storenode.engine.vfs import File, Vfs

SMALL = Options(
    memtable_bytes=1 << 14, table_bytes=1 << 12, base_bytes=1 << 13, level_ratio=2, level0_trigger=2
)

Entries = dict[bytes, bytes | None]
"""None: deleted."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with engine_package.open(str(tmp_path / "engine")) as opened:
        yield opened


def prepared(path: Path, entries: Entries, deadline_ms: int | None = None) -> str:
    with TableWriter(str(path)) as table:
        for key, value in sorted(entries.items()):
            if value is None:
                table.delete(key)
            else:
                table.add(key, value, deadline_ms)
    return str(path)


def apply(engine: Engine, *ops: bytes, now: int = 1000) -> list[list[object]]:
    stream, first = b"".join(ops), engine.next_sequence
    return protocol.decode_results(engine.apply(stream, first, now, engine.append([(first, now, stream)])))


def test_ingested_entries_are_newer_than_all_before_and_older_than_all_after(
    tmp_path: Path, engine: Engine
) -> None:
    for key in (b"deleted", b"deep", b"flushed", b"kept", b"memory"):
        engine.put(key, b"old")
    engine.compact()
    engine.put(b"flushed", b"older")
    engine.flush()
    engine.put(b"memory", b"older")
    before = engine.next_sequence
    names = (b"deep", b"flushed", b"later", b"memory", b"new")
    engine.ingest([prepared(tmp_path / "p", {**dict.fromkeys(names, b"ingested"), b"deleted": None})])
    assert engine.next_sequence == before + 1
    engine.put(b"later", b"newest")
    expected = dict.fromkeys(names, b"ingested") | {b"kept": b"old", b"later": b"newest"}
    for _ in range(2):
        assert dict(engine.scan()) == expected
        assert engine.scan(reverse=True) == sorted(expected.items(), reverse=True)
        assert engine.multi_get(sorted(expected)) == [expected[key] for key in sorted(expected)]
        assert {key: engine.get(key) for key in expected} == expected
        assert engine.get(b"deleted") is None
        versions = apply(engine, *(protocol.encode_get(key) for key in names if key != b"later"))
        assert versions == [[0, b"ingested", before]] * 4
        assert engine.verify() == []
        engine.compact()


def test_what_was_ingested_lasts_without_a_log(tmp_path: Path) -> None:
    directory = str(tmp_path / "engine")
    with engine_package.open(directory, engine_id=9) as engine:
        engine.ingest([prepared(tmp_path / "p", {b"k": b"v"})])
    for expected in ([(b"k", b"v")], [(b"k", b"w")], [(b"k", b"w")]):
        with engine_package.open(directory) as engine:
            assert engine.engine_id == 9
            assert engine.next_sequence == 2 + (expected[0][1] == b"w")
            assert engine.scan() == expected
            engine.put(b"k", b"w") if engine.next_sequence == 2 else None


def test_the_clock_that_entries_without_effect_have_moved_is_kept(tmp_path: Path) -> None:
    """They are in no memtable, and behind the ingestion no replay looks at them."""
    directory = str(tmp_path / "engine")
    with engine_package.open(directory) as engine:
        apply(engine, protocol.encode_put(b"k", b"v", 1 << 30), now=1 << 43)
        apply(engine, protocol.encode_delete(b"absent"), now=1 << 44)
        engine.ingest([prepared(tmp_path / "p", {b"x": b""})])
        sequence = engine.next_sequence
    with engine_package.open(directory) as engine:
        assert engine.now_ms == 1 << 44
        assert engine.next_sequence == sequence


def test_deadlines_are_times_of_the_engine(tmp_path: Path, engine: Engine) -> None:
    now = 1 << 43
    apply(engine, protocol.encode_put(b"past", b"old"), protocol.encode_put(b"now", b"old"), now=now)
    paths = [
        prepared(tmp_path / str(deadline), {key: b"v"}, deadline)
        for key, deadline in ((b"future", now + 5), (b"now", now), (b"past", 0))
    ]
    engine.ingest(paths)
    assert engine.scan() == [(b"future", b"v")]
    (result,) = protocol.decode_results(engine.read(protocol.encode_get(b"future"), now + 1))
    assert result[3] == 4
    assert protocol.decode_results(engine.read(protocol.encode_get(b"future"), now + 5)) == [[1]]
    engine.compact()
    assert engine.stats()["table_entries"] == 1


def test_a_snapshot_does_not_see_what_is_ingested_later(tmp_path: Path, engine: Engine) -> None:
    engine.put(b"k", b"old")
    with engine.snapshot() as snapshot:
        engine.ingest([prepared(tmp_path / "p", {b"k": b"new", b"l": b""})])
        engine.compact()
        assert snapshot.scan() == [(b"k", b"old")]
        assert snapshot.get(b"l") is None
    assert engine.scan() == [(b"k", b"new"), (b"l", b"")]


def test_files_are_linked_kept_or_moved(tmp_path: Path, engine: Engine) -> None:
    kept, moved = prepared(tmp_path / "kept", {b"a": b""}), prepared(tmp_path / "moved", {b"b": b""})
    engine.ingest([kept])
    assert os.stat(kept).st_nlink == 2
    engine.ingest([moved], move=True)
    assert not os.path.exists(moved)
    os.unlink(kept)
    assert engine.scan() == [(b"a", b""), (b"b", b"")]
    assert engine.verify() == []


class ElsewhereVfs(Vfs):
    """Another file system."""

    def link(self, source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)


def test_from_another_file_system_files_are_copied(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path), vfs=ElsewhereVfs())
    engine = engine_package.open(str(tmp_path / "engine"), shared=shared)
    path = prepared(tmp_path / "p", {b"%05d" % number: os.urandom(300) for number in range(8000)})
    engine.ingest([path])
    assert os.stat(path).st_nlink == 1
    assert len(engine.scan()) == 8000
    assert engine.verify() == []
    engine.close()
    shared.close()


def test_nothing_may_be_logged_that_is_not_applied(tmp_path: Path, engine: Engine) -> None:
    path = prepared(tmp_path / "p", {b"k": b"v"})
    first = engine.next_sequence
    stream = protocol.encode_put(b"k", b"logged")
    wal = engine.append([(first, 1, stream)])
    with pytest.raises(RuntimeError, match="logged but not applied"):
        engine.ingest([path])
    engine.apply(stream, first, 1, wal)
    wal = engine.append([(engine.next_sequence, 1, b"\x93nonsense")])
    with pytest.raises(InvalidRequest):
        engine.apply(b"\x93nonsense", engine.next_sequence, 1, wal)
    engine.ingest([path])
    assert engine.scan() == [(b"k", b"v")]
    wal = engine.append([(engine.next_sequence, 1, stream)])
    engine.apply(stream, engine.next_sequence, 1, wal)
    assert engine.scan() == [(b"k", b"logged")]


class SlowLog(Vfs):
    """A log that stands still in its sync until it is let go."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def sync_directory(self, path: str) -> None:
        if threading.current_thread().name == "log":
            self.reached.set()
            self.go_on.wait()
        super().sync_directory(path)


def test_not_while_another_thread_appends(tmp_path: Path) -> None:
    vfs = SlowLog()
    shared = Shared(str(tmp_path), vfs=vfs)
    engine = engine_package.open(str(tmp_path / "engine"), shared=shared)
    stream = protocol.encode_put(b"k", b"")
    thread = threading.Thread(target=lambda: engine.append([(1, 1, stream)]), name="log")
    thread.start()
    assert vfs.reached.wait(30)
    with pytest.raises(RuntimeError, match="another thread appends"):
        engine.ingest([prepared(tmp_path / "p", {b"k": b"v"})])
    vfs.go_on.set()
    thread.join()
    engine.close()
    shared.close()


def meta(number: int, smallest: bytes, largest: bytes, level: int) -> TableMeta:
    return TableMeta(number, level, number, 1000, 1, 0, 0, number, number, 1, 1, 0, smallest, largest)


def test_a_table_goes_as_deep_as_its_keys_allow() -> None:
    version = Version.of(
        [meta(1, b"a", b"f", 6), meta(2, b"x", b"z", 6), meta(3, b"c", b"d", 5), meta(4, b"m", b"n", 0)]
    )

    def level(smallest: bytes, largest: bytes, reserved: tuple[int, bytes, bytes] | None = None) -> int:
        return level_for(version, Options(), meta(9, smallest, largest, 0), reserved)

    assert level(b"g", b"l") == 6
    assert level(b"e", b"l") == 5
    assert level(b"d", b"l") == 0
    assert level(b"l", b"m") == 0
    assert level(b"z", b"zz") == 5
    assert level(b"z1", b"zz") == 6
    assert level(b"g", b"h", (6, b"f", b"h")) == 5
    assert level(b"g", b"h", (6, b"i", b"j")) == 6
    assert level(b"g", b"h", (5, b"a", b"z")) == 6
    flat = Version.of([meta(1, b"a", b"f", 6)])
    assert level_for(flat, Options(), meta(9, b"b", b"c", 0), None) == 0, "levels above the base stay empty"


def test_a_table_is_not_put_between_the_keys_of_a_compaction_that_runs(tmp_path: Path) -> None:
    """Its output spans keys that no input has; a table there would make the level overlap."""
    vfs = SlowCompaction()
    shared = Shared(str(tmp_path), vfs=vfs)
    engine = engine_package.open(str(tmp_path / "engine"), shared=shared, options=Options(level0_trigger=3))
    path = prepared(tmp_path / "p", {b"m": b"ingested"})
    for _ in range(2):
        engine.put(b"a", b"")
        engine.flush()
    vfs.armed = True
    engine.put(b"z", b"")
    engine.flush()
    assert vfs.reached.wait(30)
    vfs.armed = False
    engine.ingest([path])
    vfs.go_on.set()
    background = engine.background
    shared.wait_for(lambda: not background.running and not background.due(only_flushes=False))
    assert engine.stats()["failures"] == {}
    assert engine.stats()["jobs_failed"] == 0
    assert engine.stats()["compactions"] == 1
    assert engine.scan() == [(b"a", b""), (b"m", b"ingested"), (b"z", b"")]
    assert engine.verify() == []
    engine.close()
    shared.close()


class SlowCompaction(Vfs):
    """The first table that a compaction makes is not made before it may."""

    def __init__(self) -> None:
        self.armed = False
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.tables = 0

    def create(self, path: str) -> File:
        if self.armed and path.endswith(".sst"):
            self.tables += 1
            if self.tables == 2:  # the first one is the flush's
                self.reached.set()
                assert self.go_on.wait(30)
        return super().create(path)


def test_many_ingested_tables_in_level_0_are_compacted_without_a_write(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path / "engine"), options=SMALL) as engine:
        for number in range(6):
            engine.ingest([prepared(tmp_path / str(number), {b"a": b"%d" % number, b"z": b""})])
        background = engine.background
        engine.shared.wait_for(lambda: not background.running and not background.due(only_flushes=False))
        assert engine.stats()["levels"][0]["tables"] < 2
        assert engine.get(b"a") == b"5"


def test_a_full_disk_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    class Full(Vfs):
        fails = ""

        def sync(self, path: str) -> None:
            if self.fails == "sync":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            super().sync(path)

        def link(self, source: str, target: str) -> None:
            if self.fails == "link":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
            super().link(source, target)

    vfs = Full()
    shared = Shared(str(tmp_path), vfs=vfs)
    engine = engine_package.open(str(tmp_path / "engine"), shared=shared)
    paths = [prepared(tmp_path / name, {name.encode(): b""}) for name in "ab"]
    for fails in ("sync", "link"):
        vfs.fails = fails
        with pytest.raises(EngineReadOnly, match="No space left"):
            engine.ingest(paths, move=True)
        assert engine.scan() == []
    vfs.fails = ""
    engine.ingest(paths, move=True)
    assert engine.scan() == [(b"a", b""), (b"b", b"")]
    engine.close()
    shared.close()
    assert len(list((tmp_path / "engine").glob("*.sst"))) == 2


def test_a_sync_that_fails_is_final(tmp_path: Path) -> None:
    class Failing(Vfs):
        def sync(self, path: str) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    shared = Shared(str(tmp_path), vfs=Failing())
    engine = engine_package.open(str(tmp_path / "engine"), shared=shared)
    path = prepared(tmp_path / "p", {b"k": b""})
    with pytest.raises(EngineFailed, match="sync failed"):
        engine.ingest([path], move=True)
    with pytest.raises(EngineFailed, match="sync failed"):
        engine.put(b"k", b"")
    with pytest.raises(EngineFailed, match="sync failed"):
        engine.ingest([path])
    engine.close()
    shared.close()
    with engine_package.open(str(tmp_path / "engine"), shared=None) as engine:
        assert engine.scan() == []
        assert os.path.exists(path)


def test_a_commit_of_which_nobody_knows_keeps_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have come to the disk, and then the manifest names them."""
    engine = engine_package.open(str(tmp_path / "engine"))
    commit = engine.shared.manifest.commit

    def unknown(*arguments: Any) -> None:
        commit(*arguments)
        raise EngineFailed("manifest commit failed")

    monkeypatch.setattr(engine.shared.manifest, "commit", unknown)
    path = prepared(tmp_path / "p", {b"k": b"v"})
    with pytest.raises(EngineFailed, match="manifest commit failed"):
        engine.ingest([path], move=True)
    assert os.path.exists(path)
    with pytest.raises(EngineFailed, match="manifest commit failed"):
        engine.put(b"l", b"")
    engine.close()
    with engine_package.open(str(tmp_path / "engine")) as engine:
        assert engine.scan() == [(b"k", b"v")]


def test_what_was_ingested_is_counted(tmp_path: Path, engine: Engine) -> None:
    path = prepared(tmp_path / "p", {b"k": b"v"})
    engine.ingest([path])
    stats = engine.stats()
    assert (stats["ingested_tables"], stats["ingested_bytes"]) == (1, os.stat(path).st_size)


def test_one_path_is_not_a_list_of_paths(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(TypeError, match="a list of paths is ingested, not "):
        engine.ingest(prepared(tmp_path / "p", {b"k": b"v"}))


def test_no_paths_are_nothing(engine: Engine) -> None:
    engine.ingest([])
    assert engine.next_sequence == 1
