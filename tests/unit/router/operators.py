"""What an operator asks a router, and what stores and controller say: for the tests of ADMIN."""

from __future__ import annotations

from typing import Any

import msgpack

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import Kind
from shared.controlmessages import ControlCommand
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


def reply(harness: Harness, figures: dict[int, dict[str, Any]] | None = None) -> list[int]:
    """Every store that is asked says its figures; returns who was asked."""
    asked = questions(harness)
    for node, token in asked:
        harness.router.on_status_reply(node, token, (figures or {}).get(node, {}))
    return sorted(node for node, _ in asked)


def group(role: str, leader: int = 0, term: int = 4, **indexes: Any) -> dict[str, Any]:
    return {"role": role, "leader": leader, "term": term, "commit": 10, "applied": 10, "last": 11} | indexes


def replicated(leader: int, silent: int = 0) -> dict[int, dict[str, Any]]:
    """Figures of three stores, each with a replica of every partition."""
    match = {"match": {str(node): 9 for node in (1, 2, 3)}, "voters": [1, 2, 3], "learners": []}
    return {
        node: {
            "keys": node,
            "groups": {
                str(partition): group("leader", node, **match)
                if node == leader
                else group("follower", leader)
                for partition in range(PARTITIONS)
            },
        }
        for node in (1, 2, 3)
        if node != silent
    }


def show(harness: Harness, nodes: dict[int, str], moves: list[Any] | None = None) -> dict[str, Any]:
    """The store that is asked is the controller, and says this."""
    ((node, request),) = harness.commands()
    assert request.command == ControlCommand.SHOW
    said = {
        "controller": 2,
        "control": [1, 2, 3],
        "nodes": [{"id": id_, "state": state, "heard_ms": 10} for id_, state in nodes.items()],
        "moves": moves or [],
        "paused": False,
        "settings": {"transfers_per_node": 2},
    }
    harness.router.on_control_reply(node, request.token, Status.OK, protocol.pack(said))
    return said
