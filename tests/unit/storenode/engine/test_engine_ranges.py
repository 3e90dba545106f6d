"""Range deletions: what they hide, where they live, when they may go, and the bugs that range tombstones had
elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import InvalidRequest
from storenode.engine import Engine, Options, Shared, base, tree
from storenode.engine.background import COMPACTION, FLUSH
from storenode.engine.compaction import EVERYTHING, RANGES_AT_REST, propose
from storenode.engine.deletions import (
    RangeDeletion,
    decode_delete_range,
    encode_delete_range,
    pack_deletions,
    unpack_deletions,
)
from storenode.engine.iterator import Iterator as Pairs
from storenode.engine.memtable import Memtable
from storenode.engine.ranges import Ranges
from storenode.engine.table import Cache, Table
from storenode.engine.version import TableMeta, Version
from storenode.engine.vfs import Vfs
from storenode.engine.view import View
from tests.unit.storenode.engine.tools.bench import make_table

KEYS = [b"key-%04d" % number for number in range(400)]
QUIET = Options(level0_trigger=1000, level0_slow=1000, level0_stop=1000, block_bytes=256)
"""No compaction but those that are asked for, and those for the sake of range deletions."""


@contextmanager
def opened(directory: Path, options: Options = QUIET) -> Iterator[Engine]:
    with engine_package.open(str(directory), options=options) as engine:
        yield engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with opened(tmp_path) as one:
        yield one


def fill(engine: Engine, keys: list[bytes], value: bytes = b"value") -> None:
    for key in keys:
        engine.put(key, value)


def keys_of(engine: Engine) -> list[bytes]:
    """By all ways that there are to ask, which must agree."""
    keys = [key for key, _ in engine.scan()]
    assert [key for key, _ in engine.scan(reverse=True)] == keys[::-1]
    assert [key for key, value in zip(KEYS, engine.multi_get(KEYS), strict=True) if value is not None] == [
        key for key in keys if key in KEYS
    ]
    assert [key for key in KEYS if engine.get(key) is not None] == [key for key in keys if key in KEYS]
    return keys


def wait_for(engine: Engine, done: Callable[[], bool]) -> None:
    engine.shared.wake()
    engine.shared.wait_for(done)


def tables_of(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*.sst")}


# Intervals


def test_intervals_say_of_each_key_which_deletion_was_the_last() -> None:
    chance = random.Random(5)
    letters = [bytes([letter]) for letter in range(97, 117)]
    for _ in range(300):
        deletions: list[RangeDeletion] = []
        ranges = Ranges()
        for sequence in range(1, chance.randrange(2, 12)):
            low, high = sorted(chance.sample(letters, 2))
            deletions.append(RangeDeletion(low, None if chance.random() < 0.2 else high, sequence))
            ranges = ranges.plus(deletions[-1])

        def wanted(key: bytes) -> int:
            holding = [d.sequence for d in deletions if d.start <= key and (d.stop is None or key < d.stop)]  # noqa: B023
            return max(holding, default=0)

        assert ranges.intervals == Ranges(deletions).intervals
        assert ranges.deletions == tuple(deletions)
        for left, right in zip(ranges.intervals, ranges.intervals[1:], strict=False):
            assert left.stop is not None
            assert left.start < left.stop <= right.start
        for key in [*letters, *(letter + b"\0" for letter in letters), b"", b"\xff"]:
            assert ranges.sequence_of(key) == wanted(key)
        low, high = sorted(chance.choices(letters, k=2))
        inside = [key for key in (*letters, *(letter + b"x" for letter in letters)) if low <= key <= high]
        assert ranges.lowest_over(low, high) == min(map(wanted, inside))
        overlapping = {one.sequence for one in ranges.overlapping(low, high)}
        assert overlapping == {wanted(key) for key in inside} - {0}


def test_the_op_and_the_property_have_the_documented_bytes() -> None:
    assert encode_delete_range(b"a", b"bc") == b"\x93\x09\xc4\x01a\xc4\x02bc"
    assert encode_delete_range(b"", None) == b"\x93\x09\xc4\x00\xc0"
    assert decode_delete_range(b"\x92\x09\xc4\x01a") == (b"a", None)
    packed = pack_deletions((RangeDeletion(b"a", b"bc", 300), RangeDeletion(b"", None, 5)))
    assert packed == b"\xac\x02\x01a\x02bc\x05\x00\x00"
    assert unpack_deletions(packed) == (RangeDeletion(b"a", b"bc", 300), RangeDeletion(b"", None, 5))
    for cut in (1, 2, 3, 4, 6, 8):
        with pytest.raises(ValueError, match="not whole"):
            unpack_deletions(packed[:cut])
    with pytest.raises(ValueError, match="an empty range"):
        unpack_deletions(b"\x01\x01b\x01a")


@pytest.mark.parametrize(
    "fields",
    [
        [9],
        [9, b"a", b"a"],
        [9, b"b", b"a"],
        [9, b"a", b""],
        [9, "a", b"b"],
        [9, b"a", "b"],
        [9, b"a", 5],
        [9, b"a", b"b", None],
        [9, b"a" * 65536, None],
        [9, b"", b"a" * 65536],
    ],
)
def test_an_op_that_is_no_range_deletion_is_refused_as_a_whole(engine: Engine, fields: list[object]) -> None:
    engine.put(b"a", b"1")
    for ops in (msgpack.packb(fields), encode_delete_range(b"a", b"b") + protocol.encode_put(b"z", b"1")):
        with pytest.raises(InvalidRequest, match="malformed op stream"):
            engine.write(ops)
        with pytest.raises(InvalidRequest, match="malformed op stream"):
            engine.read(ops, 0)
    assert engine.scan() == [(b"a", b"1")]
    assert engine.stats()["range_deletions"] == 0


# What is hidden


@pytest.mark.parametrize("flushed", [False, True])
def test_keys_of_the_range_are_gone_and_later_ones_are_not(engine: Engine, flushed: bool) -> None:
    fill(engine, KEYS)
    if flushed:
        engine.flush()
    engine.delete_range(KEYS[100], KEYS[300])
    assert keys_of(engine) == KEYS[:100] + KEYS[300:]
    engine.put(KEYS[150], b"again")
    engine.put(KEYS[299], b"again", sync=True)
    assert keys_of(engine) == [*KEYS[:100], KEYS[150], KEYS[299], *KEYS[300:]]
    assert engine.scan(KEYS[140], KEYS[160]) == [(KEYS[150], b"again")]


def test_a_range_has_its_start_and_not_its_stop_and_may_be_all_there_is(engine: Engine) -> None:
    fill(engine, [b"\0", b"a", b"a\0", b"b", b"b\0", b"\xff\xff"])
    engine.delete_range(b"a\0", b"b")
    assert [key for key, _ in engine.scan()] == [b"\0", b"a", b"b", b"b\0", b"\xff\xff"]
    engine.delete_range(b"b", b"b\0")
    assert [key for key, _ in engine.scan()] == [b"\0", b"a", b"b\0", b"\xff\xff"]
    engine.delete_range(b"b", None)
    assert [key for key, _ in engine.scan()] == [b"\0", b"a"]
    engine.delete_range(b"", b"a")
    assert [key for key, _ in engine.scan()] == [b"a"]
    engine.delete_range(b"", None)
    assert engine.scan() == []


def test_an_empty_range_or_one_that_is_none_is_an_error(engine: Engine) -> None:
    engine.put(b"a", b"1")
    for start, stop in ((b"b", b"a"), (b"a", b"a"), (b"", b"")):
        with pytest.raises(ValueError, match="the range is empty"):
            engine.delete_range(start, stop)
    with pytest.raises(ValueError, match="stop has 65536 bytes; a key has at most 65535"):
        engine.delete_range(b"", bytes(65536))
    with pytest.raises(TypeError, match="start is bytes, not str"):
        engine.delete_range("a", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="start is bytes, not NoneType"):
        engine.delete_range(None, None)  # type: ignore[arg-type]
    assert engine.scan() == [(b"a", b"1")]


def test_a_write_meets_the_state_behind_a_range_deletion(engine: Engine) -> None:
    fill(engine, KEYS, b"7")
    engine.flush()
    fill(engine, KEYS[:5], b"7")
    engine.delete_range(b"", None)
    ops = [
        protocol.encode_increment(KEYS[0], 1),
        protocol.encode_touch(KEYS[1], 1000),
        protocol.encode_delete(KEYS[2]),
        protocol.encode_put(KEYS[3], b"v", condition=(2,)),
        protocol.encode_put(KEYS[4], b"v", condition=(1,)),
        protocol.encode_increment(KEYS[5], 5),
    ]
    sequence = engine.next_sequence
    assert protocol.decode_results(engine.write(b"".join(ops))) == [
        [0, 1, sequence],
        [1],
        [1],
        [2, 0],
        [0, sequence + 4],
        [0, 5, sequence + 5],
    ]
    read = protocol.encode_exists(KEYS[0]) + protocol.encode_exists(KEYS[6]) + protocol.encode_get(KEYS[6])
    assert protocol.decode_results(engine.read(read, 0)) == [[0, sequence], [1], [1]]
    count = protocol.encode_scan(b"", None, 10_000, protocol.SCAN_COUNT)
    assert protocol.decode_results(engine.read(count, 0))[0][:2] == [0, 3]


def test_a_snapshot_does_not_see_what_was_deleted_after_it(engine: Engine, tmp_path: Path) -> None:
    """Also when the tables of then are dropped and their range deletion is retired."""
    fill(engine, KEYS)
    engine.flush()
    before = engine.snapshot()
    engine.delete_range(KEYS[10], None)
    after = engine.snapshot()
    fill(engine, KEYS, b"again")
    engine.compact()
    assert engine.stats()["range_deletions"] == 0
    assert before.scan() == [(key, b"value") for key in KEYS]
    assert before.scan(reverse=True) == before.scan()[::-1]
    assert before.get(KEYS[20]) == b"value"
    assert after.scan() == [(key, b"value") for key in KEYS[:10]]
    assert after.get(KEYS[20]) is None
    before.close()
    after.close()
    assert engine.scan() == [(key, b"again") for key in KEYS]


def test_short_puts_and_gets_know_of_it_at_once(engine: Engine) -> None:
    engine.put(b"a", b"1")
    engine.put(b"a", b"2")
    engine.delete_range(b"a", b"b")
    assert engine.get(b"a") is None
    engine.put(b"a", b"3")
    assert engine.get(b"a") == b"3"
    engine.delete_range(b"a", None)
    assert engine.get(b"a") is None


# Durability


def test_a_range_deletion_is_in_the_log_and_then_in_the_manifest(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        fill(engine, KEYS)
        engine.delete_range(KEYS[50], KEYS[60])
        sequence = engine.next_sequence
    with opened(tmp_path) as engine:
        assert engine.next_sequence == sequence
        assert keys_of(engine) == KEYS[:50] + KEYS[60:]
        engine.flush()
        engine.delete_range(KEYS[70], KEYS[80])
        engine.flush()
        assert engine.verify() == []
    with opened(tmp_path) as engine:
        assert engine.stats()["range_deletions"] == 1
        assert keys_of(engine) == KEYS[:50] + KEYS[60:70] + KEYS[80:]
        assert engine.verify() == []
        engine.compact()
        assert engine.stats()["range_deletions"] == 0
    with opened(tmp_path) as engine:
        assert keys_of(engine) == KEYS[:50] + KEYS[60:70] + KEYS[80:]


def test_a_memtable_with_nothing_but_a_range_deletion_is_flushed(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        fill(engine, KEYS)
        engine.flush()
        before = tables_of(tmp_path)
        engine.delete_range(KEYS[50], KEYS[60])
        engine.flush()
        assert tables_of(tmp_path) == before
        assert engine.stats()["flushed_sequence"] == engine.next_sequence - 1 == len(KEYS) + 1
        engine.put(KEYS[0], b"value")  # in a new log
        engine.flush()
    for log in tmp_path.glob("*.wal"):
        assert encode_delete_range(KEYS[50], KEYS[60]) not in log.read_bytes()
    with opened(tmp_path) as engine:
        assert keys_of(engine) == KEYS[:50] + KEYS[60:]


def test_of_no_interest_to_any_table_it_is_never_in_the_manifest(engine: Engine) -> None:
    engine.delete_range(b"", None)
    fill(engine, KEYS)
    engine.delete_range(b"z", None)
    engine.flush()
    assert engine.stats()["range_deletions"] == 0
    assert engine.verify() == []


def test_a_flush_does_not_act_on_a_range_deletion_that_is_only_in_the_log(engine: Engine) -> None:
    """It may be lost with the end of the log, and what the table lacks for its sake would be lost without
    it."""
    fill(engine, KEYS[:10])
    engine.background.failures.clear()
    with engine.shared._condition:  # no flush yet
        engine.background._stopping = True
    engine.flush(wait=False)
    engine.delete_range(b"", None)
    with engine.shared._condition:
        engine.background._stopping = False
    engine._wait_until(lambda: not engine.tree.retired or engine.tree.flushed_sequence >= 10, "flush")
    wait_for(engine, lambda: not engine.background.running)
    newest = [table for table in engine.tree.version.tables() if table.max_sequence <= 10]
    assert [table.entries for table in newest] == [10]
    assert engine.scan() == []


def test_nor_does_a_compaction(engine: Engine) -> None:
    fill(engine, KEYS[:10])
    engine.flush()
    engine.delete_range(KEYS[2], KEYS[5])
    engine.background.wanted = EVERYTHING
    wait_for(engine, lambda: engine.background.wanted is None)
    assert engine.stats()["levels"][-1]["tables"] == 1
    assert engine.stats()["table_entries"] == 10
    assert engine.tree.flushed_sequence == 10
    assert keys_of(engine) == KEYS[:2] + KEYS[5:10]


def test_nor_is_a_table_dropped_for_one(engine: Engine) -> None:
    fill(engine, KEYS[:10])
    engine.flush()
    engine.background.running.add(FLUSH)  # so that none is begun
    try:
        engine.delete_range(b"", None)
        assert len(engine.tree.retired) == 1
        assert engine.background.due(only_flushes=False) == []
        engine.background.run(COMPACTION)
        assert engine.counters.tables_dropped == 0
    finally:
        engine.background.running.discard(FLUSH)
    wait_for(engine, lambda: engine.counters.tables_dropped == 1)
    assert engine.scan() == []


# Compaction


def test_tables_that_are_covered_go_unread_and_their_files_when_nobody_holds_them(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        for at in range(0, 400, 100):
            fill(engine, KEYS[at : at + 100])
            engine.flush()
        files = sorted(tables_of(tmp_path))
        snapshot = engine.snapshot()
        for name in files[1:3]:
            raw = bytearray((tmp_path / name).read_bytes())
            raw[40] ^= 1  # to read them would fail
            (tmp_path / name).write_bytes(raw)
        engine.delete_range(KEYS[100], KEYS[300])
        wait_for(engine, lambda: engine.counters.tables_dropped == 2)
        wait_for(engine, lambda: not engine.background.running)
        stats = engine.stats()
        assert (stats["tables"], stats["compactions"], stats["range_deletions"]) == (2, 0, 0)
        assert stats["compaction_bytes_read"] == stats["compaction_bytes_written"] == 0
        assert sorted(tables_of(tmp_path)) == files
        assert keys_of(engine) == KEYS[:100] + KEYS[300:]
        assert engine.verify() == []
        snapshot.close()
    assert sorted(tables_of(tmp_path)) == [files[0], files[3]]


def test_a_table_that_a_replayed_range_deletion_covers_goes_without_another_write(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        fill(engine, KEYS)
        engine.flush()
        engine.background.stop()  # as if the process ended here
        engine.delete_range(b"", None)
    with opened(tmp_path) as engine:
        wait_for(engine, lambda: engine.counters.tables_dropped == 1)
        assert engine.scan() == []


def test_a_table_at_the_bounds_of_a_range_is_not_dropped(engine: Engine) -> None:
    """Truncation: the range ends at the table's largest key, which it does not hold."""
    for keys in (KEYS[:10], KEYS[10:20], KEYS[20:30]):
        fill(engine, keys)
        engine.flush()
    engine.delete_range(KEYS[5], KEYS[19])
    engine.flush()
    wait_for(engine, lambda: not engine.background.running)
    assert engine.counters.tables_dropped == 0
    assert keys_of(engine) == KEYS[:5] + KEYS[19:30]
    engine.delete_range(KEYS[19], KEYS[20])  # with the one before it covers the second table
    engine.flush()
    wait_for(engine, lambda: engine.counters.tables_dropped == 1)
    assert keys_of(engine) == KEYS[:5] + KEYS[20:30]


