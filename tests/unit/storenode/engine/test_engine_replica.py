"""The engine under a replica: its content and the replica state are one, wherever a memtable ends."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient.errors import Corruption, InvalidRequest, Status
from kvclient.protocol import decode_results, encode_delete, encode_increment, encode_put
from storenode.engine import EngineFailed, Options, ReplicaEngine, Shared
from storenode.engine.deletions import encode_delete_range
from tests.unit.storenode.engine.replica_counter import NOW_MS, Counter, count_of

SMALL = Options(
    memtable_bytes=1 << 14, table_bytes=1 << 14, base_bytes=1 << 15, level_ratio=2, level0_trigger=2
)


@contextlib.contextmanager
def opened(path: Path, options: Options = SMALL) -> Iterator[ReplicaEngine]:
    with engine_package.open_replica(str(path / "engine"), options=options) as engine:
        yield engine


def names(path: Path) -> list[str]:
    return [name for name in os.listdir(path / "engine") if name != "manifest"]


def tables(engine: ReplicaEngine) -> int:
    return sum(1 for _ in engine.tree.version.tables())


# What is there after opening


def test_closing_without_a_flush_goes_back_to_the_last_recorded_state(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        assert (engine.state, engine.flushed_state, engine.next_sequence) == (b"", b"", 1)
        replica = Counter(engine)
        replica.put(b"a", b"1")
        replica.entry([encode_put(b"b", b"2"), encode_put(b"c", b"3")])
        assert engine.flushed_state == b""
        engine.flush()
        assert engine.flushed_state == engine.state == replica.state()
        replica.put(b"d", b"4")
        assert count_of(engine.flushed_state) == 2
        assert engine.get(b"d") == b"4"
    assert not [name for name in names(tmp_path) if name.endswith(".wal")]
    with opened(tmp_path) as engine:
        assert count_of(engine.state) == count_of(engine.flushed_state) == 2
        assert (engine.next_sequence, engine.now_ms) == (4, NOW_MS)
        assert engine.scan() == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
        assert engine.verify() == []
        Counter(engine).put(b"d", b"again")
        assert engine.get(b"d") == b"again"


def test_only_the_exact_continuation_is_applied(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        replica = Counter(engine)
        replica.put(b"a", b"1")
        engine.flush()
    with opened(tmp_path) as engine:
        for wrong in (0, 1, 3):
            with pytest.raises(ValueError, match=f"first_sequence is {wrong}, the next one is 2"):
                engine.apply([encode_put(b"b", b"2")], wrong, NOW_MS)
        with pytest.raises(InvalidRequest):
            engine.apply([encode_put(b"a", b"2"), b"\x93nonsense"], 2, NOW_MS)
        engine.apply([encode_put(b"b", b"2")], 2, NOW_MS)


def test_an_empty_memtable_whose_state_has_changed_is_a_manifest_only_commit(tmp_path: Path) -> None:
    """Entries that write nothing must not pin the log."""
    with opened(tmp_path) as engine:
        replica = Counter(engine)
        replica.put(b"a", b"1")
        engine.flush()
        flushes, files = engine.counters.flushes, names(tmp_path)
        engine.flush()
        assert engine.counters.flushes == flushes
        replica.entry([])
        engine.flush()
        assert (engine.counters.flushes, names(tmp_path)) == (flushes + 1, files)
        assert count_of(engine.flushed_state) == 2
    with opened(tmp_path) as engine:
        assert (count_of(engine.state), engine.next_sequence) == (2, 2)


def test_entries_without_effect_move_sequence_and_state(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        Counter(engine).entry([encode_delete(b"absent"), encode_delete(b"absent, too")])
        engine.flush()
    with opened(tmp_path) as engine:
        assert (count_of(engine.state), engine.next_sequence) == (1, 3)


def test_range_deletions_are_recovered(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        replica = Counter(engine)
        for number in range(10):
            replica.put(b"%d" % number, b"v")
        engine.flush()
        replica.entry([encode_delete_range(b"3", b"8")])  # ends the memtable: it covers no table, but may
        engine.flush()
    with opened(tmp_path) as engine:
        assert [key for key, _ in engine.scan()] == [b"0", b"1", b"2", b"8", b"9"]
        assert engine.verify() == []


def test_a_state_of_ten_mebibytes_is_kept_and_compactions_do_not_write_it_again(tmp_path: Path) -> None:
    padding = os.urandom(1 << 20) * 10
    with opened(tmp_path) as engine:
        replica = Counter(engine, padding)
        for number in range(3):
            replica.put(b"k", b"%d" % number)
            engine.flush()
        used = engine.shared.manifest.stats()["used_bytes"]
        for _ in range(3):
            engine.compact()
        assert engine.shared.manifest.stats()["used_bytes"] - used < len(padding)
        assert engine.verify() == []
    with opened(tmp_path) as engine:
        assert engine.state[8:] == padding
        assert count_of(engine.state) == 3


# Where memtables end


def test_a_memtable_never_ends_in_the_middle_of_an_entry(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        replica = Counter(engine)
        ends: list[int] = []

        def state() -> bytes:
            ends.append(engine.next_sequence - 1)
            return replica.state()

        engine.on_retire = state
        for _ in range(8):
            for _ in range(40):
                first = engine.next_sequence
                engine.apply([encode_put(b"%d" % first, b"v" * 900)], first, NOW_MS)
                engine.retire_memtable()  # as another engine's budget would
                for act in (engine.flush, lambda: engine.checkpoint(str(tmp_path / "copy"))):
                    with pytest.raises(RuntimeError, match="in the middle of an entry"):
                        act()
            replica.applied += 1
            engine.end_entry()
        assert len(ends) >= 8
        assert all(sequence % 40 == 0 for sequence in ends)
        assert not (tmp_path / "copy").exists()


def test_who_applies_has_to_tell_the_state(tmp_path: Path) -> None:
    """Otherwise the old one would be recorded with what is new."""
    with opened(tmp_path) as engine:
        engine.compact()
        engine.apply([encode_put(b"a", b"1")], 1, NOW_MS)
        engine.end_entry()
        with pytest.raises(RuntimeError, match="on_retire must be set"):
            engine.flush()
        assert (engine.flushed_state, tables(engine)) == (b"", 0)


def test_the_budget_of_all_engines_takes_the_state_of_the_one_whose_memtable_ends(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path), memtable_bytes=1 << 20)
    with contextlib.closing(shared):
        engines = [
            engine_package.open_replica(str(tmp_path / str(number)), shared=shared, engine_id=number)
            for number in range(3)
        ]
        replicas = [Counter(engine) for engine in engines]
        for number in range(600):
            replicas[0].put(b"%d" % number, b"v" * 1000)
        assert engines[0].state == b""
        for number in range(600):
            replicas[1 + number % 2].put(b"%d" % number, b"v" * 1000)
        assert count_of(engines[0].state) == 600
        shared.wait_for(lambda: not any(engine.tree.retired for engine in engines))
        assert count_of(engines[0].flushed_state) == 600
        for engine in engines:
            engine.close()


def test_what_is_durable_is_told_and_never_ahead_of_the_manifest(tmp_path: Path) -> None:
    told = []
    with opened(tmp_path) as engine:
        replica = Counter(engine)

        def on_flushed() -> None:
            recorded, _ = engine.shared.manifest.load(0)
            assert recorded is not None
            told.append((threading.current_thread().name, engine.flushed_state == recorded.replica))

        engine.on_flushed = on_flushed
        for number in range(200):
            replica.put(b"%d" % number, b"v" * 900)
        engine.flush()
        assert count_of(engine.flushed_state) == 200
    assert len(told) > 5
    assert {good for _, good in told} == {True}
    assert threading.current_thread().name not in {name for name, _ in told}


def test_compactions_keep_the_state_of_the_last_flush(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        replica = Counter(engine)
        for number in range(2000):
            replica.put(b"%05d" % (number * 7 % 2000), b"v" * 60)
        engine.compact()
        replica.put(b"later", b"")
        wanted = engine.flushed_state
        assert count_of(wanted) == 2000
    with opened(tmp_path) as engine:
        assert engine.state == wanted
        assert len(engine.scan()) == 2000
        assert tables(engine) == len(names(tmp_path))


# What it is not


def test_an_engine_is_opened_as_it_was_made(tmp_path: Path) -> None:
    with opened(tmp_path / "replica") as engine:
        Counter(engine).put(b"a", b"1")
        engine.flush()
    with pytest.raises(ValueError, match=r"no log of its own: open it with open_replica"):
        engine_package.open(str(tmp_path / "replica" / "engine"))
    for name, flushed in (("logged", False), ("flushed", True)):
        path = tmp_path / name / "engine"
        with engine_package.open(str(path)) as logged:
            logged.put(b"a", b"1", sync=True)
            if flushed:
                logged.compact()
        for log in path.glob("*.wal"):
            if flushed:
                log.unlink()
        with pytest.raises(ValueError, match="an engine with a log of its own, not a replica's"):
            engine_package.open_replica(str(path))
    with engine_package.open(str(tmp_path / "logged" / "engine")) as logged:
        assert logged.get(b"a") == b"1"
    with opened(tmp_path / "replica") as engine:
        assert engine.get(b"a") == b"1"


def test_it_is_written_by_apply_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        with pytest.raises(TypeError, match="written by apply alone"):
            engine.put(b"a", b"1")
        for name in ("append", "write", "delete", "delete_range", "ingest"):
            assert not hasattr(engine, name)
        assert engine.next_sequence == 1
        assert engine.stats()["log_bytes_written"] == 0


def test_a_write_that_meets_damage_gets_nothing_of_it_into_tables(tmp_path: Path) -> None:
    """Skipping it, or taking part of it, would make this replica another one than the others."""
    with opened(tmp_path) as engine:
        replica = Counter(engine)
        replica.put(b"counter", b"1")
        engine.flush()
        durable = engine.flushed_state
        (table,) = (tmp_path / "engine").glob("*.sst")
    content = bytearray(table.read_bytes())
    content[5] ^= 0x40
    table.write_bytes(content)
    with opened(tmp_path) as engine:
        replica = Counter(engine)
        replica.put(b"other", b"2")
        first = engine.next_sequence
        with pytest.raises(Corruption, match="checksum mismatch"):
            engine.apply([encode_increment(b"counter", 1)], first, NOW_MS)
        assert engine.next_sequence == first
        assert engine.damage is not None
        engine.end_entry()
        for act in (engine.flush, lambda: engine.apply([encode_put(b"x", b"")], first, NOW_MS)):
            with pytest.raises(EngineFailed, match="a write met damage"):
                act()
        assert engine.flushed_state == durable
    with opened(tmp_path) as engine:
        assert engine.state == durable
        assert engine.get(b"other") is None


def test_writes_of_an_entry_find_what_those_before_them_have_done(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        writes = [
            encode_put(b"n", b"4") + encode_put(b"a", b"1"),
            b"",
            encode_increment(b"n", 1),
            encode_delete(b"a") + encode_delete(b"a"),
            encode_put(b"a", b"x" * 5000),
        ]
        results = engine.apply(writes, 1, NOW_MS)
        assert [decode_results(one) for one in results] == [
            [[0, 1], [0, 2]],
            [],
            [[0, 5, 3]],
            [[0, 4], [Status.NOT_FOUND]],
            [[0, 6]],
        ]
        assert engine.next_sequence == 7
        assert (engine.get(b"n"), engine.get(b"a")) == (b"5", b"x" * 5000)
