"""What the router tries again, and what it says of stores that it lost."""

from __future__ import annotations

import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import FLAG_RETRY
from router.routing import STALE_SECONDS
from shared.hashing import partition_of
from tests.unit.router.conftest import PARTITIONS, Harness, ok, put


class TestRetries:
    @pytest.mark.parametrize(
        "status", [Status.NOT_LEADER, Status.WRONG_REPLICA, Status.BUSY, Status.UNAVAILABLE]
    )
    def test_a_refusal_that_may_pass_is_tried_again_with_a_new_token(
        self, harness: Harness, status: Status
    ) -> None:
        harness.send(put(b"k"))
        node, item = harness.item()
        harness.refuse(node, item, status)
        assert harness.items() == [], "not at once"
        harness.pass_time(0.04)
        again, second = harness.item()
        assert again == node
        assert second.token != item.token
        assert second.flags == 0, "the store said that nothing was applied"
        assert item.timeout_ms - 45 <= second.timeout_ms < item.timeout_ms
        harness.answer(node, second, ok(1))
        assert harness.results() == [[0, 1]]
        assert harness.count("parts_retried") == 1
        assert harness.idle

    def test_pauses_grow_to_half_a_second(self, harness: Harness) -> None:
        harness.send(put(b"k"), timeout_ms=20_000)
        pauses = []
        for _ in range(12):
            harness.refuse(*harness.item(), Status.BUSY)
            before = harness.clock.monotonic()
            while not any(harness.router.outbox_stores.values()):
                harness.pass_time(0.001)
            pauses.append(harness.clock.monotonic() - before)
        assert 0.005 <= pauses[0] <= 0.011
        assert all(0.25 <= pause <= 0.501 for pause in pauses[6:])
        assert len(set(pauses[6:])) > 1, "without jitter all parts would come back together"

    def test_busy_waits_as_long_as_the_store_asks(self, harness: Harness) -> None:
        harness.send(put(b"k"))
        harness.refuse(*harness.item(), Status.BUSY, retry_after_ms=400)
        harness.pass_time(0.39)
        assert harness.items() == []
        harness.pass_time(0.12)
        assert len(harness.items()) == 1

    def test_no_time_for_another_attempt_says_so_at_once(self, harness: Harness) -> None:
        harness.send(put(b"k"), timeout_ms=1000)
        harness.refuse(*harness.item(), Status.BUSY, retry_after_ms=2000)
        assert harness.results() == [[Status.BUSY, "no", 2000]]
        assert harness.idle

    def test_not_leader_until_the_deadline_is_unavailable_to_the_client(self, harness: Harness) -> None:
        harness.send(put(b"k"), timeout_ms=300)
        while harness.router.busy:
            for node, item in harness.items():
                harness.refuse(node, item, Status.NOT_LEADER)
            harness.pass_time(0.01)
        [[status, message]] = harness.results()
        assert status == Status.UNAVAILABLE
        assert f"partition {partition_of(b'k', 3)}" in message

    def test_a_wrong_replica_and_a_higher_epoch_ask_for_the_map_but_not_every_time(
        self, harness: Harness
    ) -> None:
        harness.pass_time(1)
        assert not harness.router.should_ask_map()
        harness.send(put(b"k"))
        node, item = harness.item()
        harness.refuse(node, item, Status.WRONG_REPLICA)
        assert harness.router.should_ask_map()
        for _ in range(100):
            harness.router.on_batch_reply(node, 2, [])
            assert not harness.router.should_ask_map()
        harness.clock.advance(0.3)
        harness.router.on_batch_reply(node, 2, [])
        assert harness.router.should_ask_map()