def test_a_table_with_one_newer_version_is_not_dropped(engine: Engine) -> None:
    fill(engine, KEYS[:10])
    engine.delete_range(b"", None)
    engine.put(KEYS[3], b"newer")
    engine.flush()
    engine.delete_range(b"x", None)
    engine.flush()
    wait_for(engine, lambda: not engine.background.running)
    assert engine.scan() == [(KEYS[3], b"newer")]


def test_what_was_deleted_does_not_come_back_when_its_deletion_was_compacted_away(engine: Engine) -> None:
    """Resurrection: a range deletion that is retired while a table below still holds what it covers."""
    fill(engine, KEYS, b"old")
    engine.compact()  # to the last level
    engine.delete(KEYS[5])
    fill(engine, KEYS[:100], b"new")
    engine.delete_range(KEYS[0], KEYS[390])
    engine.flush()
    # The upper table is written without them by now; the lowest level is not, so the deletion must stay.
    assert [level["tables"] for level in engine.stats()["levels"]][-1] > 0
    assert engine.stats()["range_deletions"] == 1
    assert keys_of(engine) == KEYS[390:]
    engine.compact()
    assert engine.stats()["range_deletions"] == 0
    assert engine.stats()["table_entries"] == 10
    assert keys_of(engine) == KEYS[390:]
    assert engine.compact() is None
    assert keys_of(engine) == KEYS[390:]


