"""The request machine, with time, routers and answers in the hands of the test."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kvclient import protocol
from kvclient.errors import (
    Busy,
    ConnectError,
    InternalError,
    KeyTooLong,
    KVTimeout,
    OutcomeUnknown,
    ProtocolError,
    ReadOnly,
    Status,
    Unavailable,
    ValueTooLarge,
    VersionMismatch,
    from_result,
)
from kvclient.pending import Pending
from kvclient.session import IN_FLIGHT_MAX, Session

GET = protocol.encode_get(b"k")
PUT = protocol.encode_put(b"k", b"v")
A, B, C = (protocol.encode_put(key, b"v") for key in (b"a", b"b", b"c"))


class NoJitter:
    """Pauses as long as they may be."""

    def uniform(self, low: float, high: float) -> float:
        return high


class Wire:
    """A session with a clock and a list of what each router got."""

    def __init__(self, routers: int = 2, connected: bool = True) -> None:
        self.now = 100.0
        self.session = Session([f"r{i}:7100" for i in range(routers)], 99, NoJitter(), self.now)
        self.sent: list[tuple[int, protocol.Request]] = []
        if connected:
            for router in range(routers):
                self.session.connection(router, True, self.now)

    def submit(
        self, body: bytes = PUT, *, count: int = 1, writes: bool = True, timeout: float = 5.0
    ) -> Pending:
        pending = Pending(protocol.Kind.OPS, body, count, writes, 0, timeout)
        self.session.submit(pending, self.now)
        return pending

    def flush(self) -> list[tuple[int, protocol.Request]]:
        """What the session sends now: (router, request)."""
        fresh = []
        while self.session.outbox:
            pending = self.session.outbox.popleft()
            fresh.append((pending.router, protocol.decode_request(pending.frame)))
        self.sent += fresh
        return fresh

    def one(self) -> tuple[int, protocol.Request]:
        (only,) = self.flush()
        return only

    def advance(self, seconds: float) -> list[tuple[int, protocol.Request]]:
        """Let time pass in the session's own steps; what was sent meanwhile."""
        until = self.now + seconds
        fresh = []
        while self.session.next_due <= until:
            self.now = max(self.now, self.session.next_due)
            self.session.tick(self.now)
            assert self.session.next_due > self.now, "a tick must make progress"
            fresh += self.flush()
        self.now = until
        return fresh

    def answer(self, request: protocol.Request, *results: object, router: int = 0) -> None:
        body = b"".join(map(protocol.pack, results))
        self.reply(router, request, 0, body)

    def refuse(self, request: protocol.Request, status: Status, router: int = 0, **details: object) -> None:
        self.reply(router, request, status, protocol.encode_error("no", **details))

    def reply(self, router: int, request: protocol.Request, status: int, body: bytes) -> None:
        frame = protocol.encode_response(request.kind, request.request_id, status, body)
        self.session.receive(router, [frame], self.now)


def of_kind(kind: int, sent: list[tuple[int, protocol.Request]]) -> list[tuple[int, protocol.Request]]:
    return [(router, request) for router, request in sent if request.kind == kind]


def test_the_first_attempt_says_who_asks_and_how_long_it_may_take():
    wire = Wire()
    wire.submit()
    router, request = wire.one()
    assert router == 0
    assert (request.kind, request.client_id, request.sequence, request.acked_below) == (
        protocol.Kind.OPS,
        99,
        1,
        1,
    )
    assert (request.flags, request.body) == (0, PUT)
    assert 4000 <= request.timeout_ms < 5000, "the servers get a little less than the caller has"


def test_reads_take_no_sequence():
    wire = Wire()
    wire.submit(GET, writes=False)
    wire.submit(PUT)
    assert [request.sequence for _, request in wire.flush()] == [0, 1]


def test_an_answer_ends_the_request():
    wire = Wire()
    pending = wire.submit()
    _, request = wire.one()
    wire.answer(request, [0, 17])
    assert pending.done
    assert pending.results == [[0, 17]]
    assert pending.error is None
    assert wire.advance(10) == []


def test_answers_to_nobody_and_garbage_are_dropped_and_counted():
    wire = Wire()
    pending = wire.submit()
    _, request = wire.one()
    stranger = protocol.encode_response(1, request.request_id + 1, 0, b"\x91\x01")
    hostile = [
        b"",
        b"\xc1",
        b"\x95\x01\x01",
        b"\x95\x01\x01\x91\x01\x00\xc4\x00",
        protocol.pack("x" * 5),
        stranger,
    ]
    wire.session.receive(0, hostile, wire.now)
    assert wire.session.dropped_frames == len(hostile)
    assert not pending.done


