"""compact_range: what goes down with a range, what is dropped, and what is left alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Engine, Options
from storenode.engine.compaction import KeyRange, propose_range
from storenode.engine.options import LEVELS
from storenode.engine.version import TableMeta, Version

LAST = LEVELS - 1
QUIET = Options(
    level0_trigger=100,
    level0_slow=100,
    level0_stop=100,
    table_bytes=4096,
    block_bytes=512,
    compression="none",
)
KEYS = [b"%04d" % number for number in range(1000)]


def table(number: int, level: int, smallest: str, largest: str, deletions: int = 0) -> TableMeta:
    keys = smallest.encode(), largest.encode()
    return TableMeta(number, level, number, 1000, 9, deletions, 0, number, number, 0, 0, 0, *keys)


def chosen(tables: list[TableMeta], start: bytes, stop: bytes | None) -> set[int]:
    proposal = propose_range(Version.of(tables), KeyRange(start, stop))
    if proposal is None:
        return set()
    assert proposal.output_level == LAST
    return {one.number for one in (*proposal.upper, *proposal.lower)}


def test_only_tables_of_the_range_are_chosen_and_the_stop_is_not_in_it() -> None:
    tables = [
        table(1, 5, "a", "c"),
        table(2, 5, "d", "f"),
        table(3, LAST, "a", "c"),
        table(4, LAST, "g", "h"),
    ]
    assert chosen(tables, b"a", b"d") == {1, 3}
    assert chosen(tables, b"c", b"d") == {1, 3}
    assert chosen(tables, b"a", b"d\0") == {1, 2, 3}
    assert chosen(tables, b"x", None) == set()


def test_what_lies_under_a_chosen_table_goes_with_it() -> None:
    """Left where it is, it would hide what is newer."""
    tables = [table(9, 1, "a", "m"), table(8, 3, "k", "p"), table(7, 4, "o", "t"), table(6, LAST, "s", "z")]
    assert chosen(tables, b"a", b"b") == {9, 8, 7, 6}
    assert chosen(tables, b"s", b"t") == {7, 6}, "what lies above stays above"


def test_tables_of_level_0_that_overlap_go_together() -> None:
    tables = [table(9, 0, "a", "c"), table(8, 0, "b", "e"), table(7, 0, "e", "g"), table(6, 0, "x", "z")]
    assert chosen(tables, b"a", b"aa") == {9, 8, 7}
    assert chosen(tables, b"x", None) == {6}


def test_a_range_of_the_last_level_is_rewritten_only_for_what_can_be_dropped() -> None:
    tables = [table(1, LAST, "a", "c"), table(2, LAST, "d", "f", deletions=1)]
    assert chosen(tables, b"a", b"c") == set()
    assert chosen(tables, b"e", b"f") == {2}


def load(engine: Engine, keys: list[bytes], value: bytes) -> None:
    for key in keys:
        engine.put(key, value)
    engine.flush()


def test_a_range_is_merged_and_what_lies_beside_it_is_left_alone(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path), options=QUIET) as engine:
        load(engine, KEYS, b"old" * 30)
        engine.compact()
        before = {one.number: one for one in engine.tree.version.levels[LAST]}
        assert len(before) > 10
        load(engine, KEYS[500:520], b"new")
        for key in KEYS[505:510]:
            engine.delete(key)
        engine.compact_range(KEYS[500], KEYS[520])
        stats = engine.stats()
        assert [level["tables"] for level in stats["levels"][:-1]] == [0] * LAST
        assert stats["table_deletions"] == 0
        assert stats["table_entries"] == len(KEYS) - 5
        kept = {one.number for one in engine.tree.version.levels[LAST]} & set(before)
        assert len(before) - len(kept) <= 3
        expected = [(key, b"old" * 30) for key in KEYS[:500]]
        expected += [(key, b"new") for key in (*KEYS[500:505], *KEYS[510:520])]
        expected += [(key, b"old" * 30) for key in KEYS[520:]]
        assert engine.scan() == expected
        assert engine.verify() == []


def test_what_has_expired_in_the_range_is_dropped(tmp_path: Path) -> None:
    def put(key: bytes, ttl: int | None, now_ms: int) -> None:
        ops = protocol.encode_put(key, b"v", ttl)
        sequence = engine.next_sequence
        engine.apply(ops, sequence, now_ms, engine.append([(sequence, now_ms, ops)]))

    with engine_package.open(str(tmp_path), options=QUIET) as engine:
        for key in (b"a", b"b", b"y"):
            put(key, 10, 1000)
            engine.compact_range(key, key + b"\0")
        put(b"z", None, 5000)
        engine.compact_range(b"a", b"c")
        assert engine.stats()["table_entries"] == 2, "y has expired beside the range, z is alive"
        engine.compact_range()
        assert engine.stats()["table_entries"] == 1


def test_an_empty_range_compacts_nothing_and_bounds_are_bytes(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path), options=QUIET) as engine:
        load(engine, KEYS, b"v")
        engine.compact_range(b"5", b"5")
        engine.compact_range(b"5", b"1")
        engine.compact_range(b"x")
        assert engine.stats()["levels"][0]["tables"] == 1
        with pytest.raises(TypeError, match="bytes or None, not str"):
            engine.compact_range("a")  # type: ignore[arg-type]
        assert engine.background.wanted is None
        engine.compact_range(None, b"0001")
        assert engine.stats()["levels"][0]["tables"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_random_ranges_change_nothing_that_is_read(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    options = Options(
        memtable_bytes=8192,
        table_bytes=2048,
        base_bytes=4096,
        block_bytes=256,
        level_ratio=2,
        level0_trigger=3,
        compression="none",
    )
    model: dict[bytes, bytes] = {}
    with engine_package.open(str(tmp_path), options=options) as engine:
        for round_ in range(25):
            for _ in range(60):
                key = dice.choice(KEYS)
                if dice.random() < 0.3:
                    model.pop(key, None)
                    engine.delete(key)
                else:
                    model[key] = b"%d" % round_ * dice.randrange(1, 60)
                    engine.put(key, model[key])
            start, stop = dice.choice([None, *KEYS]), dice.choice([None, *KEYS])
            engine.compact_range(start, stop)
            assert engine.scan() == sorted(model.items())
        engine.compact()
        assert engine.scan() == sorted(model.items())
        assert engine.stats()["table_entries"] == len(model)
