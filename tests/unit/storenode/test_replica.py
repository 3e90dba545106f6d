"""storenode/replica/replica.py on a real engine: what is answered, when, and what can never happen twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient import protocol
from kvclient.errors import Corruption, Status
from shared.clock import ManualClock
from storenode import engine
from storenode.replica.budget import Budget
from storenode.replica.replica import ROUTES_MAX, Replica
from storenode.replica.sessions import RETRY_WINDOW_S

ROUTER = b"router1"
OTHER = b"router2"
CLIENT = 0xC11E


class Partition:
    """A replica on a real engine, with its answers caught and the log written when the test says so."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock(1000.0)
        self.budget = Budget(1 << 20)
        self.answers: list[tuple[bytes, int, int, bytes]] = []
        self.engine = engine.open(path)
        self.dirty = 0
        self.replica = self.make()
        self.clock.advance(RETRY_WINDOW_S)  # the session table covers all attempts that may still be retried

    def make(self) -> Replica:
        return Replica(7, self.engine, self.clock, self.budget, self._answer, self._on_pending)

    def _answer(self, router: bytes, token: int, status: int, body: bytes) -> None:
        self.answers.append((router, token, status, body))

    def _on_pending(self, replica: Replica) -> None:
        assert replica is self.replica
        self.dirty += 1

    def propose(
        self,
        token: int,
        ops: bytes,
        sequence: int = 0,
        *,
        router: bytes = ROUTER,
        client: int = CLIENT,
        acked_below: int = 0,
        retry: bool = False,
        count: int = 1,
        timeout: float = 5.0,
    ) -> None:
        now = self.clock.monotonic()
        self.replica.propose(
            (router, token), client, sequence, acked_below, retry, ops, count, now + timeout, now
        )

    def log(self) -> None:
        """One log write of all that is pending."""
        self.replica.committed(self.engine.append(self.replica.seal(self.clock.monotonic())))

    def taken(self) -> list[tuple[bytes, int, int, bytes]]:
        answers, self.answers = self.answers, []
        return answers

    def statuses(self) -> list[tuple[int, int]]:
        return [(token, status) for _, token, status, _ in self.taken()]

    def get(self, key: bytes) -> list[object]:
        return protocol.decode_results(self.replica.read(protocol.encode_get(key), 1))[0]


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    made = Partition(tmp_path)
    yield made
    assert made.budget.used == 0, "every write must give its bytes back, whatever becomes of it"
    made.engine.close()


def increment(key: bytes = b"n") -> bytes:
    return protocol.encode_increment(key, 1)


def result(body: bytes) -> list[object]:
    return protocol.decode_results(body)[0]


def reason(body: bytes) -> str:
    message = protocol.decode_error(body)["message"]
    assert isinstance(message, str)
    return message


def test_a_partition_without_history_judges_every_retry_and_one_with_history_does_not(tmp_path: Path) -> None:
    partition = Partition(tmp_path)
    partition.replica = partition.make()  # made this moment, as after a start
    partition.propose(1, increment(), 1, retry=True)
    partition.log()
    assert partition.statuses() == [(1, Status.OK)]
    partition.replica = partition.make()
    partition.propose(2, increment(), 2, retry=True)
    assert partition.statuses() == [(2, Status.OUTCOME_UNKNOWN)]
    assert partition.get(b"n")[1] == b"1"
    partition.engine.close()


def test_a_write_is_answered_after_the_log_and_read_from_then_on(partition: Partition) -> None:
    partition.propose(1, protocol.encode_put(b"k", b"v"), 1)
    entries = partition.replica.seal(partition.clock.monotonic())
    assert partition.taken() == []
    assert partition.get(b"k") == [Status.NOT_FOUND]
    partition.replica.committed(partition.engine.append(entries))
    assert partition.taken() == [(ROUTER, 1, Status.OK, bytes([0x92, 0, 1]))]
    assert partition.get(b"k") == [0, b"v", 1]
    assert partition.dirty == 1


def test_sequences_follow_log_order_without_gaps(partition: Partition) -> None:
    pair = protocol.encode_put(b"a", b"1") + protocol.encode_put(b"b", b"2")
    partition.propose(1, pair, 1, count=2)
    partition.propose(2, protocol.encode_put(b"c", b"3"), 2)
    first = partition.replica.seal(partition.clock.monotonic())
    partition.propose(3, protocol.encode_put(b"d", b"4"), 3)
    partition.replica.committed(partition.engine.append(first))
    second = partition.replica.seal(partition.clock.monotonic())
    partition.replica.committed(partition.engine.append(second))
    assert [entry[0] for entry in (*first, *second)] == [1, 3, 4]
    assert partition.get(b"d") == [0, b"4", 4]