def test_silence_sends_the_same_write_through_the_next_router_with_retry():
    wire = Wire()
    pending = wire.submit()
    _, first = wire.one()
    ((router, second),) = of_kind(protocol.Kind.OPS, wire.advance(0.7))
    assert router == 1
    assert (second.sequence, second.client_id, second.body) == (first.sequence, first.client_id, first.body)
    assert second.flags == protocol.FLAG_RETRY
    assert second.request_id != first.request_id
    assert second.timeout_ms < first.timeout_ms
    wire.answer(second, [0, 3], router=1)
    assert pending.results == [[0, 3]]


def test_a_late_answer_to_an_earlier_attempt_counts_and_the_other_is_dropped():
    wire = Wire()
    pending = wire.submit()
    _, first = wire.one()
    ((_, second),) = of_kind(protocol.Kind.OPS, wire.advance(0.7))
    wire.answer(first, [0, 3])
    assert pending.results == [[0, 3]]
    wire.answer(second, [0, 4], router=1)
    assert pending.results == [[0, 3]]
    assert wire.session.dropped_frames == 1


def test_retried_reads_do_not_claim_to_be_retries():
    wire = Wire()
    wire.submit(GET, writes=False)
    wire.flush()
    ((_, second),) = of_kind(protocol.Kind.OPS, wire.advance(0.7))
    assert second.flags == 0


def test_busy_waits_as_long_as_it_was_told_and_leaves_no_doubt():
    wire = Wire()
    wire.submit()
    _, first = wire.one()
    wire.refuse(first, Status.BUSY, retry_after_ms=300)
    assert wire.advance(0.299) == []
    ((_, second),) = wire.advance(0.1)
    assert (second.sequence, second.flags) == (first.sequence, 0), (
        "nothing of the refused attempt can have run"
    )


def test_busy_after_a_lost_attempt_stays_the_same_write():
    wire = Wire()
    pending = wire.submit()
    _, first = wire.one()
    ((_, second),) = of_kind(protocol.Kind.OPS, wire.advance(0.7))
    wire.refuse(second, Status.BUSY, router=1)
    ((_, third),) = of_kind(protocol.Kind.OPS, wire.advance(0.2))
    assert (third.sequence, third.flags) == (first.sequence, protocol.FLAG_RETRY)
    assert third.acked_below <= third.sequence
    wire.refuse(first, Status.BUSY)
    assert not pending.done, "the third attempt is still on its way"
    wire.answer(third, [0, 5])
    assert pending.results == [[0, 5]]


@pytest.mark.parametrize(
    ("writes", "error"), [(True, OutcomeUnknown), (False, KVTimeout)], ids=["write", "read"]
)
def test_no_answer_until_the_deadline(writes, error):
    wire = Wire()
    pending = wire.submit(PUT if writes else GET, writes=writes)
    wire.flush()
    wire.advance(4.99)
    assert not pending.done
    wire.advance(0.02)
    assert type(pending.error) is error
    assert pending.error.maybe_applied is writes


@pytest.mark.parametrize(
    ("status", "error"), [(Status.BUSY, Busy), (Status.UNAVAILABLE, Unavailable), (Status.TIMEOUT, KVTimeout)]
)
def test_a_write_that_was_refused_each_time_ends_with_the_refusal(status, error):
    wire = Wire()
    pending = wire.submit(timeout=1.0)
    sent = wire.flush()
    while not pending.done:
        for _, request in sent:
            wire.refuse(request, status)
        sent = wire.advance(0.02)
    assert type(pending.error) is error
    assert not pending.error.maybe_applied
    assert {request.flags for _, request in wire.sent} == {0}


def test_without_any_router_it_is_a_connect_error():
    wire = Wire(connected=False)
    pending = wire.submit()
    assert wire.flush() == []
    wire.advance(5.1)
    assert type(pending.error) is ConnectError
    assert [endpoint for endpoint, _ in pending.error.attempts] == ["r0:7100", "r1:7100"]


def test_requests_wait_for_the_first_connection():
    wire = Wire(connected=False)
    wire.submit()
    wire.advance(0.5)
    wire.session.connection(1, True, wire.now)
    router, request = wire.one()
    assert (router, request.flags) == (1, 0)


def test_only_refused_ops_are_sent_again_and_without_doubt():
    wire = Wire()
    pending = wire.submit(A + B + C, count=3)
    _, first = wire.one()
    wire.answer(first, [0, 1], [23, "no leader"], [0, 3])
    ((_, second),) = wire.advance(0.1)
    assert second.body == B
    assert (second.sequence, second.flags) == (first.sequence, 0)
    wire.answer(second, [0, 9], router=1)
    assert pending.results == [[0, 1], [0, 9], [0, 3]]


