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
from kvclient.protocol import FLAG_BARRIER, Kind, Request
from router.requests import MARGIN_MS, TIMEOUT_MS_MAX, Budget
from shared import logs
from shared.hashing import partition_of
from shared.messages import Item
from tests.unit.router.conftest import CLIENT, PARTITIONS, Harness, msgpack_values, ok, put


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