def test_an_older_range_deletion_goes_when_newer_ones_say_the_same(engine: Engine) -> None:
    fill(engine, KEYS)
    engine.flush()
    for _ in range(5):
        engine.delete_range(KEYS[10], KEYS[20])
        engine.delete_range(KEYS[20], KEYS[30])
        engine.delete_range(KEYS[15], KEYS[25])
    engine.delete_range(KEYS[5], KEYS[18])
    engine.delete_range(KEYS[17], KEYS[40])
    engine.flush()
    assert engine.stats()["range_deletions"] == 2
    assert keys_of(engine) == KEYS[:5] + KEYS[40:]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("level", [0, 6])
def test_a_scan_passes_what_was_deleted_without_reading_it(tmp_path: Path, reverse: bool, level: int) -> None:
    """Iterators that skip: neither one key too many, nor a block for each that is gone."""
    options = Options(
        level0_trigger=1000, level0_slow=1000, level0_stop=1000, block_bytes=64, table_bytes=2048
    )
    for start, stop in ((50, 350), (1, 399), (0, 399), (1, 400), (120, 121)):
        with opened(tmp_path / f"{start}-{stop}", options) as engine:
            fill(engine, KEYS)
            engine.flush()
            if level:
                engine.compact()
            assert len(engine.tree.version.levels[level]) > 3 * bool(level)
            engine.background.stop()  # nothing is dropped meanwhile
            engine.delete_range(KEYS[start], KEYS[stop] if stop < 400 else None)
            engine.put(KEYS[start], b"again")
            wanted = [key for at, key in enumerate(KEYS) if at <= start or at >= stop]
            before = engine.shared.cache.stats()
            found = [key for key, _ in engine.scan(reverse=reverse)]
            after = engine.shared.cache.stats()
            assert found == (wanted[::-1] if reverse else wanted)
            looked_at = after["hits"] + after["misses"] - before["hits"] - before["misses"]
            assert looked_at < 20 + len(wanted) // 2