def test_the_stamp_never_goes_back(partition: Partition) -> None:
    partition.propose(1, protocol.encode_put(b"k", b"v", ttl_ms=1000), 1)
    first = partition.replica.seal(partition.clock.monotonic())
    partition.replica.committed(partition.engine.append(first))
    partition.clock.jump_wall_ms(-3_600_000)
    partition.propose(2, protocol.encode_put(b"other", b"v"), 2)
    second = partition.replica.seal(partition.clock.monotonic())
    partition.replica.committed(partition.engine.append(second))
    assert second[0][1] == first[0][1]
    partition.clock.jump_wall_ms(3_600_000 + 1000)
    assert partition.get(b"k") == [Status.NOT_FOUND]


def test_a_read_after_the_clock_went_back_sees_no_key_come_back(partition: Partition) -> None:
    partition.propose(1, protocol.encode_put(b"k", b"v", ttl_ms=1000), 1)
    partition.log()
    partition.clock.advance(2)
    partition.propose(2, protocol.encode_put(b"other", b"v"), 2)
    partition.log()
    partition.clock.jump_wall_ms(-60_000)
    assert partition.get(b"k") == [Status.NOT_FOUND]


def test_a_finished_write_is_answered_again_without_running_again(partition: Partition) -> None:
    partition.propose(1, increment(), 1)
    partition.log()
    first = partition.taken()[0][3]
    partition.propose(2, increment(), 1, router=OTHER, retry=True)
    assert partition.taken() == [(OTHER, 2, Status.OK, first)]
    assert partition.get(b"n")[1] == b"1"


@pytest.mark.parametrize("sealed", [False, True])
def test_a_retry_of_a_write_under_way_waits_for_it(partition: Partition, sealed: bool) -> None:
    partition.propose(1, increment(), 1)
    entries = partition.replica.seal(partition.clock.monotonic()) if sealed else []
    partition.propose(2, increment(), 1, router=OTHER, retry=True)
    assert partition.taken() == []
    if not sealed:
        entries = partition.replica.seal(partition.clock.monotonic())
    assert len(entries) == 1
    partition.replica.committed(partition.engine.append(entries))
    assert [(router, token, status) for router, token, status, _ in partition.taken()] == [
        (ROUTER, 1, 0),
        (OTHER, 2, 0),
    ]
    assert partition.get(b"n")[1] == b"1"


def test_only_so_many_attempts_wait_for_one_write(partition: Partition) -> None:
    partition.propose(0, increment(), 1)
    for token in range(1, ROUTES_MAX + 1):
        partition.propose(token, increment(), 1, retry=True)
    assert partition.statuses() == [(ROUTES_MAX, Status.BUSY)]
    partition.log()
    assert partition.statuses() == [(token, Status.OK) for token in range(ROUTES_MAX)]


def test_an_acknowledged_write_is_not_run_again(partition: Partition) -> None:
    partition.propose(1, increment(), 1)
    partition.propose(2, increment(), 2)
    partition.log()
    partition.propose(3, increment(), 3, acked_below=3)
    partition.log()
    partition.taken()
    partition.propose(4, increment(), 1)
    (answer,) = partition.taken()
    assert answer[2] == Status.OUTCOME_UNKNOWN
    assert "acknowledged" in reason(answer[3])
    assert partition.get(b"n")[1] == b"3"


def test_after_a_restart_a_retry_is_unknown_for_as_long_as_it_could_have_run_before(
    partition: Partition,
) -> None:
    partition.propose(1, increment(), 1)
    partition.log()
    partition.taken()
    partition.replica = partition.make()
    partition.propose(2, increment(), 1, retry=True)
    assert partition.statuses() == [(2, Status.OUTCOME_UNKNOWN)]
    partition.clock.advance(RETRY_WINDOW_S)
    partition.propose(3, increment(), 2, retry=True)
    partition.log()
    assert partition.statuses() == [(3, Status.OK)]
    assert partition.get(b"n")[1] == b"2"


@pytest.mark.parametrize(("client", "sequence"), [(CLIENT, 0), (0, 5)])
def test_without_a_session_a_write_runs_each_time_and_a_retry_never(
    partition: Partition, client: int, sequence: int
) -> None:
    for token in (1, 2):
        partition.propose(token, increment(), sequence, client=client)
    partition.log()
    partition.propose(3, increment(), sequence, client=client, retry=True)
    assert partition.statuses() == [(1, 0), (2, 0), (3, Status.OUTCOME_UNKNOWN)]
    assert partition.get(b"n")[1] == b"2"


