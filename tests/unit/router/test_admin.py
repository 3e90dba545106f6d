"""The operators' commands."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import FLAG_BARRIER, Kind
from router.admin import ROUNDS_MAX
from shared.hashing import partition_of
from tests.unit.router.conftest import PARTITIONS, Harness


def ask(harness: Harness, command: str, *arguments: Any, **fields: Any) -> None:
    harness.send(protocol.encode_admin(command, *arguments), kind=Kind.ADMIN, sequence=0, **fields)


def answer(harness: Harness) -> Any:
    response = harness.response()
    assert (response.kind, response.status) == (Kind.ADMIN, Status.OK)
    return msgpack.unpackb(response.body)


def questions(harness: Harness) -> list[tuple[int, int]]:
    asked = list(harness.router.outbox_status)
    harness.router.outbox_status.clear()
    return asked


class TestRoute:
    def test_says_where_a_key_lives(self, harness: Harness) -> None:
        ask(harness, "route", b"a{tag}b")
        leader = harness.leader(b"tag")
        assert answer(harness) == {
            "partition": partition_of(b"tag", 3),
            "hashed_part": b"tag",
            "epoch": 1,
            "replicas": [{"id": leader, "name": f"store{leader}"}],
            "state": "up",
        }

    def test_says_down_when_nobody_serves_it(self, harness: Harness) -> None:
        harness.router.on_backend(harness.leader(b"k"), False)
        ask(harness, "route", b"k")
        assert answer(harness)["state"] == "down"


class TestStatus:
    def test_asks_every_store_and_puts_the_answers_together(self, harness: Harness) -> None:
        ask(harness, "status")
        asked = questions(harness)
        assert sorted(node for node, _ in asked) == [1, 2]
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
        [(_, token)] = questions(harness)
        harness.router.on_status_reply(2, token, {})
        harness.router.on_status_reply(1, token, {})
        assert [node["state"] for node in answer(harness)["nodes"]] == ["up", "down"]

    def test_rounds_are_bounded(self, harness: Harness) -> None:
        for _ in range(ROUNDS_MAX + 1):
            ask(harness, "status")
        assert harness.response().status == Status.BUSY


class TestReady:
    def test_is_ok_when_every_partition_takes_a_write(self, harness: Harness) -> None:
        ask(harness, "ready")
        for node, item in harness.items():
            assert (item.flags, item.ops) == (FLAG_BARRIER, b"")
            harness.answer(node, item, b"")
        assert answer(harness) == {"router": "router1", "epoch": 1, "partitions": PARTITIONS}
        assert harness.idle

    @pytest.mark.parametrize("status", [Status.READ_ONLY, Status.CORRUPTION])
    def test_names_what_a_store_refused(self, harness: Harness, status: Status) -> None:
        ask(harness, "ready")
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
