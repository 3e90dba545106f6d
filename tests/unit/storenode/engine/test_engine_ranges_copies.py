"""Range deletions together with ingested tables, whose entries share one sequence, and with checkpoints."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from storenode.engine import Engine, Options, TableWriter
from storenode.engine.options import LEVELS

KEYS = [b"%03d" % number for number in range(300)]
LAST = LEVELS - 1
QUIET = Options(level0_trigger=100, level0_slow=100, level0_stop=100, table_bytes=2048, block_bytes=256)
TINY = Options(
    memtable_bytes=8192,
    table_bytes=2048,
    base_bytes=4096,
    block_bytes=256,
    level_ratio=2,
    level0_trigger=3,
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with engine_package.open(str(tmp_path / "engine"), options=QUIET) as opened:
        yield opened


def load(engine: Engine, keys: list[bytes], value: bytes) -> None:
    for key in keys:
        engine.put(key, value)
    engine.flush()


def ingest(engine: Engine, keys: list[bytes], value: bytes | None) -> None:
    path = f"{engine.directory}.prepared"
    with TableWriter(path) as table:
        for key in keys:
            if value is None:
                table.delete(key)
            else:
                table.add(key, value)
    engine.ingest([path], move=True)


def content(engine: Engine) -> dict[bytes, bytes]:
    """By all ways that there are to ask, which must agree."""
    pairs = engine.scan()
    found = dict(pairs)
    assert engine.scan(reverse=True) == pairs[::-1]
    assert [found.get(key) for key in KEYS] == engine.multi_get(KEYS) == [engine.get(key) for key in KEYS]
    return found


def kept_deletions(engine: Engine) -> list[bytes]:
    state = engine.shared.manifest.load(engine.engine_id)[0]
    assert state is not None
    return [one.start for one in state.range_deletions]


def reopened(tmp_path: Path) -> dict[bytes, bytes]:
    with engine_package.open(str(tmp_path / "engine"), options=QUIET) as engine:
        assert engine.verify() == []
        return content(engine)


def idle(engine: Engine) -> None:
    engine.shared.wake()
    engine.shared.wait_for(lambda: not engine.background.running and not engine.background.due(False))


# Ingested tables


@pytest.mark.parametrize("flushed", [False, True])
def test_ingested_entries_are_above_all_earlier_range_deletions_and_below_later_ones(
    tmp_path: Path, flushed: bool
) -> None:
    wanted = dict.fromkeys(KEYS[:50], b"old")
    with engine_package.open(str(tmp_path / "engine"), options=QUIET) as engine:
        load(engine, KEYS, b"old")
        engine.delete_range(KEYS[50], None)
        if flushed:
            engine.flush()
        ingest(engine, KEYS[100:200], b"ingested")
        assert kept_deletions(engine) == [KEYS[50]]
        wanted |= dict.fromkeys(KEYS[100:200], b"ingested")
        assert content(engine) == wanted
        before = engine.snapshot()
        engine.delete_range(KEYS[140], KEYS[160])
        for key in KEYS[140:160]:
            del wanted[key]
        if flushed:
            engine.flush()
        assert content(engine) == wanted
        engine.put(KEYS[150], b"after")
        wanted[KEYS[150]] = b"after"
        assert len(before.scan()) == 150
        before.close()
    assert reopened(tmp_path) == wanted
    with engine_package.open(str(tmp_path / "engine"), options=QUIET) as engine:
        engine.compact()
        assert content(engine) == wanted
        assert kept_deletions(engine) == []
        assert engine.stats()["table_entries"] == len(wanted)
        assert engine.verify() == []


def test_an_ingested_table_goes_unread_when_a_range_deletion_covers_it(engine: Engine) -> None:
    ingest(engine, KEYS[100:200], b"ingested")
    load(engine, KEYS[:50], b"kept")
    engine.delete_range(KEYS[100], KEYS[200])
    idle(engine)
    stats = engine.stats()
    assert (stats["tables"], stats["tables_dropped"], stats["compaction_bytes_read"]) == (1, 1, 0)
    assert kept_deletions(engine) == []
    ingest(engine, KEYS[150:160], b"again")
    idle(engine)
    assert engine.stats()["tables"] == 2
    assert content(engine) == dict.fromkeys(KEYS[:50], b"kept") | dict.fromkeys(KEYS[150:160], b"again")


def test_a_deletion_that_was_ingested_hides_what_a_later_compaction_puts_below(engine: Engine) -> None:
    load(engine, KEYS, b"old")
    engine.compact()
    ingest(engine, KEYS[10:20], None)
    engine.delete_range(KEYS[15], KEYS[30])
    engine.compact_range(KEYS[12], KEYS[13])
    wanted = dict.fromkeys(KEYS[:10] + KEYS[30:], b"old")
    assert content(engine) == wanted
    engine.compact()
    assert content(engine) == wanted
    assert engine.stats()["table_entries"] == len(wanted)


# Checkpoints


def test_a_checkpoint_has_the_range_deletions_of_its_moment(tmp_path: Path, engine: Engine) -> None:
    load(engine, KEYS, b"old")
    engine.compact()
    engine.delete_range(KEYS[50], KEYS[100])
    engine.checkpoint(str(tmp_path / "first"))
    ingest(engine, KEYS[60:70], b"ingested")
    engine.delete_range(KEYS[200], None)
    engine.checkpoint(str(tmp_path / "second"))
    engine.compact()
    assert kept_deletions(engine) == []
    first = dict.fromkeys(KEYS[:50] + KEYS[100:], b"old")
    second = dict.fromkeys(KEYS[:50] + KEYS[100:200], b"old") | dict.fromkeys(KEYS[60:70], b"ingested")
    assert content(engine) == second
    for name, wanted, starts in (
        ("first", first, [KEYS[50]]),
        ("second", second, [KEYS[50], KEYS[200]]),
    ):
        with engine_package.open(str(tmp_path / name), options=QUIET) as copy:
            assert kept_deletions(copy) == starts
            assert content(copy) == wanted
            assert copy.verify() == []
            copy.compact()
            assert content(copy) == wanted
            assert kept_deletions(copy) == []


@pytest.mark.parametrize("seed", range(4))
def test_random_writes_deletions_ingestions_and_copies(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    model: dict[bytes, bytes] = {}

    def some() -> tuple[int, int]:
        start = dice.randrange(len(KEYS))
        return start, min(start + 1 + dice.randrange(40), len(KEYS))

    with engine_package.open(str(tmp_path / "engine"), options=TINY) as engine:
        for round_ in range(120):
            start, stop = some()
            keys, value = KEYS[start:stop], b"%d" % round_ * dice.randrange(1, 30)
            match dice.choice(["put", "put", "delete", "delete", "ingest", "compact", "copy"]):
                case "put":
                    for key in keys:
                        engine.put(key, value)
                    model |= dict.fromkeys(keys, value)
                case "delete":
                    engine.delete_range(keys[0], keys[-1] + b"\0")
                    model = {key: old for key, old in model.items() if key not in keys}
                case "ingest":
                    ingest(engine, keys, value)
                    model |= dict.fromkeys(keys, value)
                case "compact":
                    engine.compact_range(keys[0], keys[-1])
                case "copy":
                    engine.checkpoint(str(tmp_path / f"{round_}"))
                    with engine_package.open(str(tmp_path / f"{round_}"), options=TINY) as copy:
                        assert copy.scan() == sorted(model.items())
            if round_ % 10 == 0:
                assert content(engine) == model
        assert content(engine) == model
        assert engine.verify() == []
    with engine_package.open(str(tmp_path / "engine"), options=TINY) as engine:
        assert content(engine) == model
        engine.compact()
        assert content(engine) == model
        assert engine.stats()["table_entries"] == len(model)