def test_a_barrier_goes_through_the_log_and_answers_nothing(partition: Partition) -> None:
    partition.propose(1, b"", 1, count=0)
    partition.propose(2, protocol.encode_put(b"k", b"v"), 2)
    partition.log()
    assert partition.taken() == [(ROUTER, 1, 0, b""), (ROUTER, 2, 0, bytes([0x92, 0, 1]))]


def test_an_expired_write_is_not_logged(partition: Partition) -> None:
    partition.propose(1, increment(), 1, timeout=0)
    assert partition.statuses() == [(1, Status.TIMEOUT)]
    partition.propose(2, increment(), 1, timeout=1)
    partition.propose(3, increment(), 2, timeout=3)
    partition.clock.advance(1)
    partition.log()
    assert sorted(partition.statuses()) == [(2, Status.TIMEOUT), (3, Status.OK)]
    assert partition.get(b"n")[1] == b"1"
    partition.propose(4, increment(), 1, retry=True)
    partition.log()
    assert partition.statuses() == [(4, Status.OK)]


def test_a_retry_with_time_left_keeps_an_expiring_write_alive(partition: Partition) -> None:
    partition.propose(1, increment(), 1, timeout=1)
    partition.propose(2, increment(), 1, retry=True, timeout=5)
    partition.clock.advance(2)
    partition.log()
    assert partition.statuses() == [(1, Status.OK), (2, Status.OK)]


def test_a_retry_that_comes_too_late_still_hears_that_the_write_ran(partition: Partition) -> None:
    partition.propose(1, increment(), 1)
    partition.log()
    partition.taken()
    partition.propose(2, increment(), 1, retry=True, timeout=0)
    assert partition.statuses() == [(2, Status.OK)]


def test_over_the_byte_budget_is_busy(partition: Partition) -> None:
    large = protocol.encode_put(b"k", bytes(400_000))
    for token in (1, 2, 3):
        partition.propose(token, large, token)
    (refused,) = partition.taken()
    assert refused[1:3] == (3, Status.BUSY)
    assert protocol.decode_error(refused[3])["retry_after_ms"] > 0
    partition.log()
    partition.propose(4, large, 3)
    partition.log()
    assert partition.statuses() == [(1, 0), (2, 0), (4, 0)]


def test_a_write_larger_than_the_whole_budget_passes_alone(partition: Partition) -> None:
    partition.budget.limit = 1000
    partition.propose(1, protocol.encode_put(b"k", bytes(5000)), 1)
    partition.log()
    assert partition.statuses() == [(1, Status.OK)]


def test_compaction_pressure_is_busy_before_the_log(partition: Partition) -> None:
    partition.replica.engine = Pressed(partition.engine)
    partition.propose(1, increment(), 1)
    (answer,) = partition.taken()
    assert answer[2] == Status.BUSY
    assert protocol.decode_error(answer[3])["retry_after_ms"] > 0
    assert partition.dirty == 0


def test_a_log_that_refused_leaves_no_trace_and_may_be_tried_again(partition: Partition) -> None:
    partition.propose(1, increment(), 1)
    partition.replica.seal(partition.clock.monotonic())
    partition.replica.refused("no space left on /data")
    (answer,) = partition.taken()
    assert answer[2] == Status.READ_ONLY
    assert reason(answer[3]) == "no space left on /data"
    partition.propose(2, increment(), 1)
    partition.log()
    ((_, token, status, body),) = partition.taken()
    assert (token, status, result(body)) == (2, 0, [0, 1, 1])


def test_a_log_that_failed_leaves_the_outcome_unknown_and_the_partition_read_only(
    partition: Partition,
) -> None:
    partition.propose(1, protocol.encode_put(b"k", b"v"), 1)
    partition.log()
    partition.propose(2, increment(), 2)
    partition.replica.seal(partition.clock.monotonic())
    partition.propose(3, increment(), 3)
    partition.taken()
    partition.replica.lost("fdatasync failed")
    assert partition.statuses() == [(2, Status.OUTCOME_UNKNOWN), (3, Status.READ_ONLY)]
    partition.clock.advance(RETRY_WINDOW_S)
    partition.propose(4, increment(), 2, retry=True)
    partition.propose(5, increment(), 4)
    unknown, read_only = partition.taken()
    assert unknown[2] == Status.OUTCOME_UNKNOWN
    assert read_only[2] == Status.READ_ONLY
    assert "fdatasync failed" in reason(read_only[3])
    assert "restarted" in reason(read_only[3])
    assert partition.get(b"k") == [0, b"v", 1]


