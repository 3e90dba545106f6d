"""The router's core: the way of a request, and what may go wrong on it."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import FLAG_BARRIER, FLAG_RETRY, Kind, Request
from router.requests import MARGIN_MS, TIMEOUT_MS_MAX, Budget
from router.routing import STALE_SECONDS
from router.topology import MAP_RETRY_SECONDS
from shared import logs
from shared.clustermap import ClusterMap, Node
from shared.hashing import partition_of
from shared.messages import Item
from tests.unit.router.conftest import CLIENT, PARTITIONS, STORES, Harness, changed, msgpack_values, ok, put


class TestOnePartition:
    def test_goes_to_the_leader_as_it_came_and_the_results_come_back_untouched(
        self, harness: Harness
    ) -> None:
        request_id = harness.send(put(b"hello"), read_mode=7, acked_below=3, sequence=4)
        node, item = harness.item()
        assert node == harness.leader(b"hello")
        assert item.ops == put(b"hello")
        assert item[3:8] == (7, 0, 9, 4, 3)
        assert item.partition == partition_of(b"hello", 3)
        harness.answer(node, item, b"\x92\x00\x05")
        assert harness.response() == (Kind.OPS, request_id, Status.OK, b"\x92\x00\x05")
        assert harness.idle
        assert harness.count("requests_ops") == 1

    def test_several_ops_of_one_partition_stay_one_item(self, harness: Harness) -> None:
        ops = put(b"{tag}a") + protocol.encode_get(b"{tag}b")
        harness.send(ops)
        assert harness.item()[1].ops == ops

    def test_the_store_gets_less_time_than_the_client_gave(self, harness: Harness) -> None:
        harness.send(put(b"k"), timeout_ms=5000)
        assert harness.item()[1].timeout_ms == 5000 - MARGIN_MS
        harness.send(put(b"k"), timeout_ms=80)
        assert harness.item()[1].timeout_ms == 70

    def test_silly_deadlines_are_cut(self, harness: Harness) -> None:
        harness.send(put(b"k"), timeout_ms=0xFFFFFFFF)
        assert harness.item()[1].timeout_ms == TIMEOUT_MS_MAX - MARGIN_MS

    def test_an_expired_request_is_not_sent(self, harness: Harness) -> None:
        harness.send(put(b"k"), timeout_ms=0)
        assert harness.items() == []
        assert harness.response().status == Status.TIMEOUT
        assert harness.idle

    def test_a_final_refusal_becomes_the_result_of_each_op(self, harness: Harness) -> None:
        harness.send(put(b"{t}a") + put(b"{t}b"))
        harness.refuse(*harness.item(), Status.READ_ONLY)
        assert harness.results() == [[Status.READ_ONLY, "no"], [Status.READ_ONLY, "no"]]
        assert harness.idle

    def test_an_answer_of_the_wrong_store_or_of_nobody_is_ignored(self, harness: Harness) -> None:
        harness.send(put(b"k"))
        node, item = harness.item()
        harness.answer(3 - node, item, ok(1))
        harness.answer(node, item._replace(token=item.token + 1), ok(1))
        assert harness.responses() == []
        assert harness.count("answers_stray") == 2
        harness.answer(node, item, ok(1))
        harness.answer(node, item, ok(1))
        assert len(harness.responses()) == 1
        assert harness.count("answers_stray") == 3


class TestManyPartitions:
    def test_each_partition_gets_its_slice_and_results_come_back_in_op_order(self, harness: Harness) -> None:
        keys = [b"key%d" % number for number in range(40)]
        harness.send(b"".join(map(put, keys)))
        items = harness.items()
        assert {item.partition for _, item in items} == set(range(PARTITIONS))
        for node, item in reversed(items):
            sent = [op[1] for op in msgpack_values(item.ops)]
            harness.answer(node, item, b"".join(ok(keys.index(key)) for key in sent))
        assert harness.results() == [[0, number] for number in range(40)]
        assert harness.idle

    def test_a_part_that_fails_fails_its_ops_alone(self, harness: Harness) -> None:
        here, there = harness.keys(1, 1)[0], harness.keys(2, 1)[0]
        harness.send(put(here) + put(there) + put(here))
        for node, item in harness.items():
            if node == 1:
                harness.answer(node, item, ok(1) + ok(2))
            else:
                harness.refuse(node, item, Status.CORRUPTION)
        assert harness.results() == [[0, 1], [Status.CORRUPTION, "no"], [0, 2]]

    def test_a_store_that_answers_nonsense_is_an_internal_error_of_that_request_only(
        self, harness: Harness
    ) -> None:
        here, there = harness.keys(1, 1)[0], harness.keys(2, 1)[0]
        harness.send(put(here) + put(there))
        harness.send(put(here))
        for node, item in harness.items():
            harness.answer(node, item, ok(1) if item.sequence == 2 else b"\xc1")
        by_status = {response.request_id: response.status for response in harness.responses()}
        assert by_status == {1: Status.INTERNAL, 2: Status.OK}
        assert harness.idle

    def test_nonsense_beside_a_partition_that_was_not_served_is_answered_once(self, harness: Harness) -> None:
        """It raised out of the sweep, and all that had expired with it was never answered."""
        harness.send(put(harness.keys(1, 1)[0]) + put(harness.keys(2, 1)[0]), timeout_ms=1000)
        (node, item), _ = harness.items()
        harness.answer(node, item, b"")
        harness.send(put(harness.keys(2, 1)[0]), timeout_ms=1000)
        harness.pass_time(1)
        assert sorted(response.status for response in harness.responses()) == [Status.OK, Status.INTERNAL]
        assert harness.idle

    def test_an_empty_stream_has_empty_results(self, harness: Harness) -> None:
        harness.send(b"")
        assert harness.response()[2:] == (Status.OK, b"")


class TestDeadlines:
    def test_a_write_that_a_store_did_not_answer_has_an_unknown_outcome(self, harness: Harness) -> None:
        harness.send(put(b"k"), timeout_ms=1000)
        harness.items()
        harness.pass_time(0.94)
        assert harness.responses() == []
        harness.pass_time(0.06)
        [[status, message]] = harness.results()
        assert status == Status.OUTCOME_UNKNOWN
        assert f"store{harness.leader(b'k')}" in message
        assert harness.idle

    def test_a_read_that_a_store_did_not_answer_timed_out(self, harness: Harness) -> None:
        harness.send(protocol.encode_get(b"k"), timeout_ms=1000)
        node, item = harness.item()
        harness.pass_time(1)
        assert harness.results()[0][0] == Status.TIMEOUT
        harness.answer(node, item, ok(b"v", 1))
        assert harness.responses() == []

    def test_the_parts_that_were_answered_keep_their_results(self, harness: Harness) -> None:
        here, there = harness.keys(1, 1)[0], harness.keys(2, 1)[0]
        harness.send(put(here) + protocol.encode_get(there), timeout_ms=1000)
        for node, item in harness.items():
            if node == 1:
                harness.answer(node, item, ok(1))
        harness.pass_time(1)
        results = harness.results()
        assert results[0] == [0, 1]
        assert results[1][0] == Status.TIMEOUT, (
            "a part that only reads is no write, whatever else the request held"
        )

    def test_deadlines_are_kept_whatever_their_order(self, harness: Harness) -> None:
        for timeout_ms in (3000, 100, 2000, 50, 1000):
            harness.send(put(b"k"), timeout_ms=timeout_ms)
        harness.items()
        for seconds, expected in ((0.06, [4]), (0.06, [2]), (0.9, [5]), (1.0, [3]), (1.0, [1])):
            harness.pass_time(seconds)
            assert [response.request_id for response in harness.responses()] == expected
        assert harness.router.next_due() > harness.clock.monotonic() + 0.1, (
            "nothing is due when nothing is under way"
        )


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


class TestBudget:
    def test_beyond_the_parts_busy_at_once_and_room_again_after_answers(self) -> None:
        harness = Harness(budget=Budget(3, 1 << 20))
        for _ in range(3):
            harness.send(put(b"k"))
        refused = harness.send(put(b"k"))
        response = harness.response()
        assert (response.request_id, response.status) == (refused, Status.BUSY)
        assert protocol.decode_error(response.body)["retry_after_ms"] > 0
        items = harness.items()
        assert len(items) == 3
        harness.answer(*items[0], ok(1))
        harness.responses()
        harness.send(put(b"k"))
        assert harness.responses() == []
        assert harness.count("requests_busy") == 1

    def test_beyond_the_bytes_busy_at_once(self) -> None:
        harness = Harness(budget=Budget(1000, 3000))
        for _ in range(3):
            harness.send(protocol.encode_put(b"k", bytes(1500)))
        assert [response.status for response in harness.responses()] == [Status.BUSY]
        for node, item in harness.items():
            harness.answer(node, item, ok(1))
        assert harness.idle

    def test_operators_are_served_when_the_budget_is_full(self) -> None:
        harness = Harness(budget=Budget(1, 1 << 20))
        harness.send(put(b"k"))
        harness.send(protocol.encode_admin("route", b"k"), kind=Kind.ADMIN)
        harness.send(b"", kind=Kind.PING)
        for node, token in harness.router.outbox_status:
            harness.router.on_status_reply(node, token, {})
        assert [response.status for response in harness.responses()] == [0, 0]


class TestMaps:
    def test_a_malformed_request_that_waited_for_the_map_is_refused_then(self) -> None:
        harness = Harness(with_map=False)
        harness.send(b"\xc1")
        harness.send(b"", kind=Kind.MAP)
        harness.router.on_map(harness.map.encode())
        assert [response.status for response in harness.responses()] == [Status.INVALID_REQUEST, Status.OK]
        assert harness.idle

    def test_requests_wait_for_the_first_map(self) -> None:
        harness = Harness(with_map=False)
        harness.send(put(b"k"))
        harness.send(b"", kind=Kind.MAP)
        assert harness.responses() == []
        assert harness.router.should_ask_map()
        assert not harness.router.should_ask_map()
        harness.pass_time(0.5)
        harness.router.on_map(harness.map.encode())
        assert harness.response()[2:] == (Status.OK, harness.map.encode())
        harness.router.on_backend(harness.leader(b"k"), True)
        node, item = harness.item()
        assert item.timeout_ms <= 4450
        harness.answer(node, item, ok(1))
        assert harness.idle | bool(harness.responses())

    def test_without_a_map_the_seeds_are_named_in_time(self) -> None:
        harness = Harness(with_map=False)
        harness.send(put(b"k"), timeout_ms=1000)
        harness.pass_time(0.9)
        assert harness.responses() == []
        harness.pass_time(0.1)
        response = harness.response()
        assert response.status == Status.UNAVAILABLE
        assert "tcp://127.0.0.1:7200" in protocol.decode_error(response.body)["message"]
        assert harness.idle

    def test_early_requests_are_bounded_by_the_budget(self) -> None:
        harness = Harness(with_map=False, budget=Budget(2, 1 << 20))
        for _ in range(3):
            harness.send(put(b"k"))
        assert harness.response().status == Status.BUSY

    def test_ping_needs_no_map(self) -> None:
        harness = Harness(with_map=False)
        harness.send(b"", kind=Kind.PING)
        assert msgpack.unpackb(harness.response().body) == ["router1", "0.1", 0]

    def test_a_new_map_moves_what_waits(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.router.on_backend(1, False)
        harness.send(put(key))
        assert harness.items() == []
        assert harness.router.on_map(changed(harness.map, replicas=((2,),) * PARTITIONS))
        assert harness.item()[0] == 2
        harness.send(put(key))
        assert harness.item()[0] == 2

    def leave(self, harness: Harness) -> None:
        harness.router.on_map(changed(harness.map, nodes=STORES[1:], replicas=((2,),) * PARTITIONS))

    def test_a_node_that_left_the_map_may_answer_what_it_has(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key), client_id=0, sequence=0)
        node, item = harness.item()
        self.leave(harness)
        assert set(harness.router.outbox_stores) == {2}
        assert harness.router.is_with(1)
        harness.answer(node, item, ok(1))
        assert harness.results() == [[0, 1]]
        assert not harness.router.is_with(1)
        assert harness.idle

    def test_what_a_node_that_left_refuses_goes_on_by_the_new_map(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key))
        node, item = harness.item()
        self.leave(harness)
        harness.refuse(node, item, Status.WRONG_REPLICA)
        harness.pass_time(0.02)
        node, item = harness.item()
        assert (node, item.flags) == (2, 0)

    def test_a_node_that_left_the_map_and_went_down_is_lost(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key))
        harness.items()
        self.leave(harness)
        harness.router.on_backend(1, False)
        node, item = harness.item()
        assert (node, item.flags) == (2, FLAG_RETRY)
        harness.router.on_backend(1, True)
        assert set(harness.router.outbox_stores) == {2}

    def test_what_was_not_sent_yet_goes_elsewhere_at_once(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key), client_id=0, sequence=0)
        self.leave(harness)
        node, item = harness.item()
        assert (node, item.flags) == (2, 0)
        assert harness.count("parts_retried") == 0

    def test_who_has_a_newer_map_is_asked_for_it_once(self, harness: Harness) -> None:
        harness.router.on_epoch(2, 2)
        assert harness.router.should_ask_map()
        assert harness.router.topology.take_informant() == 2
        harness.clock.advance(0.3)
        assert harness.router.should_ask_map(), "it has not answered"
        assert harness.router.topology.take_informant() == 0, "others may"

    def test_a_leader_that_the_map_does_not_have_yet_is_a_sign_of_a_newer_one(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key))
        node, item = harness.item()
        assert not harness.router.should_ask_map()
        harness.refuse(node, item, Status.NOT_LEADER, leader=9)
        assert harness.router.should_ask_map()
        assert harness.router.topology.take_informant() == node

    def test_a_map_that_is_wholly_stale_heals_without_a_failed_request(self) -> None:
        """All replicas moved to stores that this router never heard of; those of its map refuse."""
        harness = Harness(replicas=2)
        key = harness.keys(1, 1)[0]
        harness.send(put(key))
        new = tuple(Node(id=number, name=f"new{number}", rpc=f"tcp://[::1]:{number}") for number in (7, 8))
        newer = changed(harness.map, nodes=(*STORES, *new), replicas=((7, 8),) * PARTITIONS)
        for _ in range(3):
            for node, item in harness.items():
                harness.refuse(node, item, Status.WRONG_REPLICA)
            assert harness.router.topology.next_question <= harness.clock.monotonic() + MAP_RETRY_SECONDS
            harness.pass_time(0.05)
        for node, item in harness.items():
            harness.refuse(node, item, Status.WRONG_REPLICA)
        harness.router.on_map(newer)
        harness.pass_time(0.5)
        assert harness.items() == [], "nobody there is reached yet"
        harness.router.on_backend(8, True)
        node, item = harness.item()
        assert node == 8
        harness.answer(node, item, ok(1))
        assert harness.results() == [[0, 1]]
        assert harness.idle

    def test_older_maps_and_maps_of_others_are_not_taken(self, harness: Harness) -> None:
        assert not harness.router.on_map(harness.map.encode())
        other = ClusterMap.bootstrap("other", PARTITIONS, 1, STORES)
        with pytest.raises(Exception, match="other"):
            harness.router.on_map(changed(other))
        with pytest.raises(Exception, match="cluster map"):
            harness.router.on_map(b"\xc1")
        assert harness.router.topology.map == harness.map

    def test_the_map_is_asked_for_again_every_ten_seconds(self, harness: Harness) -> None:
        harness.clock.advance(9.9)
        assert not harness.router.should_ask_map()
        harness.clock.advance(0.2)
        assert harness.router.should_ask_map()


class TestRefusedRequests:
    """One response, with the right words; nothing is sent to a store."""

    @pytest.fixture(autouse=True)
    def _nothing_is_executed(self, harness: Harness) -> Any:
        yield
        assert harness.items() == []
        assert harness.idle

    @pytest.mark.parametrize(
        ("ops", "status", "details"),
        [
            (b"\xc1", Status.INVALID_REQUEST, {"index": 0}),
            (put(b"k") + b"\x92\x01", Status.INVALID_REQUEST, {"index": 1}),
            (protocol.encode_get(b""), Status.INVALID_REQUEST, {"index": 0}),
            (
                protocol.encode_get(bytes(4097)),
                Status.KEY_TOO_LONG,
                {"limit": 4096, "size": 4097, "index": 0},
            ),
            (
                protocol.encode_put(b"k", bytes(1048577)),
                Status.VALUE_TOO_LARGE,
                {"limit": 1048576, "size": 1048577},
            ),
            (protocol.encode_get(b"k") * 10_001, Status.TOO_MANY_OPS, {"limit": 10_000}),
            (protocol.encode_put(b"k", bytes(1 << 20)) * 17, Status.REQUEST_TOO_LARGE, {"limit": 16 << 20}),
            (b"\x92\x0a\xc4\x01k", Status.UNSUPPORTED, {"index": 0}),
            (b"\x93\x09\xc4\x01a\xc4\x01b", Status.UNSUPPORTED, {"index": 0}),  # an engine's DELETE_RANGE
        ],
    )
    def test_op_streams(self, ops: bytes, status: Status, details: dict[str, int]) -> None:
        harness = Harness(budget=Budget(1000, 1 << 30))
        request_id = harness.send(ops)
        response = harness.response()
        assert (response.kind, response.request_id, response.status) == (Kind.OPS, request_id, status)
        body = protocol.decode_error(response.body)
        assert body["message"]
        assert {name: body.get(name) for name in details} == details
        assert harness.count("requests_refused") == 1

    @pytest.mark.parametrize(
        "fields",
        [{"kind": 5}, {"kind": 99}, {"flags": 4}, {"flags": 1 << 31}],
    )
    def test_unknown_kinds_and_flags(self, harness: Harness, fields: dict[str, int]) -> None:
        harness.send(put(b"k"), **fields)
        assert harness.response().status == Status.UNSUPPORTED

    def test_a_barrier_with_ops(self, harness: Harness) -> None:
        harness.send(put(b"k"), flags=FLAG_BARRIER)
        assert harness.response().status == Status.INVALID_REQUEST

    @pytest.mark.parametrize(
        "frame",
        [
            b"",
            b"\xc1",
            b"\x00",
            b"\x9a",
            b"\xdd\xff\xff\xff\xff",
            b"\x91" * 100_000,
            b"\x90",
            msgpack.packb([1] * 9),
        ],
    )
    def test_frames_that_are_no_request(self, harness: Harness, frame: bytes) -> None:
        harness.router.on_request(CLIENT, frame)
        response = harness.response()
        assert (response.request_id, response.status) == (0, Status.INVALID_REQUEST)

    @pytest.mark.parametrize(
        ("position", "value", "request_id"),
        [(1, True, 7), (2, "7", 0), (3, -1, 7), (4, 1 << 32, 7), (5, 1.0, 7), (7, None, 7), (9, "text", 7)],
    )
    def test_fields_of_the_wrong_type(
        self, harness: Harness, position: int, value: object, request_id: int
    ) -> None:
        fields: list[object] = [1, 1, 7, 5000, 0, 0, 9, 1, 1, put(b"k")]
        fields[position] = value
        harness.router.on_request(CLIENT, msgpack.packb(fields))
        response = harness.response()
        assert (response.request_id, response.status) == (request_id, Status.INVALID_REQUEST)

    def test_another_version(self, harness: Harness) -> None:
        harness.router.on_request(CLIENT, msgpack.packb([2, 1, 7, 5000, 0, 0, 9, 1, 1, put(b"k")]))
        response = harness.response()
        assert (response.request_id, response.status) == (7, Status.VERSION_MISMATCH)

    @pytest.mark.parametrize("message", [[CLIENT], [CLIENT, b"", b""], [CLIENT, put(b"k"), b"x", b"y"]])
    def test_more_or_fewer_frames(self, harness: Harness, message: list[bytes]) -> None:
        harness.router.on_requests([message])
        assert harness.response().status == Status.INVALID_REQUEST

    def test_a_bad_message_does_not_cost_the_others_of_its_batch(self, harness: Harness) -> None:
        good = protocol.encode_request(Request(Kind.OPS, 5, 5000, 0, 0, 9, 1, 1, put(b"k")))
        harness.router.on_requests([[CLIENT, b"\xc1"], [CLIENT, good], [CLIENT], [CLIENT, good]])
        assert [response.status for response in harness.responses()] == [Status.INVALID_REQUEST] * 2
        for node, item in harness.items():
            harness.answer(node, item, ok(1))
        assert len(harness.responses()) == 2


def test_a_defect_is_answered_counted_and_stops_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    logs.configure("info", "json", stream=out)
    place: Callable[..., None] = harness.router._dispatch.place

    def fail_once(*arguments: Any) -> None:
        monkeypatch.setattr(harness.router._dispatch, "place", place)
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(harness.router._dispatch, "place", fail_once)
    harness.send(b"".join(put(b"key%d" % number) for number in range(9)))
    response = harness.response()
    assert response.status == Status.INTERNAL
    assert harness.count("defects") == 1
    assert "broken on purpose" in out.getvalue()
    harness.send(put(b"k"))
    assert len(harness.items()) == 1


def test_every_request_is_answered_exactly_once_whatever_stores_do() -> None:
    """A seeded storm: refusals, losses, silence, maps. All requests end, and the books are balanced."""
    for seed in range(20):
        chance = random.Random(seed)
        harness = Harness(replicas=chance.choice((1, 2)))
        answered: list[int] = []
        for _ in range(400):
            action = chance.random()
            if action < 0.4:
                keys = [b"key%d" % chance.randrange(100) for _ in range(chance.choice((1, 1, 5)))]
                ops = b"".join(chance.choice((put, protocol.encode_get))(key) for key in keys)
                harness.send(
                    ops, timeout_ms=chance.choice((0, 20, 500, 3000)), sequence=chance.choice((0, 1))
                )
            elif action < 0.8:
                for node, item in harness.items():
                    serve(harness, chance, node, item)
            elif action < 0.9:
                harness.router.on_backend(chance.choice((1, 2)), chance.random() < 0.5)
            else:
                harness.pass_time(chance.random() * 0.1)
            answered += [response.request_id for response in harness.responses()]
        harness.pass_time(61)
        answered += [response.request_id for response in harness.responses()]
        assert sorted(answered) == list(range(1, harness.request_id + 1)), f"seed {seed}"
        assert harness.idle, f"seed {seed}"


def serve(harness: Harness, chance: random.Random, node: int, item: Item) -> None:
    outcome = chance.random()
    if outcome < 0.5:
        harness.answer(node, item, ok(1) * len(msgpack_values(item.ops)))
    elif outcome < 0.8:
        harness.refuse(node, item, chance.choice((Status.NOT_LEADER, Status.BUSY, Status.READ_ONLY)))
    elif outcome < 0.9:
        harness.router.on_unsent(node, [item])