def test_refused_ops_after_a_lost_attempt_keep_the_whole_write():
    wire = Wire()
    pending = wire.submit(A + B, count=2)
    _, first = wire.one()
    ((_, second),) = of_kind(protocol.Kind.OPS, wire.advance(0.7))
    wire.answer(second, [0, 1], [20, "busy", 10], router=1)
    ((_, third),) = of_kind(protocol.Kind.OPS, wire.advance(0.2))
    assert (third.body, third.sequence, third.flags) == (A + B, first.sequence, protocol.FLAG_RETRY)
    wire.answer(third, [20, "busy", 10], [0, 2])
    assert pending.results == [[0, 1], [0, 2]], "each op keeps the answer that was final"


def test_ops_refused_until_the_deadline_keep_their_refusal():
    wire = Wire()
    pending = wire.submit(A + B, count=2, timeout=1.0)
    _, request = wire.one()
    wire.answer(request, [0, 1], [23, "no leader"])
    while sent := wire.advance(0.2):
        wire.answer(sent[-1][1], [23, "no leader"])
    assert pending.done
    assert pending.results == [[0, 1], [23, "no leader"]]


def test_refused_ops_whose_last_attempt_was_lost_are_in_doubt():
    wire = Wire()
    pending = wire.submit(A + B, count=2)
    _, request = wire.one()
    wire.answer(request, [0, 1], [23, "no leader"])
    wire.advance(6)
    assert pending.results[0] == [0, 1]
    assert pending.results[1][0] == Status.OUTCOME_UNKNOWN


def test_ops_that_an_earlier_attempt_did_are_not_sent_again_without_retry():
    """The late answer to an earlier attempt closed the doubt, and the whole request went out once more
    without RETRY: a store that had restarted meanwhile did its part a second time.
    """
    wire = Wire()
    pending = wire.submit(A + B, count=2)
    _, first = wire.one()
    ((_, second),) = of_kind(protocol.Kind.OPS, wire.advance(0.7))
    wire.answer(first, [0, 1], [23, "no leader"])
    wire.refuse(second, Status.BUSY, router=1)
    ((_, third),) = of_kind(protocol.Kind.OPS, wire.advance(0.2))
    assert (third.body, third.sequence, third.flags) == (B, first.sequence, 0)
    wire.answer(third, [0, 2])
    assert pending.results == [[0, 1], [0, 2]]


def test_a_refusal_speaks_of_its_own_attempt_only():
    """An op that one attempt found too late may still be applied by another one."""
    wire = Wire()
    pending = wire.submit()
    wire.one()
    ((_, second),) = of_kind(protocol.Kind.OPS, wire.advance(0.7))
    wire.answer(second, [int(Status.TIMEOUT), "too late"], router=1)
    wire.advance(6)
    assert pending.results[0][0] == Status.OUTCOME_UNKNOWN


def test_an_op_found_too_late_is_known_when_no_other_attempt_is_open():
    wire = Wire()
    pending = wire.submit()
    _, request = wire.one()
    wire.answer(request, [int(Status.TIMEOUT), "too late"])
    assert pending.results == [[int(Status.TIMEOUT), "too late"]]


def test_a_final_op_error_with_another_attempt_open_says_so():
    wire = Wire()
    pending = wire.submit()
    wire.one()
    ((_, second),) = of_kind(protocol.Kind.OPS, wire.advance(0.7))
    wire.answer(second, [int(Status.READ_ONLY), "disk full"], router=1)
    error = from_result(pending.results[0])
    assert (type(error), error.message, error.maybe_applied) == (ReadOnly, "disk full", True)


def test_an_error_at_the_end_does_not_deny_what_was_done():
    wire = Wire()
    pending = wire.submit(A + B, count=2)
    _, first = wire.one()
    wire.answer(first, [0, 1], [23, "no leader"])
    ((_, second),) = wire.advance(0.1)
    wire.refuse(second, Status.INTERNAL, router=1)
    assert pending.done
    assert pending.error is None
    assert pending.results[0] == [0, 1]
    assert type(from_result(pending.results[1])) is InternalError


def test_each_op_to_blame_gets_its_own_error():
    wire = Wire()
    pending = wire.submit(A + B, count=2)
    _, first = wire.one()
    wire.refuse(first, Status.VALUE_TOO_LARGE, index=0, limit=10, size=11)
    _, second = wire.one()
    wire.refuse(second, Status.KEY_TOO_LONG, index=0)
    assert [type(from_result(result)) for result in pending.results] == [ValueTooLarge, KeyTooLong]


