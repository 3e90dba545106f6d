"""storenode/groupcommit.py with real threads and engines; a log is slow or broken where a test needs that."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from kvclient import protocol
from kvclient.errors import Status
from shared import logs
from shared.clock import SystemClock
from storenode import engine, groupcommit
from storenode.groupcommit import LOG_THREADS, GroupCommit
from storenode.replica.budget import Budget
from storenode.replica.replica import Entry, Replica

DEADLINE_S = 10.0


class Log:
    """A real engine whose `append` can be held up or made to fail."""

    def __init__(self, path: Path, number: int, shared: engine.Shared) -> None:
        self.inner = engine.open(str(path / str(number)), shared=shared, engine_id=number)
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.batches: list[int] = []

    def append(self, entries: list[Entry]) -> int:
        assert self.gate.wait(DEADLINE_S)
        if self.failure is not None:
            raise self.failure
        self.batches.append(len(entries))
        return self.inner.append(entries)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


class Node:
    """Two replicas and their group commit; the test is the loop."""

    def __init__(self, path: Path) -> None:
        self.calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.answers: list[tuple[int, int]] = []
        self.commit = GroupCommit(SystemClock(), self.calls.put)
        self.shared = engine.Shared(str(path))
        self.logs = [Log(path, number, self.shared) for number in (1, 2)]
        self.replicas = [
            Replica(number, log, SystemClock(), Budget(1 << 20), self._answer, self.commit.dirty)
            for number, log in enumerate(self.logs, 1)
        ]

    def _answer(self, router: bytes, token: int, status: int, body: bytes) -> None:
        self.answers.append((token, status))

    def put(self, replica: int, token: int, timeout: float = 60) -> None:
        now = time.monotonic()
        ops = protocol.encode_put(b"key%d" % token, b"value")
        self.replicas[replica].propose((b"router", token), 0, 0, 0, False, ops, 1, now + timeout, now)

    def turn(self) -> None:
        """Waits for one log write to end, then does what the loop does."""
        try:
            self.calls.get(timeout=DEADLINE_S)()
        except Empty:
            pytest.fail("no log write ended")
        self.commit.flush()

    def close(self) -> None:
        for log in self.logs:
            log.gate.set()
        assert self.commit.close(DEADLINE_S)
        for log in self.logs:
            log.inner.close()
        self.shared.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def test_what_gathers_during_a_log_write_is_one_batch(node: Node) -> None:
    node.logs[0].gate.clear()
    node.put(0, 1)
    node.commit.flush()
    for token in range(2, 12):
        node.put(0, token)
        node.commit.flush()
    node.logs[0].gate.set()
    node.turn()
    node.turn()
    assert node.logs[0].batches == [1, 10]
    assert node.answers == [(token, Status.OK) for token in range(1, 12)]
    assert node.commit.idle


def test_a_slow_log_does_not_hold_up_another(node: Node) -> None:
    node.logs[0].gate.clear()
    node.put(0, 1)
    node.put(1, 2)
    node.commit.flush()
    node.turn()
    assert node.answers == [(2, Status.OK)]
    assert not node.commit.idle
    node.logs[0].gate.set()
    node.turn()
    assert node.answers == [(2, Status.OK), (1, Status.OK)]


def test_writes_behind_a_log_write_that_hangs_end_at_their_deadlines(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groupcommit, "LATE_LOOK_S", 0.01)
    assert node.commit.longest_s() == 0
    node.logs[0].gate.clear()
    node.put(0, 1)
    node.commit.flush()
    node.put(0, 2, timeout=0.05)
    node.put(0, 3)
    deadline = time.monotonic() + DEADLINE_S
    while not node.answers:
        assert time.monotonic() < deadline
        node.commit.flush()
    assert node.answers == [(2, Status.TIMEOUT)]
    assert node.commit.longest_s() >= 0.05
    node.logs[0].gate.set()
    node.turn()
    node.turn()
    assert node.answers[1:] == [(1, Status.OK), (3, Status.OK)]
    assert node.commit.longest_s() == 0


def test_a_log_write_that_hangs_is_named_now_and_then(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groupcommit, "LATE_LOOK_S", 0.0)
    monkeypatch.setattr(groupcommit, "STUCK_S", 0.05)
    out = io.StringIO()
    logs.configure("info", "json", stream=out)
    node.logs[0].gate.clear()
    node.put(0, 1)
    node.commit.flush()
    node.put(0, 2)
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        node.commit.flush()
    (line,) = map(json.loads, out.getvalue().splitlines())
    assert (line["event"], line["partitions"]) == ("log_write_stuck", [1])
    assert line["seconds"] >= 0


def test_a_full_disk_refuses_this_write_and_takes_a_later_one(node: Node) -> None:
    node.logs[0].failure = engine.EngineReadOnly("/data/000001.wal: no space left on device")
    node.put(0, 1)
    node.put(1, 2)
    node.commit.flush()
    node.turn()
    node.turn()
    node.logs[0].failure = None
    node.put(0, 3)
    node.commit.flush()
    node.turn()
    assert sorted(node.answers) == [(1, Status.READ_ONLY), (2, Status.OK), (3, Status.OK)]


@pytest.mark.parametrize(
    "failure", [engine.EngineFailed("fdatasync failed"), OSError(5, "I/O error"), MemoryError()]
)
def test_a_failed_log_stops_its_partition_and_no_other(node: Node, failure: Exception) -> None:
    node.logs[0].failure = failure
    node.put(0, 1)
    node.commit.flush()
    node.turn()
    node.logs[0].failure = None
    node.put(0, 2)
    node.put(1, 3)
    node.commit.flush()
    node.turn()
    assert node.answers == [(1, Status.OUTCOME_UNKNOWN), (2, Status.READ_ONLY), (3, Status.OK)]


def test_a_defect_in_one_apply_leaves_the_others_alone(node: Node) -> None:
    node.put(0, 1)
    node.put(1, 2)
    node.replicas[0].engine = Unappliable(node.logs[0])
    node.commit.flush()
    node.turn()
    node.turn()
    assert sorted(node.answers) == [(1, Status.OUTCOME_UNKNOWN), (2, Status.OK)]
    assert node.replicas[0].failure is not None
    assert node.commit.idle


def test_close_says_when_a_log_write_does_not_end(node: Node) -> None:
    node.logs[0].gate.clear()
    node.put(0, 1)
    node.commit.flush()
    assert not node.commit.close(0.05)


def test_all_log_threads_end(node: Node) -> None:
    before = [thread for thread in threading.enumerate() if thread.name.startswith("log-")]
    assert len(before) == LOG_THREADS
    assert node.commit.close(DEADLINE_S)
    assert not any(thread.is_alive() for thread in before)


class Unappliable:
    def __init__(self, log: Log) -> None:
        self._log = log

    def apply(self, ops: bytes, first_sequence: int, now_ms: int, wal: int) -> bytes:
        raise MemoryError("out of memory in the middle of an entry")

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)
