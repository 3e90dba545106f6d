"""The operators' commands."""

from __future__ import annotations

import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import FLAG_BARRIER, Kind
from router.admin import CONTROL_SECONDS_MAX, ROUNDS_MAX
from shared.hashing import partition_of
from tests.unit.router.conftest import PARTITIONS, THREE_STORES, Harness, ok, put
from tests.unit.router.operators import answer, ask, group, questions, replicated, reply, show


@pytest.fixture
def three() -> Harness:
    return Harness(replicas=3, stores=THREE_STORES)


class TestRoute:
    def test_says_where_a_key_lives(self, harness: Harness) -> None:
        ask(harness, "route", b"a{tag}b")
        leader = harness.leader(b"tag")
        assert reply(harness) == [leader], "nobody else knows anything of it"
        assert answer(harness) == {
            "partition": partition_of(b"tag", 3),
            "hashed_part": b"tag",
            "epoch": 1,
            "replicas": [{"id": leader, "name": f"store{leader}", "leader": True}],
            "state": "up",
        }

    def test_says_down_when_nobody_serves_it(self, harness: Harness) -> None:
        harness.router.on_backend(harness.leader(b"k"), False)
        ask(harness, "route", b"k")
        assert answer(harness)["state"] == "down"

    def test_says_who_leads_and_since_which_term(self, three: Harness) -> None:
        ask(three, "route", b"k")
        assert reply(three, replicated(leader=2)) == [1, 2, 3]
        found = answer(three)
        assert (found["term"], found["commit"], found["state"]) == (4, 10, "up")
        by_id = {replica["id"]: replica for replica in found["replicas"]}
        assert {node: replica["leader"] for node, replica in by_id.items()} == {1: False, 2: True, 3: False}
        assert (by_id[1]["role"], by_id[1]["match"], by_id[1]["lag"]) == ("follower", 9, 1)

    def test_a_leader_that_is_away_leaves_the_partition_down(self, three: Harness) -> None:
        three.router.on_backend(2, False)
        ask(three, "route", b"k")
        assert reply(three, replicated(leader=2)) == [1, 3]
        found = answer(three)
        assert found["state"] == "down"
        assert [replica["id"] for replica in found["replicas"] if replica["leader"]] == [2]


class TestFigures:
    def requests(self, harness: Harness) -> dict[str, dict[str, int]]:
        ask(harness, "figures")
        found: dict[str, dict[str, int]] = answer(harness)["requests"]
        return found

    def test_are_answered_without_a_map_and_without_asking_anybody(self) -> None:
        harness = Harness(with_map=False)
        ask(harness, "figures")
        found = answer(harness)
        assert (found["name"], found["epoch"], found["stores_up"]) == ("router1", 0, [])

    def test_count_requests_by_what_they_ask_for_and_how_they_end(self, harness: Harness) -> None:
        here, there = harness.keys(1, 1)[0], harness.keys(2, 1)[0]
        harness.send(put(here))
        harness.answer(*harness.item(), ok(1))
        harness.send(protocol.encode_get(here))
        harness.refuse(*harness.item(), Status.CORRUPTION)
        harness.send(protocol.encode_get(here) + protocol.encode_get(there))
        first, second = harness.items()
        harness.answer(*first, ok(1))
        harness.refuse(*second, Status.CORRUPTION)
        harness.send(b"\xc1")
        harness.responses()
        assert self.requests(harness) == {
            "read": {"corruption": 2},
            "write": {"ok": 1},
            "unknown": {"invalid_request": 1},
        }
        assert self.requests(harness)["admin"] == {"ok": 1}

    def test_how_long_requests_took_is_kept_by_what_they_ask_for(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key))
        harness.send(protocol.encode_get(key))
        items = harness.items()
        harness.clock.advance(0.25)
        for node, item in items:
            harness.answer(node, item, ok(1))
        harness.responses()
        ask(harness, "figures")
        durations = answer(harness)["durations"]
        assert {op: sum(one["buckets"]) for op, one in durations.items()} == {
            "read": 1,
            "write": 1,
            "scan": 0,
            "barrier": 0,
        }
        assert durations["read"]["total_ns"] == durations["write"]["total_ns"] == 250_000_000