@pytest.mark.parametrize("known", [True, False])
def test_a_scan_passes_only_tables_that_are_older_than_the_deletion(tmp_path: Path, known: bool) -> None:
    """Engines write no table that holds versions from before and after a range deletion; repairs do."""
    keys = [b"%02d" % number for number in range(60)]
    kept = keys[7::11]
    versions = [(key, 50 if key in kept else 5, 1, b"value" * 20) for key in keys]
    meta = make_table(tmp_path, 5, versions)
    file = Vfs().open(str(tmp_path / "000005.sst"))
    limit = {"max_sequence": meta.max_sequence} if known else {}
    table = Table(Cache(1 << 20), file, 5, 5, meta.size, meta.smallest, meta.largest, **limit)
    ranges = Ranges([RangeDeletion(b"00", b"30", 20), RangeDeletion(b"30", None, 21)])
    view = View(Cache(1 << 20), str(tmp_path), (Memtable(),), ((table,),), ranges=ranges)
    for reverse, wanted in ((False, kept), (True, kept[::-1])):
        assert [key for key, _ in Pairs(view, b"", None, 1000, reverse, 100, 0)] == wanted


def test_many_ranges_are_compacted_away_until_few_are_left(tmp_path: Path) -> None:
    options = Options(level0_trigger=1000, level0_slow=1000, level0_stop=1000, table_bytes=2048)
    with opened(tmp_path, options) as engine:
        fill(engine, KEYS)
        engine.compact()
        count = 3 * RANGES_AT_REST
        for at in range(count):
            engine.delete_range(KEYS[2 * at], KEYS[2 * at + 1])
        engine.flush()
        wait_for(engine, lambda: len(engine.tree.range_deletions) <= RANGES_AT_REST)
        wait_for(engine, lambda: not engine.background.running)
        assert engine.stats()["compactions"] > 1
        assert engine.stats()["levels"][-1]["tables"] > 1  # each rewritten in its place
        assert keys_of(engine) == [key for at, key in enumerate(KEYS) if at % 2 or at >= 2 * count]
        assert engine.verify() == []


