"""Range deletions together with what else changes or reads tables: compact_range, few open files, readers on
other threads, the rate limit's haste, statistics."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Engine, Options, Shared, background, base
from storenode.engine.deletions import RangeDeletion
from storenode.engine.options import LEVELS
from storenode.engine.ranges import Ranges
from storenode.engine.tree import Settled

KEYS = [b"%04d" % number for number in range(1000)]
LAST = LEVELS - 1
QUIET = Options(
    level0_trigger=100,
    level0_slow=100,
    level0_stop=100,
    table_bytes=4096,
    block_bytes=512,
    compression="none",
)
TINY = Options(
    memtable_bytes=8192,
    table_bytes=2048,
    base_bytes=4096,
    block_bytes=256,
    level_ratio=2,
    level0_trigger=3,
    compression="none",
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with engine_package.open(str(tmp_path), options=QUIET) as one:
        yield one


def load(engine: Engine, keys: list[bytes], value: bytes = b"old" * 30) -> None:
    for key in keys:
        engine.put(key, value)
    engine.flush()


def idle(engine: Engine, done: Callable[[], bool] = lambda: True) -> None:
    engine.shared.wake()
    engine.shared.wait_for(lambda: done() and not engine.background.running)


def kept_deletions(engine: Engine) -> list[bytes]:
    state = engine.shared.manifest.load(0)[0]
    assert state is not None
    return [one.start for one in state.range_deletions]


# compact_range


def test_compact_range_rewrites_the_last_level_for_a_deletion_in_its_range_alone(engine: Engine) -> None:
    load(engine, KEYS)
    engine.compact()
    before = {one.number for one in engine.tree.version.levels[LAST]}
    engine.delete_range(KEYS[500], KEYS[505])
    engine.delete_range(KEYS[900], KEYS[905])
    engine.compact_range(KEYS[100], KEYS[110])
    assert {one.number for one in engine.tree.version.levels[LAST]} == before, "nothing to drop there"
    assert kept_deletions(engine) == [KEYS[500], KEYS[900]]
    engine.compact_range(KEYS[500], KEYS[505])
    changed = before - {one.number for one in engine.tree.version.levels[LAST]}
    assert 1 <= len(changed) <= 2
    assert kept_deletions(engine) == [KEYS[900]], "applied, so it is forgotten"
    assert engine.stats()["table_entries"] == len(KEYS) - 5
    engine.compact_range()
    assert kept_deletions(engine) == []
    assert engine.stats()["table_entries"] == len(KEYS) - 10
    assert [key for key, _ in engine.scan()] == [*KEYS[:500], *KEYS[505:900], *KEYS[905:]]
    assert engine.verify() == []


def test_a_deletion_stays_for_what_compact_range_left_beside_it(tmp_path: Path) -> None:
    """What was dropped above must not uncover what lies elsewhere."""
    with engine_package.open(str(tmp_path), options=QUIET) as engine:
        load(engine, KEYS)
        engine.compact()
        load(engine, KEYS[::2], b"newer")
        for key in KEYS[400:410]:
            engine.delete(key)
        engine.delete_range(KEYS[300], KEYS[700])
        engine.put(KEYS[405], b"after")
        engine.compact_range(KEYS[400], KEYS[404])
    expected = [*KEYS[:300], KEYS[405], *KEYS[700:]]
    with engine_package.open(str(tmp_path), options=QUIET) as engine:
        assert [key for key, _ in engine.scan()] == expected
        engine.compact()
        assert kept_deletions(engine) == []
        assert engine.stats()["table_entries"] == len(expected)
        assert [key for key, _ in engine.scan()] == expected


@pytest.mark.parametrize("seed", range(4))
def test_random_deletions_and_compactions_of_ranges(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    model: dict[bytes, bytes] = {}
    for _ in range(4):
        with engine_package.open(str(tmp_path), options=TINY) as engine:
            assert engine.scan() == sorted(model.items())
            for round_ in range(8):
                for _ in range(60):
                    key = dice.choice(KEYS)
                    model[key] = b"%d" % round_ * dice.randrange(1, 60)
                    engine.put(key, model[key])
                    if dice.random() < 0.1:
                        start, stop = sorted((dice.randrange(1000), dice.randrange(1000)))
                        stop = start + 1 + (stop - start) // 4
                        engine.delete_range(b"%04d" % start, b"%04d" % stop)
                        model = {key: value for key, value in model.items() if not start <= int(key) < stop}
                engine.compact_range(dice.choice([None, *KEYS]), dice.choice([None, *KEYS]))
                assert engine.scan() == sorted(model.items())
            assert engine.verify() == []
    with engine_package.open(str(tmp_path), options=TINY) as engine:
        engine.compact()
        assert engine.scan() == sorted(model.items())
        assert engine.stats()["table_entries"] == len(model)
        assert engine.stats()["range_deletions"] == 0


def test_a_deletion_that_settles_is_looked_at_even_if_no_table_came_or_went(engine: Engine) -> None:
    load(engine, KEYS)
    idle(engine)
    assert engine.background.due(only_flushes=False) == []
    whole = Ranges([RangeDeletion(b"", None, engine.next_sequence)])
    with engine.shared._condition:  # so that no worker comes first
        engine.tree.settled = Settled(engine.next_sequence, whole)
        assert [one.kind for one in engine.background.due(only_flushes=False)] == [background.COMPACTION]


# Files and statistics


def test_dropped_tables_are_read_by_whoever_still_holds_them(tmp_path: Path) -> None:
    """Few of them are open when they are dropped: they must be while their names are still there."""
    shared = Shared(str(tmp_path), open_files=2, cache_bytes=0)
    with engine_package.open(str(tmp_path / "e"), options=QUIET, shared=shared) as engine:
        load(engine, KEYS)
        engine.compact()
        before = engine.scan()
        count = engine.stats()["tables"]
        assert count > 10
        snapshot = engine.snapshot()
        engine.delete_range(b"", None)
        idle(engine, lambda: engine.stats()["tables"] == 0)
        assert engine.scan() == []
        assert snapshot.scan() == before
        assert snapshot.scan(reverse=True) == before[::-1]
        assert len(list((tmp_path / "e").glob("*.sst"))) == count
        snapshot.close()
        del snapshot
        stats = engine.stats()
        assert (stats["tables_dropped"], stats["compactions"]) == (count, 1), "a drop merges nothing"
        assert shared.stats()["files"]["open"] == 0
    shared.close()
    assert not list((tmp_path / "e").glob("*.sst"))


def test_what_is_rewritten_in_its_place_came_from_no_level_above(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path), options=QUIET) as engine:
        load(engine, KEYS)
        engine.compact()
        from_above = engine.stats()["levels"][LAST]["bytes_from_above"]
        written = engine.stats()["levels"][LAST]["bytes_written"]
        for at in range(0, 400, 2):
            engine.delete_range(KEYS[at], KEYS[at + 1])
        engine.flush()
        idle(engine, lambda: engine.stats()["range_deletions"] < 80)
        level = engine.stats()["levels"][LAST]
        assert level["bytes_from_above"] == from_above
        assert level["bytes_written"] > written


def test_too_many_deletions_slow_writers_down_and_the_statistics_say_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (base, background):
        monkeypatch.setattr(module, "RANGES_SLOW", 10)
    monkeypatch.setattr(base, "RANGES_STOP", 20)
    load(engine, KEYS)
    pressures = []
    for at in range(20):
        assert engine.background.awaited == (at >= 10)
        engine.delete_range(KEYS[2 * at], KEYS[2 * at + 1])
        pressures.append(engine.pressure())
    assert pressures == [0] * 9 + [1] * 10 + [2]
    backlog = engine.stats()["backlog"]
    assert backlog["slow"]["range_deletions"]["times"] == backlog["stop"]["range_deletions"]["times"] == 1
    assert backlog["stop"]["level0"]["times"] == 0
    engine.compact()
    assert engine.pressure() == 0
    assert not engine.background.awaited


@pytest.mark.parametrize("reverse", [False, True])
def test_an_iterator_stays_in_the_moment_in_which_it_began(engine: Engine, reverse: bool) -> None:
    load(engine, KEYS)
    engine.delete_range(KEYS[200], KEYS[300])
    wanted = engine.scan(reverse=reverse)
    assert len(wanted) == 900
    pairs = engine.iterate(reverse=reverse)
    first = [next(pairs) for _ in range(150)]
    engine.delete_range(b"", None)
    engine.put(KEYS[250], b"later")
    engine.compact()
    assert [*first, *pairs] == wanted
    assert engine.scan(reverse=reverse) == [(KEYS[250], b"later")]


# Other threads


def old_and_new(keys: list[bytes]) -> set[bytes]:
    return {key[:1] for key in keys}


def by_scan(engine: Engine) -> set[bytes]:
    return old_and_new([key for key, _ in engine.scan()])


def by_snapshot(engine: Engine) -> set[bytes]:
    with engine.snapshot() as snapshot:
        return old_and_new([key for key, _ in snapshot.scan(reverse=True)])


BOTH = [side + b"%02d" % number for side in (b"a", b"b") for number in range(5)]


def by_multi_get(engine: Engine) -> set[bytes]:
    found = zip(BOTH, engine.multi_get(BOTH), strict=True)
    return old_and_new([key for key, value in found if value is not None])


def by_read(engine: Engine) -> set[bytes]:
    results = protocol.decode_results(engine.read(b"".join(map(protocol.encode_get, BOTH)), 1))
    return old_and_new([key for key, result in zip(BOTH, results, strict=True) if result[0] == 0])


@pytest.mark.parametrize("way", [by_scan, by_snapshot, by_multi_get, by_read])
def test_nobody_sees_what_came_after_a_deletion_without_the_deletion(
    tmp_path: Path, way: Callable[[Engine], set[bytes]]
) -> None:
    """A deletion makes a new view, but its memtable goes on: the view before it with a sequence from after
    it would be a state that never was."""
    seen: list[set[bytes]] = []
    stop = False
    interval = sys.getswitchinterval()

    def read() -> None:
        while not stop:
            seen.append(way(engine))

    with engine_package.open(str(tmp_path)) as engine:
        reader = threading.Thread(target=read)
        sys.setswitchinterval(1e-6)
        try:
            reader.start()
            for round_ in range(400):
                side = b"ab"[round_ % 2 : round_ % 2 + 1]
                engine.delete_range(b"a", b"c")
                engine.write(b"".join(protocol.encode_put(key, b"v") for key in BOTH if key[:1] == side))
        finally:
            stop = True
            reader.join()
            sys.setswitchinterval(interval)
    assert seen
    assert {frozenset(sides) for sides in seen} <= {frozenset(), frozenset({b"a"}), frozenset({b"b"})}
