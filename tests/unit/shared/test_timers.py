"""The timer heap with time handed in."""

from __future__ import annotations

import random
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.timers import Timers


def run_due(timers: Timers, now: float) -> None:
    for callback in timers.take_due(now):
        callback()


def test_nothing_to_wait_for() -> None:
    timers = Timers()
    assert timers.next_due() is None
    assert list(timers.take_due(1e9)) == []


def test_equal_times_run_in_the_order_they_were_set() -> None:
    timers, ran = Timers(), []
    for number in range(50):
        timers.add(1.0, lambda number=number: ran.append(number))
    run_due(timers, 1.0)
    assert ran == list(range(50))


def test_cancelling_after_the_run_or_twice_changes_nothing() -> None:
    timers, ran = Timers(), []
    timer = timers.add(1.0, lambda: ran.append(1))
    run_due(timers, 1.0)
    timer.cancel()
    other = timers.add(2.0, lambda: ran.append(2))
    other.cancel()
    other.cancel()
    run_due(timers, 3.0)
    assert ran == [1]


def test_cancelled_timers_do_not_pile_up() -> None:
    """A deadline is cancelled when its request is answered: a minute's worth of them must not stay."""
    timers = Timers()
    keep = timers.add(50.0, lambda: None)
    largest = 0
    for number in range(100_000):
        timers.add(60.0 + number, lambda: None).cancel()
        largest = max(largest, len(timers))
    assert largest < 300
    assert timers.next_due() == 50.0
    keep.cancel()


def test_a_sweep_keeps_the_order_of_what_stays() -> None:
    for seed in range(20):
        timers, ran = Timers(), []
        chosen = random.Random(seed)
        times = [chosen.randrange(10_000) for _ in range(400)]
        handles = [timers.add(due, partial(ran.append, due)) for due in times]
        kept = set(chosen.sample(range(400), 100))
        for number, handle in enumerate(handles):
            if number not in kept:
                handle.cancel()
        assert len(timers) < 300
        for now in range(0, 10_001, 500):
            run_due(timers, now)
        assert ran == sorted(times[number] for number in kept)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 50)),
            st.tuples(st.just("cancel"), st.integers(0, 300)),
            st.tuples(st.just("run"), st.integers(0, 10)),
        ),
        max_size=300,
    )
)
def test_against_a_plain_list(steps: list[tuple[str, int]]) -> None:
    timers, ran, model = Timers(), [], []
    handles = []
    now, expected = 0, []
    for step, number in steps:
        if step == "add":
            name = len(handles)
            handles.append(timers.add(now + number, lambda name=name: ran.append(name)))
            model.append((now + number, name))
        elif step == "cancel" and number < len(handles):
            handles[number].cancel()
            model = [entry for entry in model if entry[1] != number]
        elif step == "run":
            now += number
            expected += [name for due, name in sorted(model) if due <= now]
            model = [entry for entry in model if entry[0] > now]
            run_due(timers, now)
        assert ran == expected
        if model:
            due = timers.next_due()
            assert due is not None
            assert due <= min(model)[0]
