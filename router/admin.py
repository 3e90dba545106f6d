"""The operators' commands: `status`, `route`, `ready` (docs/protocol.md section 6).

Owns their arguments and answers, and the rounds of questions that `status` puts to the stores. Must not know
sockets or the way of ordinary requests; `ready` is a barrier through every partition, so the core runs it as
any other scattered request.

Invariant: a round ends when every node has answered or at its deadline, whichever is first; who is silent
then is `down`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import msgpack

from kvclient.errors import InvalidRequest, Status, Unsupported
from kvclient.protocol import KEY_BYTES_MAX, Kind, encode_error
from router.topology import Topology
from shared.hashing import hashed_part, partition_of

BODY_BYTES_MAX = KEY_BYTES_MAX + 256  # the longest command is `route` with the longest key
ROUNDS_MAX = 64  # operators and probes, not traffic
STATUS_SECONDS_MAX = 2.0  # a live store answers in milliseconds; a screen should not wait for a dead one

Respond = Callable[[bytes, int, int, int, bytes], None]  # client, kind, request id, status, body


class Command(NamedTuple):
    """A checked command: its name and, for `route`, the key."""

    name: str
    key: bytes


class _Round(NamedTuple):
    client: bytes
    request_id: int
    deadline: float
    waiting: set[int]
    figures: dict[int, dict[str, Any]]


def decode_command(body: bytes) -> Command:
    """The command in an ADMIN body; InvalidRequest or Unsupported says what is wrong with it."""
    if len(body) > BODY_BYTES_MAX:
        raise InvalidRequest("an admin command is short", limit=BODY_BYTES_MAX, size=len(body))
    try:
        fields = msgpack.unpackb(body, raw=False, max_array_len=8, max_map_len=0, max_ext_len=0)
    except Exception:  # noqa: BLE001 - msgpack raises many types on hostile bytes; all mean the same here
        raise InvalidRequest("an admin command is a MessagePack array") from None
    match fields:
        case ["status" | "ready" as name]:
            return Command(name, b"")
        case ["route", bytes(key)] if 0 < len(key) <= KEY_BYTES_MAX:
            return Command("route", key)
        case ["route", *_]:
            raise InvalidRequest(f"route takes one key of 1 to {KEY_BYTES_MAX} bytes")
        case ["status" | "ready" as name, *_]:
            raise InvalidRequest(f"{name} takes no arguments")
        case [str(name), *_]:
            raise Unsupported(f"unknown admin command {name[:40]!r}; known: status, route, ready")
    raise InvalidRequest("an admin command begins with its name")


def route(topology: Topology, key: bytes) -> bytes:
    """Where a key lives: the answer to `route`."""
    known = topology.map
    assert known is not None
    partition = partition_of(key, known.bits)
    replicas = known.replicas[partition]
    return _pack(
        {
            "partition": partition,
            "hashed_part": hashed_part(key),
            "epoch": known.epoch,
            "replicas": [{"id": node, "name": known.node(node).name} for node in replicas],
            "state": "up" if topology.reachable_leader(partition) else "down",
        }
    )


class StatusRounds:
    """The `status` requests that wait for stores.

    `questions` is the outbox: (node id, token) for STATUS messages.
    """

    def __init__(
        self, router: str, topology: Topology, figures: Callable[[], dict[str, object]], respond: Respond
    ) -> None:
        self.questions: list[tuple[int, int]] = []
        self._router = router
        self._topology = topology
        self._figures = figures
        self._respond = respond
        self._rounds: dict[int, _Round] = {}
        self._token = 0

    @property
    def pending(self) -> bool:
        """Whether any round has not ended yet."""
        return bool(self._rounds)

    def begin(self, client: bytes, request_id: int, now: float, deadline: float) -> None:
        """Ask every node that is up.

        The response follows when they have answered, at once if there is none.
        """
        if len(self._rounds) >= ROUNDS_MAX:
            body = encode_error("too many status requests at once", retry_after_ms=100)
            self._respond(client, Kind.ADMIN, request_id, Status.BUSY, body)
            return
        self._token += 1
        waiting = set(self._topology.queues)
        asked = _Round(client, request_id, min(deadline, now + STATUS_SECONDS_MAX), waiting, {})
        self._rounds[self._token] = asked
        self.questions.extend((node, self._token) for node in waiting)
        if not waiting:
            self._end(self._token)

    def on_reply(self, node: int, token: int, figures: dict[str, Any]) -> None:
        """A store's figures; a late or uninvited reply is ignored."""
        asked = self._rounds.get(token)
        if asked is None or node not in asked.waiting:
            return
        asked.waiting.discard(node)
        asked.figures[node] = figures
        if not asked.waiting:
            self._end(token)

    def expire(self, now: float) -> None:
        """Answer the rounds whose deadline has passed with what is known."""
        for token in [token for token, asked in self._rounds.items() if asked.deadline <= now]:
            self._end(token)

    def next_due(self) -> float:
        """When `expire` has to be called next."""
        return min((asked.deadline for asked in self._rounds.values()), default=inf)

    def _end(self, token: int) -> None:
        asked = self._rounds.pop(token)
        self._respond(asked.client, Kind.ADMIN, asked.request_id, Status.OK, _pack(self._answer(asked)))

    def _answer(self, asked: _Round) -> dict[str, Any]:
        known = self._topology.map
        assert known is not None
        held = Counter(node for replicas in known.replicas for node in replicas)
        nodes = []
        for node in known.nodes:
            figures = asked.figures.get(node.id)
            nodes.append(
                {
                    **(figures or {}),
                    "id": node.id,
                    "name": node.name,
                    "rpc": node.rpc,
                    "zone": node.zone,
                    "state": "down" if figures is None else node.state,
                    "partitions": held[node.id],
                }
            )
        return {
            "name": known.name,
            "id": known.cluster_id,
            "epoch": known.epoch,
            "router": self._router,
            "partitions": known.partition_count,
            "replicas": known.replication_factor,
            "nodes": nodes,
            "router_figures": self._figures(),
        }


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed
