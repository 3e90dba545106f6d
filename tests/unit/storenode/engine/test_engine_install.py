"""Installing a checkpoint of another node: everything is replaced, or nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient.errors import Corruption
from kvclient.protocol import encode_increment, encode_put
from storenode.engine import (
    EngineFailed,
    Options,
    ReplicaEngine,
    Shared,
    checkpoint_files,
)
from storenode.engine.deletions import encode_delete_range
from storenode.engine.jobs import flush
from storenode.engine.manifest import Manifest
from tests.unit.storenode.engine.replica_counter import NOW_MS, Counter, count_of, send

SMALL = Options(
    memtable_bytes=1 << 14, table_bytes=1 << 14, base_bytes=1 << 15, level_ratio=2, level0_trigger=2
)
ID = 5


@contextlib.contextmanager
def opened(path: Path, engine_id: int = ID) -> Iterator[ReplicaEngine]:
    path.mkdir(exist_ok=True)
    with engine_package.open_replica(str(path / "engine"), options=SMALL, engine_id=engine_id) as engine:
        yield engine


def fill(replica: Counter, count: int, mark: bytes) -> None:
    for number in range(count):
        replica.put(b"%05d" % (number * 7 % count), mark * 40)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another node, at entry 3002, with a range deletion in force and two levels."""
    place = tmp_path_factory.mktemp("leader")
    with opened(place) as engine:
        replica = Counter(engine)
        fill(replica, 3000, b"L")
        engine.compact()
        replica.entry([encode_delete_range(b"01000", b"02000")])
        replica.entry([encode_put(b"last", b"word"), encode_put(b"01500", b"again")])
        engine.checkpoint(str(place / "sent"))
    return place / "sent"


@pytest.fixture
def arrived(sent: Path, tmp_path: Path) -> str:
    return send(str(sent), str(tmp_path / "arrived"))


WANTED = sorted(
    [(b"%05d" % number, b"L" * 40) for number in range(3000) if not 1000 <= number < 2000]
    + [(b"last", b"word"), (b"01500", b"again")]
)


def files(engine: ReplicaEngine) -> set[str]:
    return {name for name in os.listdir(engine.directory) if name.endswith(".sst")}


def named(engine: ReplicaEngine) -> set[str]:
    return {f"{table.number:06d}.sst" for table in engine.tree.version.tables()}


def settle(engine: ReplicaEngine) -> None:
    gc.collect()
    engine.shared.wait_for(lambda: files(engine) == named(engine))


# What it does


def test_everything_is_replaced_and_lasts(tmp_path: Path, arrived: str) -> None:
    with opened(tmp_path / "follower") as engine:
        replica = Counter(engine)
        fill(replica, 1000, b"F")
        replica.entry([encode_delete_range(b"00100", b"00200")])
        engine.flush()
        replica.put(b"only here", b"in a memtable")
        engine.install(arrived)
        assert count_of(engine.state) == count_of(engine.flushed_state) == 3002
        assert (engine.next_sequence, engine.now_ms) == (3004, NOW_MS)
        assert engine.scan() == WANTED
        assert engine.get(b"only here") is None
        assert engine.verify() == []
        settle(engine)
        shutil.rmtree(arrived)
        replica = Counter(engine)
        replica.put(b"later", b"1")
        engine.compact()
    with opened(tmp_path / "follower") as engine:
        assert count_of(engine.state) == 3003
        assert engine.scan() == sorted([*WANTED, (b"later", b"1")])
        assert engine.verify() == []
        assert files(engine) == named(engine)


def test_into_a_new_engine_and_from_there_to_the_next(tmp_path: Path, arrived: str) -> None:
    """File ids stay, numbers do not; a table written later has an id that none of those has."""
    with opened(tmp_path / "second") as engine:
        engine.install(arrived)
        assert all(t.file_id != ID << 48 | t.number for t in engine.tree.version.tables())
        assert ID << 48 | engine.tree.take_number() > max(t.file_id for t in engine.tree.version.tables())
        replica = Counter(engine)
        fill(replica, 500, b"S")
        engine.flush()
        ids = [table.file_id for table in engine.tree.version.tables()]
        assert len(set(ids)) == len(ids)
        content = engine.scan()
        engine.checkpoint(str(tmp_path / "sent on"))
    with opened(tmp_path / "third") as engine:
        fill(Counter(engine), 2000, b"T")
        engine.install(send(str(tmp_path / "sent on"), str(tmp_path / "arrived there")))
        assert engine.scan() == content
        assert engine.verify() == []
        Counter(engine).put(b"x", b"")
        engine.compact()
        assert engine.verify() == []