def test_an_entry_that_cannot_be_applied_stops_the_partition_before_the_next(partition: Partition) -> None:
    """The log holds it, so a replay would have it: state that went on without it would be another state."""
    partition.replica.engine = FailingApply(partition.engine, fail_at=2)
    for token in (1, 2, 3):
        partition.propose(token, protocol.encode_put(b"k%d" % token, b"v"), token)
    with pytest.raises(Corruption):
        partition.log()
    assert partition.statuses() == [(1, 0), (2, Status.OUTCOME_UNKNOWN), (3, Status.OUTCOME_UNKNOWN)]
    assert partition.get(b"k1") == [0, b"v", 1]
    assert partition.get(b"k3") == [Status.NOT_FOUND]
    partition.propose(4, increment(), 4)
    assert partition.statuses() == [(4, Status.READ_ONLY)]


def test_an_answer_that_fails_lets_no_logged_entry_be_skipped(tmp_path: Path) -> None:
    """What came after it was dropped, and the next write took the sequences that the log has for that."""
    partition = Partition(tmp_path)

    def failing(router: bytes, token: int, status: int, body: bytes) -> None:
        partition._answer(router, token, status, body)
        if token == 1:
            raise OSError

    partition.replica = Replica(
        7, partition.engine, partition.clock, partition.budget, failing, lambda replica: None
    )
    for token in (1, 2):
        partition.propose(token, protocol.encode_put(b"k%d" % token, b"v"), token)
    with pytest.raises(OSError):
        partition.log()
    partition.propose(3, protocol.encode_put(b"k3", b"v"), 3)
    assert partition.statuses() == [(1, 0), (2, Status.OUTCOME_UNKNOWN), (3, Status.READ_ONLY)]
    assert partition.budget.used == 0
    partition.engine.close()


def test_what_waits_too_long_for_a_log_write_gives_its_bytes_back(partition: Partition) -> None:
    """A disk that hung kept the whole node's budget taken, by writes that nobody waited for any more."""
    partition.propose(1, increment(), 1, timeout=60)
    entries = partition.replica.seal(partition.clock.monotonic())
    partition.propose(2, increment(), 2, timeout=1)
    partition.propose(3, increment(), 3, timeout=60)
    before = partition.budget.used
    partition.clock.advance(2)
    partition.replica.drop_late(partition.clock.monotonic())
    assert partition.statuses() == [(2, Status.TIMEOUT)]
    assert partition.budget.used < before
    partition.replica.committed(partition.engine.append(entries))
    partition.log()
    assert partition.statuses() == [(1, Status.OK), (3, Status.OK)]


def test_a_read_of_many_keys_answers_each_in_order(partition: Partition) -> None:
    keys = [b"key%d" % number for number in range(400)]
    partition.propose(1, b"".join(protocol.encode_put(key, key) for key in keys), 1, count=len(keys))
    partition.log()
    ops = b"".join(map(protocol.encode_get, keys))
    results = protocol.decode_results(partition.replica.read(ops, len(keys)))
    assert [result[1] for result in results] == keys


def test_a_read_of_too_many_bytes_answers_what_fits_and_refuses_the_rest(partition: Partition) -> None:
    partition.propose(1, protocol.encode_put(b"k", bytes(1 << 20)), 1)
    partition.log()
    results = protocol.decode_results(partition.replica.read(protocol.encode_get(b"k") * 10_000, 10_000))
    statuses = [result[0] for result in results]
    assert statuses == [Status.OK] * 64 + [Status.REQUEST_TOO_LARGE] * 9936


class Wrapped:
    """A real engine of which one method is changed."""

    def __init__(self, inner: engine.Engine) -> None:
        self._inner = inner

    @property
    def next_sequence(self) -> int:
        return self._inner.next_sequence

    def append(self, entries: list[tuple[int, int, bytes]]) -> int:
        return self._inner.append(entries)

    def apply(self, ops: bytes, first_sequence: int, now_ms: int, wal: int) -> bytes:
        return self._inner.apply(ops, first_sequence, now_ms, wal)

    def read(self, ops: bytes, now_ms: int) -> bytes:
        return self._inner.read(ops, now_ms)

    def pressure(self) -> int:
        return self._inner.pressure()


class Pressed(Wrapped):
    def pressure(self) -> int:
        return 2


class FailingApply(Wrapped):
    def __init__(self, inner: engine.Engine, fail_at: int) -> None:
        super().__init__(inner)
        self._fail_at = fail_at

    def apply(self, ops: bytes, first_sequence: int, now_ms: int, wal: int) -> bytes:
        if first_sequence == self._fail_at:
            raise Corruption("000007.sst: block at 4096 fails its checksum")
        return super().apply(ops, first_sequence, now_ms, wal)
