"""The clocks: the real one runs, the manual one stands until it is moved."""

from __future__ import annotations

import time

import pytest

from shared.clock import Clock, ManualClock, SystemClock


def test_system_clock_reads_the_machine() -> None:
    clock: Clock = SystemClock()
    before = time.monotonic(), int(time.time() * 1000) - 1
    read = clock.monotonic(), clock.wall_ms()
    after = time.monotonic(), int(time.time() * 1000) + 1
    assert before[0] <= read[0] <= after[0]
    assert before[1] <= read[1] <= after[1]
    assert type(read[1]) is int


def test_manual_clock_moves_only_when_told() -> None:
    clock: Clock = ManualClock(monotonic=5.0, wall_ms=1000)
    assert (clock.monotonic(), clock.wall_ms()) == (5.0, 1000)
    assert (clock.monotonic(), clock.wall_ms()) == (5.0, 1000)


def test_manual_clock_advances_both_clocks() -> None:
    clock = ManualClock(monotonic=5.0, wall_ms=1000)
    clock.advance(0.25)
    assert (clock.monotonic(), clock.wall_ms()) == (5.25, 1250)


def test_many_small_steps_keep_the_wall_clock_in_step() -> None:
    clock = ManualClock(wall_ms=0)
    for _ in range(10_000):
        clock.advance(0.0004)
    assert clock.wall_ms() == 4000


def test_manual_wall_clock_jumps_alone_and_back() -> None:
    clock = ManualClock(monotonic=5.0, wall_ms=10_000)
    clock.jump_wall_ms(-4000)
    assert (clock.monotonic(), clock.wall_ms()) == (5.0, 6000)


def test_monotonic_clock_refuses_to_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        ManualClock().advance(-0.001)
