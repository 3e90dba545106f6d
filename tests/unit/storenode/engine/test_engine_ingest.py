"""What an engine makes of prepared tables: newer than all before, all or none, checked as a whole, at the
right level, also beside compactions."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import Corruption, InvalidRequest
from storenode.engine import Engine, EngineFailed, EngineReadOnly, Options, Shared, TableWriter, codec
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


def refused(engine: Engine, error: type[Exception], text: str, *paths: str) -> None:
    """Nothing of them is there afterwards, neither in the engine nor on the disk."""
    before = engine.scan(), engine.next_sequence, sorted(os.listdir(engine.directory))
    with pytest.raises(error, match=text):
        engine.ingest(paths, move=True)
    assert (engine.scan(), engine.next_sequence, sorted(os.listdir(engine.directory))) == before
    assert all(os.path.exists(path) for path in paths if not path.endswith("missing"))


def test_tables_that_share_keys_are_refused(tmp_path: Path, engine: Engine) -> None:
    first = prepared(tmp_path / "first", {b"a": b"", b"m": b""})
    second = prepared(tmp_path / "second", {b"m": b"", b"z": b""})
    refused(engine, ValueError, r"first \(up to key b'm'\) and .*second \(from key b'm'\)", second, first)
    refused(engine, ValueError, "share keys", first, first)
    engine.ingest([first])
    engine.ingest([second])
    engine.ingest([first])
    assert engine.verify() == []


def test_what_is_no_prepared_table_is_refused(tmp_path: Path, engine: Engine) -> None:
    good = prepared(tmp_path / "good", {b"a": b""})
    refused(engine, FileNotFoundError, "missing", good, str(tmp_path / "missing"))
    engine.put(b"k", b"v")
    engine.flush()
    (own,) = Path(engine.directory).glob("*.sst")
    refused(engine, ValueError, r"000\d+\.sst is a table of engine 0; only what TableWriter", good, str(own))
    (tmp_path / "text").write_bytes(b"text" * 40)
    refused(engine, Corruption, "text: no whole table footer", good, str(tmp_path / "text"))
    (tmp_path / "empty").write_bytes(b"")
    refused(engine, Corruption, "empty: no whole table footer", good, str(tmp_path / "empty"))


def test_every_flipped_bit_of_a_prepared_table_is_refused(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "p"
    prepared(path, {b"%04d" % number: b"x" * (number % 90) for number in range(60)})
    content = path.read_bytes()
    for offset in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        refused(engine, Corruption, "p: .*offset", str(path))
    path.write_bytes(content)
    engine.ingest([str(path)])


def resealed(path: Path, old: bytes, new: bytes, at: int, size: int) -> None:
    """Replaces bytes in the block at `at`, and makes its checksum fit."""
    content = path.read_bytes()
    block = content[at : at + size + 1]
    assert block.count(old) == 1
    block = block.replace(old, new)
    context = content[-28:-20] + at.to_bytes(8, "little")
    sealed = block + codec.masked_crc32c(context + block).to_bytes(4, "little")
    path.write_bytes(content[:at] + sealed + content[at + len(sealed) :])


def section(path: Path, position: int) -> tuple[int, int]:
    """Offset and size of filter, index or properties (0, 1, 2)."""
    footer = path.read_bytes()[-64:][position * 12 :]
    return int.from_bytes(footer[:8], "little"), int.from_bytes(footer[8:12], "little")


def test_a_sound_file_that_is_wrong_is_refused(tmp_path: Path, engine: Engine) -> None:
    """Under right checksums: order, sequences, counts, filter, index."""

    def made(name: str) -> Path:
        path = tmp_path / name
        with TableWriter(str(path), options=Options(restart_interval=1, compression="none")) as table:
            table.add_many([(b"key-a", b"1"), (b"key-b", b"2"), (b"key-c", b"3")])
        return path

    data_size = section(made("probe"), 0)[0] - 5
    path = made("order")
    resealed(path, b"key-b", b"key-z", 0, data_size)
    refused(engine, Corruption, "order: keys out of order|the filter hides|above what the index", str(path))
    path = made("sequence")
    resealed(path, b"key-b" + bytes([1]) + bytes(7), b"key-b" + bytes([1, 9]) + bytes(6), 0, data_size)
    refused(engine, Corruption, "max_sequence is 9, the properties say 0", str(path))
    path = made("entries")
    at, size = section(path, 2)
    resealed(path, b"entries\x03", b"entries\x04", at, size)
    refused(engine, Corruption, "entries is 3, the properties say 4", str(path))
    path = made("largest")
    at, size = section(path, 2)
    resealed(path, b"key-c", b"key-d", at, size)
    refused(engine, Corruption, "largest is b'key-c'", str(path))
    path = made("index")
    at, size = section(path, 1)
    resealed(path, b"l\x00", b"a\x00", at, size)
    refused(engine, Corruption, "a key is above what the index says", str(path))
    path = made("filter")
    at, size = section(path, 0)
    content = path.read_bytes()
    resealed(path, content[at : at + size - 8], bytes(size - 8), at, size)
    refused(engine, Corruption, "the filter hides a key", str(path))


def test_nothing_may_be_logged_that_is_not_applied(tmp_path: Path, engine: Engine) -> None:
    path = prepared(tmp_path / "p", {b"k": b"v"})
    first = engine.next_sequence
    stream = protocol.encode_put(b"k", b"logged")
    wal = engine.append([(first, 1, stream)])
    refused(engine, RuntimeError, "logged but not applied", path)
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


def test_no_paths_are_nothing(engine: Engine) -> None:
    engine.ingest([])
    assert engine.next_sequence == 1