class TestLostStores:
    def test_reads_and_writes_of_a_session_wait_and_are_sent_again(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key))
        harness.send(protocol.encode_get(key), sequence=0)
        first = harness.items()
        harness.router.on_backend(1, False)
        assert harness.items() == []
        harness.pass_time(1)
        harness.router.on_backend(1, True)
        write, read = (item for _, item in harness.items())
        assert write.flags == FLAG_RETRY, "its first attempt may have been applied"
        assert read.flags == 0
        assert write.timeout_ms < 4000
        assert {write.token, read.token}.isdisjoint(item.token for _, item in first)
        harness.answer(1, first[0][1], ok(1))
        assert harness.responses() == [], "the answer to the lost attempt came too late"
        harness.answer(1, write, ok(1))
        harness.answer(1, read, ok(b"v", 1))
        assert len(harness.responses()) == 2
        assert harness.count("parts_lost") == 2

    @pytest.mark.parametrize("session", [{"sequence": 0}, {"client_id": 0}])
    def test_a_write_without_a_session_is_never_sent_again(
        self, harness: Harness, session: dict[str, int]
    ) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key), **session)
        harness.items()
        harness.router.on_backend(1, False)
        assert harness.results()[0][0] == Status.OUTCOME_UNKNOWN
        harness.router.on_backend(1, True)
        assert harness.items() == []

    def test_a_write_that_was_lost_once_and_not_answered_has_an_unknown_outcome(
        self, harness: Harness
    ) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key), timeout_ms=1000)
        harness.items()
        harness.router.on_backend(1, False)
        harness.pass_time(1)
        assert harness.results()[0][0] == Status.OUTCOME_UNKNOWN

    def test_busy_after_a_lost_attempt_does_not_make_the_outcome_known(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key), timeout_ms=1000)
        harness.items()
        harness.router.on_backend(1, False)
        harness.router.on_backend(1, True)
        harness.refuse(*harness.item(), Status.BUSY, retry_after_ms=5000)
        assert harness.results()[0][0] == Status.OUTCOME_UNKNOWN

    def test_a_request_of_a_store_that_is_down_waits_and_then_names_it(self, harness: Harness) -> None:
        key = harness.keys(2, 1)[0]
        harness.router.on_backend(2, False)
        harness.send(put(key), timeout_ms=1000)
        assert harness.items() == []
        harness.pass_time(1)
        [[status, message]] = harness.results()
        assert status == Status.UNAVAILABLE
        assert "store2 (tcp://127.0.0.1:7210)" in message
        assert f"partition {partition_of(key, 3)}" in message
        assert harness.idle

    def test_a_clients_retry_that_went_nowhere_says_so_of_itself_only(self, harness: Harness) -> None:
        """The client knows what became of its first attempt; this router does not."""
        harness.router.on_backend(2, False)
        harness.send(put(harness.keys(2, 1)[0]), timeout_ms=1000, flags=FLAG_RETRY)
        harness.pass_time(1)
        assert harness.results()[0][0] == Status.UNAVAILABLE

    @pytest.mark.parametrize(
        "status", [Status.TIMEOUT, Status.READ_ONLY, Status.CORRUPTION, Status.INVALID_REQUEST]
    )
    def test_a_final_refusal_after_a_lost_attempt_does_not_make_the_outcome_known(
        self, harness: Harness, status: Status
    ) -> None:
        """The store speaks of the attempt that it has seen, the client would take it for the whole."""
        harness.send(put(harness.keys(1, 1)[0]))
        harness.item()
        harness.router.on_backend(1, False)
        harness.router.on_backend(1, True)
        harness.refuse(*harness.item(), status)
        assert harness.results()[0][0] == Status.OUTCOME_UNKNOWN

    def test_what_is_late_already_does_not_go_out_once_more(self, harness: Harness) -> None:
        """The loop stood still past the deadline: the retry went out first and left doubt about the write."""
        harness.send(put(harness.keys(1, 1)[0]), timeout_ms=1000)
        harness.refuse(*harness.item(), Status.UNAVAILABLE)
        harness.clock.advance(2)
        harness.router.on_tick(harness.clock.monotonic())
        assert harness.results()[0][0] == Status.UNAVAILABLE
        assert harness.items() == []

    def test_what_lay_here_while_the_process_stood_still_is_passed_on_as_a_retry(
        self, harness: Harness
    ) -> None:
        """Its client has long sent it through another router, and the store may have restarted since: it
        executed the write twice.
        """
        harness.router.on_stall()
        harness.send(put(b"k"))
        harness.send(put(b"k"), client_id=0, sequence=0)
        harness.send(protocol.encode_get(b"k"), sequence=0)
        assert [item.flags for _, item in harness.items()] == [FLAG_RETRY, 0, 0]
        harness.pass_time(STALE_SECONDS)
        harness.send(put(b"k"))
        assert harness.item()[1].flags == 0

    def test_that_nobody_is_there_says_more_than_an_earlier_refusal(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key), timeout_ms=1000)
        harness.refuse(*harness.item(), Status.BUSY, retry_after_ms=20)
        harness.router.on_backend(1, False)
        harness.pass_time(1)
        [[status, message]] = harness.results()
        assert status == Status.UNAVAILABLE
        assert "store1" in message

    def test_what_the_socket_did_not_take_is_sent_again_without_retry(self, harness: Harness) -> None:
        harness.send(put(b"k"), sequence=0)
        node, item = harness.item()
        harness.router.on_unsent(node, [item])
        harness.pass_time(0.02)
        _, again = harness.item()
        assert again.flags == 0
        harness.answer(node, again, ok(1))
        assert harness.results() == [[0, 1]]

    def test_what_was_still_in_the_outbox_when_the_store_went_down_was_never_sent(
        self, harness: Harness
    ) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key), sequence=0)
        harness.router.on_backend(1, False)
        harness.pass_time(0.1)
        harness.router.on_backend(1, True)
        assert harness.item()[1].flags == 0

    def test_another_replica_serves_while_the_leader_is_down(self) -> None:
        harness = Harness(replicas=2)
        harness.router.on_backend(1, False)
        harness.send(b"".join(put(b"key%d" % number) for number in range(40)))
        items = harness.items()
        assert {node for node, _ in items} == {2}
        assert len(items) == PARTITIONS

    def test_parked_parts_do_not_pile_up_while_a_store_is_down(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.router.on_backend(1, False)
        for _ in range(50):
            harness.send(put(key), timeout_ms=100)
            harness.pass_time(0.2)
        assert len(harness.responses()) == 50
        assert harness.router.flight.take_parked() == []
