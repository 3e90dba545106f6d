"""storenode/logthread.py: one write at a time, on a thread of its own, and the loop is told on its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.clock import ManualClock
from storenode.engine.vfs import Vfs
from storenode.logthread import LogThread
from storenode.raft.messages import Entry, HardState
from storenode.raftlog import LogFailed, RaftLog, Record, Written

DEADLINE_S = 20.0


class Loop:
    """Callbacks wait here until the test, which is the loop, runs them."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.log = RaftLog(Vfs(), str(path), 1)
        self.thread = LogThread(self.log, self.clock, self.waiting.put)
        self.outcomes: list[Written | Exception] = []
        self.ran_on: list[threading.Thread] = []

    def submit(self, index: int) -> None:
        record = Record(7, HardState(1, 1, 0), None, index, [Entry(1, 0, b"data")])
        self.thread.submit([record], self.on_done)

    def on_done(self, outcome: Written | Exception) -> None:
        self.outcomes.append(outcome)
        self.ran_on.append(threading.current_thread())

    def run_one(self) -> None:
        self.waiting.get(timeout=DEADLINE_S)()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    made = Loop(tmp_path / "raft")
    yield made
    assert made.thread.close(DEADLINE_S)
    made.log.close()


def test_a_write_is_durable_when_the_loop_is_told_and_shows_when_it_is_installed(loop: Loop) -> None:
    loop.submit(1)
    loop.run_one()
    (written,) = loop.outcomes
    assert isinstance(written, Written)
    assert loop.log.group(7).last_index == 0
    loop.log.installed(written)
    assert loop.log.group(7).last_index == 1
    assert loop.ran_on == [threading.current_thread()]


def test_it_is_busy_until_the_loop_has_been_told(loop: Loop) -> None:
    assert not loop.thread.busy
    loop.submit(1)
    assert loop.thread.busy
    callback = loop.waiting.get(timeout=DEADLINE_S)
    assert loop.thread.busy, "the loop has not heard of it"
    callback()
    assert not loop.thread.busy


def test_whoever_is_told_may_submit_the_next_write(loop: Loop) -> None:
    seen: list[bool] = []

    def done(outcome: Written | Exception) -> None:
        assert isinstance(outcome, Written)
        seen.append(loop.thread.busy)
        loop.submit(2)

    loop.thread.submit([Record(7, None, None, 1, [Entry(1, 0, b"")])], done)
    loop.run_one()
    loop.run_one()
    assert seen == [False]
    assert [type(outcome) for outcome in loop.outcomes] == [Written]


def test_a_second_write_while_one_is_under_way_is_a_defect_of_the_caller(loop: Loop) -> None:
    loop.submit(1)
    with pytest.raises(AssertionError, match="one log write at a time"):
        loop.submit(2)
    loop.run_one()


def test_how_long_a_write_takes_is_seen_while_it_takes(loop: Loop) -> None:
    assert loop.thread.longest_s() == 0.0
    loop.submit(1)
    loop.clock.advance(2.5)
    assert loop.thread.longest_s() == 2.5
    loop.run_one()
    assert loop.thread.longest_s() == 0.0


def test_writes_entries_and_times_are_counted(loop: Loop) -> None:
    for index in (1, 2, 3):
        loop.submit(index)
        loop.run_one()
    loop.thread.submit([Record(7, None, (2, 1), 3, None)], loop.on_done)
    loop.run_one()
    assert (loop.thread.writes, loop.thread.entries, loop.thread.write_time.count) == (4, 3, 4)


def test_what_goes_wrong_is_told_and_the_thread_lives_on(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "raft")
    loop.log.close()
    for _ in range(2):
        loop.submit(1)
        loop.run_one()
    assert [type(outcome) for outcome in loop.outcomes] == [LogFailed, LogFailed]
    assert loop.thread.close(DEADLINE_S)


def test_a_thread_that_sits_in_a_system_call_is_not_waited_for(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "raft")
    hang, write = threading.Event(), loop.log.write

    def hanging(records: list[Record]) -> Written:
        assert hang.wait(DEADLINE_S)
        return write(records)

    loop.log.write = hanging  # type: ignore[method-assign]
    loop.submit(1)
    assert loop.thread.close(0.01) is False
    hang.set()
    loop.run_one()
    assert [type(outcome) for outcome in loop.outcomes] == [Written]
    assert loop.thread.close(DEADLINE_S)
    loop.log.close()