class TestStatus:
    def test_asks_every_store_and_puts_the_answers_together(self, harness: Harness) -> None:
        ask(harness, "status")
        asked = questions(harness)
        assert sorted(node for node, _ in asked) == [1, 2]
        harness.without_controller()
        for node, token in asked:
            assert harness.responses() == []
            harness.router.on_status_reply(node, token, {"keys": node * 100, "name": "not this"})
        status = answer(harness)
        assert {
            name: status[name] for name in ("name", "id", "epoch", "router", "partitions", "replicas")
        } == {
            "name": "test",
            "id": harness.map.cluster_id,
            "epoch": 1,
            "router": "router1",
            "partitions": PARTITIONS,
            "replicas": 1,
        }
        first, second = status["nodes"]
        assert first == {
            "id": 1,
            "name": "store1",
            "rpc": "tcp://127.0.0.1:7200",
            "zone": "",
            "state": "up",
            "reachable": True,
            "partitions": len(harness.map.partitions_of(1)),
            "keys": 100,
        }
        assert (second["id"], second["state"], second["keys"]) == (2, "up", 200)
        assert status["router_figures"]["requests_admin"] == 1
        assert harness.idle

    def test_a_silent_store_is_down(self, harness: Harness) -> None:
        ask(harness, "status", timeout_ms=60_000)
        [token] = {token for _, token in questions(harness)}
        harness.router.on_status_reply(1, token, {})
        harness.pass_time(1.9)
        assert harness.responses() == []
        harness.pass_time(0.2)
        assert [node["state"] for node in answer(harness)["nodes"]] == ["up", "down"]
        harness.router.on_status_reply(2, token, {})
        assert harness.responses() == []

    def test_a_short_deadline_is_kept(self, harness: Harness) -> None:
        ask(harness, "status", timeout_ms=200)
        harness.pass_time(0.2)
        assert [node["state"] for node in answer(harness)["nodes"]] == ["down", "down"]

    def test_a_store_that_is_known_to_be_down_is_not_waited_for(self, harness: Harness) -> None:
        harness.router.on_backend(1, False)
        harness.router.on_backend(2, False)
        ask(harness, "status")
        assert questions(harness) == []
        harness.pass_time(CONTROL_SECONDS_MAX)
        assert [node["state"] for node in answer(harness)["nodes"]] == ["down", "down"]

    def test_a_reply_that_nobody_waits_for_is_ignored(self, harness: Harness) -> None:
        ask(harness, "status")
        [token] = {token for _, token in questions(harness)}
        for _ in range(3):
            harness.router.on_status_reply(1, token, {})
            harness.router.on_status_reply(7, token, {})
            harness.router.on_status_reply(2, token + 1, {})
        assert harness.responses() == []

    def test_a_store_that_was_not_asked_stays_down(self, harness: Harness) -> None:
        harness.router.on_backend(2, False)
        ask(harness, "status")
        harness.without_controller()
        [(_, token)] = questions(harness)
        harness.router.on_status_reply(2, token, {})
        harness.router.on_status_reply(1, token, {})
        assert [node["state"] for node in answer(harness)["nodes"]] == ["up", "down"]

    def test_rounds_are_bounded(self, harness: Harness) -> None:
        for _ in range(ROUNDS_MAX + 1):
            ask(harness, "status")
        assert harness.response().status == Status.BUSY

    def test_puts_the_groups_together(self, three: Harness) -> None:
        three.router.on_backend(3, False)
        ask(three, "status")
        three.without_controller()
        figures = replicated(leader=2, silent=3)
        figures[1]["groups"]["0"]["applied"] = 4
        reply(three, figures)
        status = answer(three)
        assert [(node["leads"], node["lag"]) for node in status["nodes"]] == [(0, 6), (8, 1), (None, None)]
        assert not any("groups" in node for node in status["nodes"]), "what they said is in the table"
        first = status["groups"][0]
        assert (first["partition"], first["leader"], first["term"]) == (0, 2, 4)
        assert (first["commit"], first["applied"], first["voters"]) == (10, 10, [1, 2, 3])
        by_id = {replica["id"]: (replica["up"], replica["lag"]) for replica in first["replicas"]}
        assert by_id == {1: (True, 6), 2: (True, 1), 3: (False, 1)}
        assert len(status["groups"]) == PARTITIONS

    def test_adds_what_the_controller_says(self, three: Harness) -> None:
        ask(three, "status")
        shown = show(three, nodes={1: "up", 2: "suspect", 3: "draining"}, moves=[{"id": 7}])
        assert three.responses() == [], "the stores have not answered"
        reply(three, replicated(leader=2))
        status = answer(three)
        assert (status["controller"], status["control_text"]) == (2, "")
        assert {name: status[name] for name in ("control", "moves", "paused", "settings")} == {
            name: shown[name] for name in ("control", "moves", "paused", "settings")
        }
        assert [node["state"] for node in status["nodes"]] == ["up", "suspect", "draining"]
        assert [node["heard_ms"] for node in status["nodes"]] == [10, 10, 10]

    def test_a_node_that_does_not_answer_is_down_unless_it_is_meant_to_go(self, three: Harness) -> None:
        for node in (1, 2):
            three.router.on_backend(node, False)
        ask(three, "status")
        show(three, nodes={1: "up", 2: "draining", 3: "up"})
        reply(three)
        nodes = answer(three)["nodes"]
        assert [(node["state"], node["reachable"]) for node in nodes] == [
            ("down", False),
            ("draining", False),
            ("up", True),
        ]

    def test_does_not_wait_long_for_a_controller(self, three: Harness) -> None:
        ask(three, "status", timeout_ms=60_000)
        reply(three)
        three.pass_time(CONTROL_SECONDS_MAX - 0.1)
        assert three.responses() == []
        three.pass_time(0.2)
        status = answer(three)
        assert (status["controller"], status["control"], status["moves"]) == (
            0,
            list(three.map.control),
            None,
        )
        assert "did not answer within the deadline" in status["control_text"]

    @pytest.mark.parametrize(
        "said",
        [
            b"",
            b"\xc1",
            protocol.pack(7),
            protocol.pack({}),
            protocol.pack({"nodes": 3, "controller": 1, "moves": []}),
            protocol.pack({"nodes": [7], "controller": 1, "moves": []}),
            protocol.pack({"nodes": [{}], "controller": 1, "moves": []}),
            protocol.pack({"nodes": [], "controller": "1", "moves": []}),
            protocol.pack({"nodes": [], "controller": 1, "moves": 9}),
        ],
    )
    def test_nonsense_of_a_controller_is_none(self, three: Harness, said: bytes) -> None:
        ask(three, "status")
        reply(three)
        ((node, request),) = three.commands()
        three.router.on_control_reply(node, request.token, Status.OK, said)
        status = answer(three)
        assert (status["controller"], status["moves"]) == (0, None)
        assert "not understood" in status["control_text"]