def test_blocks_of_a_replaced_table_with_the_same_file_id_are_not_served(tmp_path: Path) -> None:
    with opened(tmp_path / "leader") as engine:
        replica = Counter(engine)
        replica.put(b"k", b"theirs")
        replica.put(b"k", b"theirs")
        engine.checkpoint(str(tmp_path / "sent"))
    with opened(tmp_path / "follower") as engine:
        Counter(engine).put(b"k", b"mine")
        engine.flush()
        assert engine.get(b"k") == b"mine"  # and now its block is cached
        ids = [table.file_id for table in engine.tree.version.tables()]
        engine.install(str(tmp_path / "sent"))
        assert ids == [table.file_id for table in engine.tree.version.tables()]
        assert engine.get(b"k") == b"theirs"
        assert engine.scan() == [(b"k", b"theirs")]


def test_readers_go_on_with_what_they_had(tmp_path: Path, arrived: str) -> None:
    with opened(tmp_path / "follower") as engine:
        replica = Counter(engine)
        fill(replica, 1000, b"F")
        engine.compact()
        replica.put(b"in a memtable", b"")
        before = engine.scan()
        iterator = engine.iterate()
        first = next(iterator)
        with engine.snapshot() as snapshot:
            engine.install(arrived)
            assert engine.scan() == WANTED
            assert snapshot.scan() == before
            assert [first, *iterator] == before
            assert len(files(engine)) > len(named(engine))
        del iterator, snapshot
        settle(engine)


def test_jobs_of_the_old_content_come_to_nothing(
    tmp_path: Path, arrived: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush is running, more memtables wait, compactions are due."""
    flushing: list[bool] = []

    def spy(*arguments: object) -> object:
        flushing.append(True)
        return flush(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("storenode.engine.background.flush", spy)
    for count in (300, 700, 1500):
        with opened(tmp_path / f"follower-{count}") as engine:
            replica = Counter(engine)
            fill(replica, count, b"F")
            replica.put(b"only here", b"")
            engine.flush(wait=False)
            engine.install(arrived)
            Counter(engine)
            assert not engine.tree.retired
            engine.compact()
            assert engine.scan() == WANTED
            assert engine.verify() == []
            assert count_of(engine.flushed_state) == 3002
            settle(engine)
    assert flushing


def test_a_replica_that_met_damage_is_healed(tmp_path: Path, arrived: str) -> None:
    with opened(tmp_path / "follower") as engine:
        replica = Counter(engine)
        replica.put(b"counter", b"1")
        engine.flush()
        (table,) = Path(engine.directory).glob("*.sst")
    content = bytearray(table.read_bytes())
    content[5] ^= 0x40
    table.write_bytes(content)
    with opened(tmp_path / "follower") as engine:
        with pytest.raises(Corruption):
            engine.apply([encode_increment(b"counter", 1)], engine.next_sequence, NOW_MS)
        engine.install(arrived)
        assert engine.damage is None
        assert engine.scan() == WANTED
        replica = Counter(engine)
        fill(replica, 300, b"F")
        engine.flush()
        assert count_of(engine.flushed_state) == 3302


def test_the_same_sequence_again_is_fine_and_the_examination_may_come_first(
    tmp_path: Path, arrived: str
) -> None:
    with opened(tmp_path / "follower") as engine:
        examined = engine.examine(arrived)
        assert (count_of(examined.replica), examined.engine_id) == (3002, ID)
        assert engine.next_sequence == 1
        for _ in range(2):
            engine.install(examined)
            assert engine.scan() == WANTED
        settle(engine)


# What it refuses


def refused(engine: ReplicaEngine, checkpoint: str, kind: type[Exception], match: str) -> None:
    """Nothing has changed."""
    engine.compact()  # and now no job is due
    before = (engine.scan(), engine.next_sequence, engine.state, engine.flushed_state, named(engine))
    with pytest.raises(kind, match=match):
        engine.install(checkpoint)
    assert (engine.scan(), engine.next_sequence, engine.state, engine.flushed_state, named(engine)) == before
    settle(engine)
    assert engine.verify() == []


def test_foreign_and_older_checkpoints_are_refused(tmp_path: Path, arrived: str) -> None:
    with opened(tmp_path / "other", ID + 1) as engine:
        Counter(engine).put(b"a", b"1")
        refused(engine, arrived, ValueError, r"a checkpoint of engines \[5\], not of engine 6")
    with engine_package.open(str(tmp_path / "logged"), engine_id=ID) as logged:
        for _ in range(10):
            logged.put(b"a", b"1")
        logged.checkpoint(str(tmp_path / "of a logged one"))
    with opened(tmp_path / "follower") as engine:
        replica = Counter(engine)
        replica.put(b"a", b"1")
        engine.flush()
        refused(engine, str(tmp_path / "of a logged one"), ValueError, "not of a replica's")
        refused(engine, str(tmp_path / "nothing"), Corruption, "is no checkpoint")
        first = engine.next_sequence
        for number in range(4000 - first):
            engine.apply([encode_put(b"b", b"")], first + number, NOW_MS)
        with pytest.raises(RuntimeError, match="in the middle of an entry"):
            engine.install(arrived)
        engine.end_entry()
        refused(engine, arrived, ValueError, "up to sequence 3003; engine 5 is at 3999")


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda table, _: flip(table, 10), "checksum mismatch"),
        (lambda table, _: flip(table, -10), r"footer"),
        (lambda table, _: table.unlink(), "the table is missing"),
        (lambda table, _: os.truncate(table, 1000), "1000 bytes, the manifest says"),
        (lambda table, other: shutil.copy(other, table), "bytes, the manifest says|another"),
        (lambda table, _: flip(table.parent / "manifest" / "data.mdb", 40), r"data\.mdb"),
        (lambda table, _: os.truncate(table.parent / "manifest" / "data.mdb", 8192), "manifest"),
        (lambda table, _: (table.parent / "manifest" / "data.mdb").unlink(), "is no checkpoint"),
    ],
)
def test_damaged_checkpoints_are_refused(
    tmp_path: Path, arrived: str, harm: Callable[[Path, Path], object], match: str
) -> None:
    first, second, *_ = sorted(Path(arrived).glob("*.sst"))
    harm(first, second)
    with opened(tmp_path / "follower") as engine:
        Counter(engine).put(b"a", b"1")
        engine.flush()
        refused(engine, arrived, Corruption, match)


def test_an_examination_without_blocks_reads_footers_and_properties_only(
    tmp_path: Path, arrived: str
) -> None:
    """For who has checked the files otherwise."""
    first, second, *_ = sorted(Path(arrived).glob("*.sst"))
    flip(first, 10)
    with opened(tmp_path / "follower") as engine:
        assert len(engine.examine(arrived, blocks=False).tables) >= 2
        with pytest.raises(Corruption, match="checksum mismatch"):
            engine.examine(arrived)
        flip(second, -10)
        with pytest.raises(Corruption, match="footer"):
            engine.examine(arrived, blocks=False)


def test_tables_that_are_newer_than_their_manifest_or_not_what_it_says_are_refused(
    tmp_path: Path, arrived: str
) -> None:
    place = os.path.join(arrived, "manifest")
    manifest = Manifest(place)
    state, tables = manifest.load(ID)
    manifest.close()
    assert state is not None
    newest = max(tables, key=lambda table: table.max_sequence)
    with opened(tmp_path / "follower") as engine:
        for wrong, match in (
            (state._replace(flushed_sequence=newest.max_sequence - 1), "the manifest ends at"),
            (state, "entries is"),
        ):
            manifest = Manifest(place)
            manifest.load(ID)
            meta = newest if wrong is not state else newest._replace(entries=newest.entries + 1)
            manifest.commit(ID, wrong, [meta], [])
            manifest.close()
            refused(engine, arrived, Corruption, match)


def test_after_a_failed_commit_nobody_writes(
    tmp_path: Path, arrived: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise EngineFailed("manifest commit failed")

    with opened(tmp_path / "follower") as engine:
        replica = Counter(engine)
        replica.put(b"a", b"1")
        engine.flush()
        monkeypatch.setattr("storenode.engine.manifest.Manifest.commit", fail)
        with pytest.raises(EngineFailed, match="commit failed"):
            engine.install(arrived)
        monkeypatch.undo()
        replica.put(b"b", b"2")
        for act in (engine.flush, lambda: engine.install(arrived)):
            with pytest.raises(EngineFailed, match="commit failed"):
                act()
    with opened(tmp_path / "follower") as engine:
        assert engine.scan() == [(b"a", b"1")]
        settle(engine)


# The way


def test_a_checkpoint_is_its_tables_and_one_file_of_the_manifest(sent: Path, arrived: str) -> None:
    files = checkpoint_files(str(sent))
    assert files[-1][0] == "manifest/data.mdb"
    assert all(name.endswith(".sst") for name, _ in files[:-1])
    assert [(sent / name).stat().st_size for name, _ in files] == [size for _, size in files]
    assert checkpoint_files(arrived) == files
    assert os.listdir(os.path.join(arrived, "manifest")) == ["data.mdb"]


def test_engines_of_one_shared_do_not_disturb_one_another(tmp_path: Path, arrived: str) -> None:
    with contextlib.closing(Shared(str(tmp_path / "shared"))) as shared:
        engines = [
            engine_package.open_replica(
                str(tmp_path / "shared" / str(number)), shared=shared, engine_id=number, options=SMALL
            )
            for number in (ID - 1, ID, ID + 1)
        ]
        for engine in engines:
            fill(Counter(engine), 300, b"F")
        engines[1].install(arrived)
        for engine in (engines[0], engines[2]):
            engine.flush()
            assert len(engine.scan()) == count_of(engine.flushed_state) == 300
        assert engines[1].scan() == WANTED
        for engine in engines:
            assert engine.verify() == []
            engine.close()