def test_what_waited_for_a_connection_is_tried_again_in_time():
    """Its due time was not noted: it waited for its deadline, however many other routers there were."""
    wire = Wire(connected=False)
    wire.submit()
    for router in (0, 1):
        wire.session.connection(router, True, wire.now)
    assert wire.one()[0] == 0
    assert [router for router, _ in of_kind(protocol.Kind.OPS, wire.advance(1.0))] == [1]


def test_one_op_to_blame_does_not_fail_the_others():
    wire = Wire()
    pending = wire.submit(A + B + C, count=3)
    _, first = wire.one()
    wire.refuse(first, Status.VALUE_TOO_LARGE, index=1, limit=10, size=11)
    _, second = wire.one()
    assert second.body == A + C
    assert (second.sequence, second.flags) == (first.sequence, 0)
    wire.answer(second, [0, 1], [0, 2])
    assert (pending.results[0], pending.results[2]) == ([0, 1], [0, 2])
    status, error = pending.results[1]
    assert status == Status.VALUE_TOO_LARGE
    assert type(error) is ValueTooLarge
    assert (error.limit, error.size) == (10, 11)


def test_no_attempt_reaches_a_store_later_than_the_retry_window():
    """An attempt near the window's end was given the caller's whole patience: a router could hold it for a
    minute, and the stores would have taken it for one that certainly never ran.
    """
    wire = Wire()
    pending = wire.submit(timeout=300.0)
    began = wire.now
    wire.flush()
    attempts = []
    while wire.now < began + 299:
        for _, request in of_kind(protocol.Kind.OPS, wire.advance(0.25)):
            attempts.append(request)
            late = wire.now - began + request.timeout_ms / 1000
            assert late <= protocol.RETRY_WINDOW_MS / 1000 + 0.25, "0.25: the step of this loop"
    assert attempts
    assert all(request.flags == protocol.FLAG_RETRY for request in attempts)
    wire.answer(attempts[-1], [0, 8])
    assert pending.results == [[0, 8]], "an answer may come later than that"


def test_a_connection_lost_after_the_window_sends_nothing_again():
    wire = Wire()
    pending = wire.submit(timeout=300.0)
    wire.flush()
    wire.advance(61)
    for router in (0, 1):
        wire.session.connection(router, False, wire.now)
    wire.flush()
    wire.session.connection(0, True, wire.now)
    assert of_kind(protocol.Kind.OPS, wire.flush()) == []
    wire.advance(300)
    assert type(pending.error) is OutcomeUnknown


def test_expired_requests_leave_nothing_behind():
    wire = Wire(connected=False)
    for _ in range(5):
        wire.submit()
    wire.advance(6)
    assert wire.session.live == []
    wire.session.connection(0, True, wire.now)
    assert wire.flush() == []


def test_a_write_refused_for_longer_than_the_window_goes_on_as_a_new_one():
    wire = Wire()
    pending = wire.submit(timeout=200.0)
    sent = wire.flush()
    attempts = []
    while wire.now < 250:
        for router, request in sent:
            attempts.append((wire.now, request))
            wire.refuse(request, Status.UNAVAILABLE, router)
        sent = wire.advance(0.02)
    began = {}
    for at, request in attempts:
        late = at - began.setdefault(request.sequence, at)
        assert late + (request.timeout_ms / 1000 if late else 0) <= protocol.RETRY_WINDOW_MS / 1000
        assert request.flags == 0
    assert len(began) == 3
    assert not pending.done


def test_acked_below_stops_at_the_oldest_unfinished_write():
    wire = Wire()
    for _ in range(3):
        wire.submit()
    (_, first), (_, second), (_, third) = wire.flush()
    wire.answer(second, [0, 2])
    wire.answer(third, [0, 3])
    wire.submit()
    assert wire.one()[1].acked_below == 1
    wire.answer(first, [0, 1])
    wire.submit()
    assert wire.one()[1].acked_below == 4


def test_a_lost_connection_sends_everything_through_the_next_router_at_once():
    wire = Wire()
    wire.submit()
    wire.submit(GET, writes=False)
    wire.flush()
    wire.session.connection(0, False, wire.now)
    fresh = wire.flush()
    assert [router for router, _ in fresh] == [1, 1]
    assert [request.flags for _, request in fresh] == [protocol.FLAG_RETRY, 0]
    wire.submit()
    assert wire.one()[0] == 1
    wire.session.connection(0, True, wire.now)
    wire.submit()
    assert wire.one()[0] == 1, "no way back: it sticks to the router that works"


