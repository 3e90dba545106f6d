"""Checkpoints: an engine of its own, of one moment, whatever the first one does then; nothing half-made."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import Corruption
from storenode.engine import Engine, EngineFailed, Options, Shared, TableWriter
from storenode.engine.checkpoint import INCOMPLETE
from storenode.engine.vfs import File, Vfs

SMALL = Options(
    memtable_bytes=1 << 14, table_bytes=1 << 14, base_bytes=1 << 15, level_ratio=2, level0_trigger=2
)

Pairs = list[tuple[bytes, bytes]]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    shared = Shared(str(tmp_path / "store"))
    with (
        contextlib.closing(shared),
        engine_package.open(
            str(tmp_path / "store" / "engine"), shared=shared, engine_id=4, options=SMALL
        ) as opened,
    ):
        yield opened


def filled(engine: Engine) -> Pairs:
    pairs = [(b"%05d" % number, b"v" * (number % 60)) for number in range(3000)]
    for pair in pairs:
        engine.put(*pair)
    return pairs


def content(path: Path) -> Pairs:
    with engine_package.open(str(path)) as engine:
        assert engine.verify() == []
        return engine.scan()


def test_a_checkpoint_is_an_engine_of_that_moment(tmp_path: Path, engine: Engine) -> None:
    pairs = filled(engine)
    engine.checkpoint(str(tmp_path / "deep" / "one"))
    engine.delete(pairs[0][0])
    engine.compact()
    engine.put(b"later", b"")
    engine.checkpoint(str(tmp_path / "deep" / "two"))
    sequence = engine.next_sequence
    assert content(tmp_path / "deep" / "one") == pairs
    assert content(tmp_path / "deep" / "two") == [*pairs[1:], (b"later", b"")] == engine.scan()
    with engine_package.open(str(tmp_path / "deep" / "two"), options=SMALL) as copy:
        assert copy.engine_id == 4
        assert copy.next_sequence == sequence
        copy.put(b"only here", b"", sync=True)
        copy.compact()
    assert engine.get(b"only here") is None
    assert engine.verify() == []
    assert content(tmp_path / "deep" / "two")[-1] == (b"only here", b"")
    assert sorted(os.listdir(tmp_path / "deep")) == ["one", "two"]


def test_an_empty_engine_has_an_empty_checkpoint(tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "there").mkdir()
    engine.checkpoint(str(tmp_path / "there"))
    assert content(tmp_path / "there") == []


def test_sequence_and_clock_go_on_where_they_were(tmp_path: Path, engine: Engine) -> None:
    """Also those that entries without effect have moved."""
    now = 1 << 44
    for op in (protocol.encode_put(b"k", b"v", 5), protocol.encode_delete(b"absent")):
        first, now = engine.next_sequence, now + 3
        engine.apply(op, first, now, engine.append([(first, now, op)]))
    engine.checkpoint(str(tmp_path / "copy"))
    with engine_package.open(str(tmp_path / "copy")) as copy:
        assert (copy.next_sequence, copy.now_ms) == (3, now)
        assert copy.scan() == [(b"k", b"v")]


def test_ingested_tables_keep_their_place(tmp_path: Path, engine: Engine) -> None:
    engine.put(b"k", b"old")
    with TableWriter(str(tmp_path / "p")) as table:
        table.add(b"k", b"new")
    engine.ingest([str(tmp_path / "p")], move=True)
    engine.checkpoint(str(tmp_path / "copy"))
    assert content(tmp_path / "copy") == [(b"k", b"new")]


def test_tables_are_links_and_the_manifest_is_not(tmp_path: Path, engine: Engine) -> None:
    filled(engine)
    engine.compact()
    engine.checkpoint(str(tmp_path / "copy"))
    tables = list((tmp_path / "copy").glob("*.sst"))
    assert len(tables) == sum(1 for _ in engine.tree.version.tables())
    assert all(table.stat().st_nlink == 2 for table in tables)
    assert (tmp_path / "copy" / "manifest" / "data.mdb").stat().st_nlink == 1
    assert not list((tmp_path / "copy").glob("*.wal"))


def test_a_used_directory_is_refused(tmp_path: Path, engine: Engine) -> None:
    engine.put(b"k", b"v")
    engine.checkpoint(str(tmp_path / "copy"))
    before = sorted(os.listdir(tmp_path / "copy"))
    with pytest.raises(FileExistsError, match="a new or an empty directory"):
        engine.checkpoint(str(tmp_path / "copy"))
    assert sorted(os.listdir(tmp_path / "copy")) == before
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        engine.checkpoint(str(tmp_path / "file"))
    for inside in (engine.directory, os.path.join(engine.directory, "copy")):
        with pytest.raises(ValueError, match="outside of the engine's own directory"):
            engine.checkpoint(inside)
    assert engine.directory not in os.listdir(tmp_path)


def test_what_a_crash_left_is_cleared_but_nothing_else(tmp_path: Path, engine: Engine) -> None:
    left = tmp_path / f"copy{INCOMPLETE}"
    (left / "manifest").mkdir(parents=True)
    (left / "manifest" / "data.mdb").write_bytes(b"half")
    (left / "000001.sst").write_bytes(b"half")
    (left / "notes").write_bytes(b"somebody's")
    engine.put(b"k", b"v")
    with pytest.raises(OSError, match="notes is no part of a checkpoint"):
        engine.checkpoint(str(tmp_path / "copy"))
    assert sorted(os.listdir(left)) == ["000001.sst", "manifest", "notes"]
    (left / "notes").unlink()
    engine.checkpoint(str(tmp_path / "copy"))
    assert not left.exists()
    assert content(tmp_path / "copy") == [(b"k", b"v")]


class Elsewhere(Vfs):
    """Another file system, with room for so many bytes of tables."""

    room = 1 << 30

    def link(self, source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)

    def create(self, path: str) -> File:
        file = super().create(path)
        if INCOMPLETE in path:
            self.room -= 1
            if self.room < 0:
                file.close()
                file.fd = os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
        return file


def test_on_another_file_system_it_is_a_copy_or_nothing(tmp_path: Path) -> None:
    vfs = Elsewhere()
    shared = Shared(str(tmp_path / "engine"), vfs=vfs)
    engine = engine_package.open(str(tmp_path / "engine"), shared=shared, options=SMALL)
    pairs = filled(engine)
    engine.flush()
    vfs.room = 1
    with pytest.raises(OSError, match="No space left on device"):
        engine.checkpoint(str(tmp_path / "copy"))
    assert os.listdir(tmp_path) == ["engine"]
    vfs.room = 1 << 30
    engine.checkpoint(str(tmp_path / "copy"))
    assert all(table.stat().st_nlink == 1 for table in (tmp_path / "copy").glob("*.sst"))
    engine.close()
    shared.close()
    assert content(tmp_path / "copy") == pairs


class Compacting(Vfs):
    """Has the engine compacted before the first link is made, and once more between two."""

    def __init__(self) -> None:
        self.compact: Callable[[], None] | None = None

    def link(self, source: str, target: str) -> None:
        if self.compact is not None:
            compact, self.compact = self.compact, None
            compact()
        super().link(source, target)


def test_tables_that_a_compaction_replaces_meanwhile_are_there(tmp_path: Path) -> None:
    vfs = Compacting()
    shared = Shared(str(tmp_path / "engine"), vfs=vfs)
    engine = engine_package.open(str(tmp_path / "engine"), shared=shared, options=SMALL)
    pairs = filled(engine)
    engine.flush()
    vfs.compact = engine.compact
    engine.checkpoint(str(tmp_path / "copy"))
    assert vfs.compact is None
    assert content(tmp_path / "copy") == pairs == engine.scan()
    engine.close()
    shared.close()
    names = [name for name in os.listdir(tmp_path / "engine") if name.endswith(".sst")]
    assert len(names) == sum(1 for _ in engine.tree.version.tables())


def test_a_manifest_that_cannot_be_written_does_not_end_the_engine(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise EngineFailed("manifest commit failed")

    engine.put(b"k", b"v")
    engine.flush()
    monkeypatch.setattr("storenode.engine.checkpoint.Manifest.commit", fail)
    with pytest.raises(OSError, match="manifest commit failed"):
        engine.checkpoint(str(tmp_path / "copy"))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["store"]
    engine.put(b"l", b"", sync=True)
    engine.flush()


# Which engine a directory is of


def test_a_directory_opened_with_another_id_keeps_its_tables(tmp_path: Path, engine: Engine) -> None:
    engine.put(b"k", b"v")
    engine.checkpoint(str(tmp_path / "copy"))
    with pytest.raises(ValueError, match="has engines with engine_id 4, not 5"):
        engine_package.open(str(tmp_path / "copy"), engine_id=5)
    with (
        contextlib.closing(Shared(str(tmp_path / "other"))) as shared,
        pytest.raises(Corruption, match="a table of another engine than 5"),
    ):
        engine_package.open(str(tmp_path / "copy"), shared=shared, engine_id=5)
    assert content(tmp_path / "copy") == [(b"k", b"v")]
    with engine_package.open(str(tmp_path / "copy"), engine_id=4) as copy:
        assert copy.scan() == [(b"k", b"v")]


def test_of_several_engines_one_must_be_named(tmp_path: Path) -> None:
    with contextlib.closing(Shared(str(tmp_path))) as shared:
        for engine_id in (2, 65534):
            path = str(tmp_path / str(engine_id))
            with engine_package.open(path, shared=shared, engine_id=engine_id) as engine:
                engine.put(b"k", b"%d" % engine_id)
                engine.flush()
    with pytest.raises(ValueError, match=r"has engines with engine_id 2, 65534, not None"):
        engine_package.open(str(tmp_path))