class TestReady:
    def test_is_ok_when_every_partition_takes_a_write(self, harness: Harness) -> None:
        ask(harness, "ready")
        reply(harness)
        for node, item in harness.items():
            assert (item.flags, item.ops) == (FLAG_BARRIER, b"")
            harness.answer(node, item, b"")
        assert answer(harness) == {"router": "router1", "epoch": 1, "partitions": PARTITIONS}
        assert harness.idle

    @pytest.mark.parametrize("status", [Status.READ_ONLY, Status.CORRUPTION])
    def test_names_what_a_store_refused(self, harness: Harness, status: Status) -> None:
        ask(harness, "ready")
        reply(harness)
        for node, item in harness.items():
            if item.partition == 3:
                harness.answer(node, item, protocol.encode_error("the disk is full"), status)
            else:
                harness.answer(node, item, b"")
        response = harness.response()
        assert response.status == Status.UNAVAILABLE
        message = protocol.decode_error(response.body)["message"]
        assert "partition 3:" in message
        assert "the disk is full" in message

    def test_goes_on_to_the_proof_when_every_partition_is_led(self, three: Harness) -> None:
        ask(three, "ready")
        reply(three, replicated(leader=2))
        assert three.responses() == []
        items = three.items()
        assert len(items) == PARTITIONS
        for node, item in items:
            three.answer(node, item, b"")
        assert answer(three)["partitions"] == PARTITIONS

    def test_refuses_at_once_when_a_leader_is_away(self, three: Harness) -> None:
        three.router.on_backend(2, False)
        ask(three, "ready")
        reply(three, replicated(leader=2, silent=2))
        response = three.response()
        assert response.status == Status.UNAVAILABLE
        message = protocol.decode_error(response.body)["message"]
        assert message == (
            "not ready: store2 (tcp://127.0.0.1:7210), which leads partition 0-7, does not answer"
        )
        assert three.items() == []

    def test_refuses_at_once_when_a_partition_has_no_leader(self, three: Harness) -> None:
        ask(three, "ready")
        figures = replicated(leader=2)
        for node in figures:
            figures[node]["groups"]["5"] = group("candidate" if node == 1 else "follower", term=5)
        reply(three, figures)
        message = protocol.decode_error(three.response().body)["message"]
        assert message == "not ready: partition 5 has no leader"

    def test_a_store_that_says_nothing_does_not_take_the_time_for_the_proof(self, three: Harness) -> None:
        ask(three, "ready", timeout_ms=1000)
        three.pass_time(0.5)
        assert len(three.items()) == PARTITIONS


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", Status.INVALID_REQUEST),
        (b"\xc1", Status.INVALID_REQUEST),
        (b"\x90", Status.INVALID_REQUEST),
        (protocol.pack("status"), Status.INVALID_REQUEST),
        (protocol.pack([1]), Status.INVALID_REQUEST),
        (protocol.pack(["status", 1]), Status.INVALID_REQUEST),
        (protocol.pack(["ready", b"k"]), Status.INVALID_REQUEST),
        (protocol.pack(["healthy", 1]), Status.INVALID_REQUEST),
        (protocol.pack(["control"]), Status.INVALID_REQUEST),
        (protocol.pack(["control", "show", b"\x80"]), Status.INVALID_REQUEST),
        (protocol.pack(["control", "show", b"\x80", 0]), Status.INVALID_REQUEST),
        (protocol.pack(["control", "show", "text", False]), Status.INVALID_REQUEST),
        (protocol.pack(["control", "explode", b"\x80", False]), Status.UNSUPPORTED),
        (protocol.pack(["route"]), Status.INVALID_REQUEST),
        (protocol.pack(["route", "text"]), Status.INVALID_REQUEST),
        (protocol.pack(["route", b""]), Status.INVALID_REQUEST),
        (protocol.pack(["route", bytes(4097)]), Status.INVALID_REQUEST),
        (protocol.pack(["route", b"k", b"k"]), Status.INVALID_REQUEST),
        (b"\xdd\xff\xff\xff\xff" * 20, Status.INVALID_REQUEST),
        (bytes(1 << 20), Status.INVALID_REQUEST),
        (protocol.pack(["drop", b"everything"]), Status.UNSUPPORTED),
    ],
)
def test_commands_that_are_none(harness: Harness, body: bytes, status: Status) -> None:
    harness.send(body, kind=Kind.ADMIN)
    response = harness.response()
    assert (response.kind, response.status) == (Kind.ADMIN, status)
    assert harness.items() == []
    assert harness.idle