def test_the_number_of_range_deletions_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They make memtables end, and a writer that is faster than compaction waits for it."""
    monkeypatch.setattr(tree, "RANGES_FLUSH", 30)
    monkeypatch.setattr(base, "RANGES_SLOW", 60)
    monkeypatch.setattr(base, "RANGES_STOP", 90)
    most, pressures = 0, set()
    with opened(tmp_path, Options(table_bytes=4096, level0_trigger=2)) as engine:
        fill(engine, KEYS)
        engine.compact()
        for number in range(2000):
            key = KEYS[number * 7 % 400]
            engine.delete_range(key, key + b"\0")
            engine.put(key, b"again")
            pressures.add(engine.pressure())
            most = max(most, len(engine.tree.range_deletions))
        assert most <= 90
        assert 1 in pressures
        assert keys_of(engine) == KEYS
        assert engine.verify() == []


def test_ten_thousand_range_deletions_where_nothing_is(engine: Engine) -> None:
    for number in range(10_000):
        engine.delete_range(b"nothing-%05d" % number, b"nothing-%05d\0" % number)
    engine.flush()
    assert engine.stats()["range_deletions"] == 0
    assert engine.stats()["flushes"] >= 10_000 // tree.RANGES_FLUSH
    assert engine.scan() == []


def test_memtables_of_replay_end_with_as_many_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as engine:
        for key in KEYS[:50]:
            engine.delete_range(key, key + b"\0")
    monkeypatch.setattr(tree, "RANGES_FLUSH", 10)
    with opened(tmp_path) as engine:
        engine._wait_until(lambda: not engine.tree.retired, "flush")
        assert engine.tree.flushed_sequence >= 40


def table(number: int, level: int, smallest: bytes, largest: bytes, **fields: int) -> TableMeta:
    sequences = {"min_sequence": number, "max_sequence": number} | fields
    zeros = dict.fromkeys(("deletions", "expiring", "raw_key_bytes", "raw_value_bytes", "created_ms"), 0)
    return TableMeta(
        number=number,
        level=level,
        file_id=number,
        size=1 << 20,
        entries=9,
        smallest=smallest,
        largest=largest,
        **zeros,
        **sequences,
    )


def test_policy_drops_first_and_rewrites_the_table_that_was_not_for_longest() -> None:
    few = Ranges([RangeDeletion(b"c", b"e", 50), RangeDeletion(b"e", b"h", 51)])
    inside = table(5, 6, b"d", b"f")
    version = Version.of([inside, table(6, 6, b"g", b"h"), table(60, 0, b"d", b"e", min_sequence=52)])
    proposal = propose(version, QUIET, few)
    assert proposal is not None
    assert (proposal.drop, proposal.upper) == (True, (inside,))
    assert propose(version.change((), {5}), QUIET, few) is None

    many = Ranges(RangeDeletion(b"%03d" % at, b"%03d\0" % at, 100 + at) for at in range(2 * RANGES_AT_REST))
    older = table(7, 6, b"000", b"050", cleaned_sequence=8)
    newer = table(8, 5, b"000", b"999", cleaned_sequence=9)
    proposal = propose(Version.of([older, newer]), QUIET, many)
    assert proposal is not None
    assert (proposal.level, proposal.output_level, proposal.upper, proposal.move) == (6, 6, (older,), False)
    assert proposal.score == 2
    clean = [one._replace(cleaned_sequence=1000) for one in (older, newer)]
    assert propose(Version.of(clean), QUIET, many) is None
    upper = table(9, 0, b"000", b"050")
    proposal = propose(Version.of([upper, *clean]), QUIET, many)
    assert proposal is not None
    assert (proposal.level, proposal.upper, proposal.drop) == (0, (upper,), False)


def test_engines_that_share_a_manifest_have_their_own(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path))
    with (
        engine_package.open(str(tmp_path / "1"), shared=shared, engine_id=1) as first,
        engine_package.open(str(tmp_path / "2"), shared=shared, engine_id=2) as second,
    ):
        for engine in (first, second):
            fill(engine, KEYS)
            engine.flush()
        first.delete_range(KEYS[5], None)
        first.flush()
        assert keys_of(second) == KEYS
        assert keys_of(first) == KEYS[:5]
        assert shared.manifest.load(2)[0] is not None
        state = shared.manifest.load(1)[0]
        assert state is not None
        assert [one.start for one in state.range_deletions] == [KEYS[5]]
    shared.close()