def test_a_frame_that_the_socket_refused_was_no_attempt():
    wire = Wire()
    pending = wire.submit()
    refused = wire.session.outbox.popleft()
    wire.session.unsent(refused, wire.now)
    router, request = wire.one()
    assert (router, request.sequence, request.flags) == (1, 1, 0)
    wire.answer(request, [0, 1], router=1)
    assert pending.done


def test_a_router_silent_twice_is_suspect_until_it_answers_a_ping():
    wire = Wire()
    for silence in range(2):
        pending = wire.submit(timeout=2.0)
        assert wire.one()[0] == 0, f"{silence} silences prove nothing"
        wire.advance(0.26)
        wire.session.abandon(pending)
    wire.submit(timeout=60.0)
    assert wire.one()[0] == 1
    pings = of_kind(protocol.Kind.PING, wire.advance(1.5))
    assert {router for router, _ in pings} == {0}
    wire.reply(0, pings[-1][1], 0, protocol.pack(["r", "v", 1]))
    assert of_kind(protocol.Kind.PING, wire.advance(3)) == []


def test_a_slow_request_does_not_discredit_a_router_that_answers_others():
    wire = Wire()
    for _ in range(4):
        wire.submit(timeout=4.0)
        wire.flush()
        wire.submit()
        wire.answer(wire.flush()[0][1], [0, 1])
        wire.advance(0.6)
    wire.submit()
    assert wire.one()[0] == 0


def test_unanswered_pings_get_a_new_socket_with_growing_patience():
    wire = Wire(routers=1)
    wire.session.connection(0, False, wire.now)
    rebuilt = []
    for second in range(60):
        wire.advance(1.0)
        rebuilt += [second] * len(wire.session.rebuilds)
        wire.session.rebuilds.clear()
    pauses = [after - before for before, after in pairwise(rebuilt)]
    assert rebuilt[0] == 2
    assert pauses == [6, 12, 24]


def test_a_connected_router_that_answers_nothing_gets_a_new_socket():
    wire = Wire(routers=1)
    for _ in range(3):
        wire.submit(timeout=2.0)
        wire.flush()
        wire.advance(0.6)
    wire.advance(4.5)
    assert wire.session.rebuilds == [0]


def test_the_window_holds_back_and_lets_go():
    wire = Wire()
    for _ in range(IN_FLIGHT_MAX + 2):
        wire.submit()
    sent = wire.flush()
    assert len(sent) == IN_FLIGHT_MAX
    wire.answer(sent[7][1], [0, 1])
    assert len(wire.flush()) == 1


def test_an_abandoned_request_is_forgotten():
    wire = Wire()
    ended = []
    pending = wire.submit()
    pending.on_done = ended.append
    _, request = wire.one()
    wire.session.abandon(pending)
    wire.answer(request, [0, 1])
    assert wire.session.dropped_frames == 1
    assert ended == []
    wire.submit()
    assert wire.one()[1].acked_below == 2


def test_another_protocol_version_is_named():
    wire = Wire()
    pending = wire.submit()
    _, request = wire.one()
    wire.session.receive(0, [protocol.pack((2, 1, request.request_id, 0, b""))], wire.now)
    assert type(pending.error) is VersionMismatch
    assert "2" in pending.error.message
    assert "1" in pending.error.message


@pytest.mark.parametrize("body", [b"", b"\x93\x00", b"\x91\x01\x91\x01", b"\x00", b"\x90", b"\x81\x00\x00"])
def test_a_malformed_answer_is_an_error_and_leaves_the_write_in_doubt(body):
    wire = Wire()
    pending = wire.submit()
    _, request = wire.one()
    wire.reply(0, request, 0, body)
    assert type(pending.error) is ProtocolError
    assert pending.error.maybe_applied


def test_a_final_error_with_another_attempt_open_says_so():
    wire = Wire()
    pending = wire.submit()
    wire.flush()
    ((_, second),) = of_kind(protocol.Kind.OPS, wire.advance(0.7))
    wire.refuse(second, Status.READ_ONLY, router=1)
    assert pending.error.status == Status.READ_ONLY
    assert pending.error.maybe_applied


def test_everything_ends_when_the_sockets_are_gone():
    wire = Wire()
    waiting = [wire.submit() for _ in range(3)]
    wire.session.fail_all(lambda: ConnectError("closed"))
    assert all(type(pending.error) is ConnectError for pending in waiting)
