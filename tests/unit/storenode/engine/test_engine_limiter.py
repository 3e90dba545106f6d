"""The rate limit of compactions: the arithmetic with a clock of its own, and that it never makes anybody
wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import storenode.engine as engine_package
from storenode.engine import Engine, Options, Shared
from storenode.engine.limiter import PAUSE_BYTES, RateLimiter

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_was_saved_up_is_free_and_the_rest_takes_its_time() -> None:
    clock = Clock()
    limiter = RateLimiter(8 * MIB, clock)
    assert limiter.burst_bytes == 2 * MIB
    assert limiter.take(2 * MIB) == 0
    assert limiter.take(4 * MIB) == 0.5
    assert limiter.take(4 * MIB) == 1.0, "who comes next waits for what was taken before, too"
    clock.now += 0.75
    assert limiter.take(0) == 0.25
    clock.now += 1000
    assert limiter.take(2 * MIB) == 0
    assert limiter.take(MIB) == 0.125, "no more than the burst is saved up"


def test_the_rate_may_change_and_what_is_owed_stays() -> None:
    clock = Clock()
    limiter = RateLimiter(8 * MIB, clock)
    assert limiter.take(10 * MIB) == 1
    clock.now += 0.5
    limiter.change(2 * MIB)
    assert limiter.take(0) == 2, "what was waited for was filled at the old rate, the rest is at the new one"
    assert limiter.burst_bytes == PAUSE_BYTES


def test_a_slow_limit_lets_one_pause_through_at_once() -> None:
    limiter = RateLimiter(1024, Clock())
    assert limiter.burst_bytes == PAUSE_BYTES
    assert limiter.take(PAUSE_BYTES) == 0
    assert limiter.take(1024) == 1


def test_over_a_long_time_the_rate_is_kept_whatever_the_pieces() -> None:
    clock = Clock()
    limiter = RateLimiter(10 * MIB, clock)
    moved = 0
    for piece in [PAUSE_BYTES, 5 * MIB, 17, 0, 3 * PAUSE_BYTES] * 40:
        clock.now += limiter.take(piece)
        moved += piece
    expected = (moved - limiter.burst_bytes) / (10 * MIB)
    assert clock.now - 100 == pytest.approx(expected, rel=1e-3)
    assert limiter.stats()["limited_bytes"] == moved


def test_counters() -> None:
    limiter = RateLimiter(5, Clock())
    limiter.pass_by(7)
    limiter.waited(0.5)
    limiter.waited(1.5)
    stats = limiter.stats()
    assert (stats["unlimited_bytes"], stats["waits"], stats["wait_seconds"]) == (7, 2, 2.0)
    assert stats["limited_bytes"] == 0


def test_a_limit_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compaction_bytes_per_second"):
        Shared(str(tmp_path), compaction_bytes_per_second=0)
    Shared(str(tmp_path)).close()  # nothing was left locked


class Resting(Shared):
    """Tells when a job rests."""

    resting: threading.Event
    rested: threading.Event

    def rest(self, seconds: float, ends: Callable[[], bool]) -> None:
        self.resting.set()
        super().rest(seconds, ends)
        self.rested.set()


@pytest.fixture
def shared(tmp_path: Path) -> Resting:
    """One byte a second: a compaction of some MiB takes weeks."""
    opened = Resting(str(tmp_path), compaction_bytes_per_second=1)
    opened.resting, opened.rested = threading.Event(), threading.Event()
    return opened


def engine_with_a_resting_compaction(shared: Resting) -> Engine:
    options = Options(level0_trigger=2, compression="none", memtable_bytes=64 * MIB)
    engine = engine_package.open(f"{shared.directory}/a", options=options, shared=shared)
    for round_ in range(2):
        for number in range(2000):
            engine.put(b"%05d" % number, b"%05d" % round_ * 200)
        engine.flush()
    assert shared.resting.wait(60)
    assert not shared.rested.is_set()
    return engine


def test_closing_ends_a_limited_compaction_at_once(shared: Resting) -> None:
    engine = engine_with_a_resting_compaction(shared)
    engine.close()
    assert shared.rested.is_set()
    assert engine.counters.compactions == 0
    shared.close()
    with engine_package.open(f"{shared.directory}/a", shared=Shared(shared.directory)) as again:
        assert len(again.scan()) == 2000
        assert again.verify() == []
    again.shared.close()


def test_a_compaction_that_somebody_waits_for_is_not_slowed(shared: Resting) -> None:
    with engine_with_a_resting_compaction(shared) as engine:
        engine.compact()
        assert engine.stats()["levels"][0]["tables"] == 0
        limiter = shared.stats()["limiter"]
        assert limiter["waits"] >= 1
        assert limiter["unlimited_bytes"] > MIB
    shared.close()


def test_writers_that_are_slowed_down_end_the_limit_of_all(shared: Resting) -> None:
    """The other engine's compaction would wait for the worker that rests."""
    options = Options(level0_trigger=1, level0_slow=1, level0_stop=1)
    with (
        engine_with_a_resting_compaction(shared) as engine,
        engine_package.open(f"{shared.directory}/b", options=options, shared=shared, engine_id=1) as other,
    ):
        other.put(b"k", b"v")
        other.flush()
        shared.wait_for(lambda: not other.tree.version.levels[0])
        shared.wait_for(lambda: engine.counters.compactions == 1)
    shared.close()


def test_flushes_are_not_limited(shared: Resting) -> None:
    with engine_with_a_resting_compaction(shared) as engine:
        for number in range(2000):
            engine.put(b"%05d" % number, bytes(1000))
        engine.flush()
        assert not shared.rested.is_set()
        assert engine.stats()["flushes"] == 3
    shared.close()


def test_all_that_a_compaction_moves_is_counted(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path), compaction_bytes_per_second=1 << 40)
    options = Options(level0_trigger=100, level0_slow=100, level0_stop=100, compression="none")
    with engine_package.open(str(tmp_path / "a"), options=options, shared=shared) as engine:
        for _ in range(2):
            for number in range(3000):
                engine.put(b"%05d" % number, bytes(1000))
            engine.flush()
        engine.compact()
        stats, limiter = engine.stats(), shared.stats()["limiter"]
        moved = stats["compaction_bytes_read"] + stats["compaction_bytes_written"]
        counted = limiter["limited_bytes"] + limiter["unlimited_bytes"]
        assert 0.95 * moved < counted < 1.05 * moved
    shared.close()
