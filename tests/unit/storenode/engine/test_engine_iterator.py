"""Iterators: the pairs of one moment, however long it takes to look at them."""

from __future__ import annotations

import gc
import random
import threading
from itertools import islice
from pathlib import Path

import pytest

import storenode.engine
from storenode.engine import EngineClosed, Options, WriteBatch

SMALL = Options(
    memtable_bytes=1 << 15, block_bytes=256, table_bytes=1 << 14, base_bytes=1 << 15, level0_trigger=2
)

Pairs = list[tuple[bytes, bytes]]


def fill(engine: storenode.engine.Engine, source: random.Random, count: int = 4000) -> Pairs:
    """Random puts and deletes over several levels and memtables; what is left, in order."""
    model: dict[bytes, bytes] = {}
    for _ in range(count // 50):
        batch = WriteBatch()
        for _ in range(50):
            key = b"%06d" % source.randrange(count)
            if source.random() < 0.2:
                batch.delete(key)
                model.pop(key, None)
            else:
                model[key] = source.randbytes(source.choice((0, 10, 100)))
                batch.put(key, model[key])
        engine.write(batch)
    return sorted(model.items())


@pytest.mark.parametrize("reverse", [False, True])
def test_an_iterator_gives_what_a_model_has(tmp_path: Path, reverse: bool) -> None:
    source = random.Random(1)
    with storenode.engine.open(str(tmp_path), options=SMALL) as engine:
        pairs = fill(engine, source)
        for _ in range(60):
            start, stop = sorted(b"%06d" % source.randrange(4100) for _ in range(2))
            bound = source.choice((None, stop))
            limit = source.choice((None, 0, 1, 15, 16, 17, 700))
            expected = [(k, v) for k, v in pairs if k >= start and (bound is None or k < bound)]
            expected = (expected[::-1] if reverse else expected)[:limit]
            assert list(engine.iterate(start, bound, limit, reverse)) == expected
            assert engine.scan(start, bound, limit, reverse) == expected


@pytest.mark.parametrize("reverse", [False, True])
def test_an_iterator_stays_in_its_moment(tmp_path: Path, reverse: bool) -> None:
    source = random.Random(2)
    engine = storenode.engine.open(str(tmp_path), options=SMALL)
    pairs = fill(engine, source)
    iterator = engine.iterate(reverse=reverse)
    found = list(islice(iterator, 100))
    fill(engine, source)
    engine.compact()
    found += islice(iterator, 1000)
    fill(engine, source)
    engine.close()
    gc.collect()
    found += iterator
    assert found == (pairs[::-1] if reverse else pairs)
    with pytest.raises(EngineClosed):
        engine.iterate()


def test_a_pair_that_is_kept_does_not_change(tmp_path: Path) -> None:
    """The tuple of one that is not kept serves for the next."""
    with storenode.engine.open(str(tmp_path)) as engine:
        pairs = fill(engine, random.Random(3))
        kept = [pair for number, pair in enumerate(engine.iterate()) if number % 3 == 0]
        assert kept == pairs[::3]
        before = None
        for pair in engine.iterate():
            assert before is None or before[0] < pair[0]
            before = pair


def test_values_larger_than_a_page_and_far_apart_keys_are_all_there(tmp_path: Path) -> None:
    with storenode.engine.open(str(tmp_path)) as engine:
        large = {b"%03d" % number: bytes([number]) * 300_000 for number in range(40)}
        for key, value in large.items():
            engine.put(key, value)
        batch = WriteBatch()
        for number in range(250_000):  # more than a scan looks at without a rest
            batch.delete(b"1%06d" % number)
        for number in range(0, 250_000, 10_000):
            batch.put(b"1%06d" % number, b"")
        engine.write(batch)
        for number in range(1, 250_000, 10_000):
            engine.delete(b"1%06d" % number)
        expected = sorted({**large, **{b"1%06d" % n: b"" for n in range(0, 250_000, 10_000)}}.items())
        assert list(engine.iterate()) == expected
        assert list(engine.iterate(reverse=True)) == expected[::-1]


def test_a_closed_iterator_is_at_its_end_and_lets_go(tmp_path: Path) -> None:
    with storenode.engine.open(str(tmp_path), options=SMALL) as engine:
        fill(engine, random.Random(4))
        engine.compact()
        iterator = engine.iterate()
        next(iterator)
        engine.compact()
        iterator.close()
        assert list(iterator) == []
        iterator.close()
        iterator = engine.iterate(limit=0)
        assert list(iterator) == []


def test_one_iterator_is_for_one_thread(tmp_path: Path) -> None:
    """Two at once get an error or pairs, never a wrong one."""
    with storenode.engine.open(str(tmp_path)) as engine:
        pairs = dict(fill(engine, random.Random(5), count=20_000))
        iterator = engine.iterate()
        wrong: list[object] = []

        def consume() -> None:
            while True:
                try:
                    pair = next(iterator)
                except RuntimeError:
                    continue
                except StopIteration:
                    return
                if pairs.get(pair[0]) != pair[1]:
                    wrong.append(pair)

        threads = [threading.Thread(target=consume) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []


def test_a_long_scan_reads_ahead_and_leaves_what_is_cached_alone(tmp_path: Path) -> None:
    shared = storenode.engine.Shared(str(tmp_path), cache_bytes=64 << 10)
    with storenode.engine.open(str(tmp_path / "engine"), shared=shared) as engine:
        source = random.Random(6)
        pairs = [(b"%06d" % number, source.randbytes(100)) for number in range(20_000)]
        batch = WriteBatch()
        batch.put_many(pairs)
        engine.write(batch)
        engine.compact()
        for key, value in pairs[:300] * 2:
            assert engine.get(key) == value
        evicted = shared.cache.stats()["evictions"]
        for reverse in (False, True):
            assert list(engine.iterate(reverse=reverse)) == (pairs[::-1] if reverse else pairs)
        assert shared.cache.stats()["evictions"] - evicted < 20
    shared.close()
