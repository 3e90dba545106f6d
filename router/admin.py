"""The operators' commands: `status`, `route`, `ready`, `healthy`, and those that `router.groupcommands`,
`router.controlcommands` and `router.backupcommands` carry out (docs/protocol.md section 6).

Owns their arguments and answers, and the rounds of questions that they put to the stores and the controller.
Must not know sockets or the way of ordinary requests. `ready` refuses when a partition has no leader that
answers; otherwise a barrier through every partition is the proof, which the core runs as any other scattered
request.

Invariant: a round ends when every node (and the controller, if it is asked) has answered or at its deadline,
whichever is first; who is silent then is `down`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import Any, NamedTuple

import attrs
import msgpack

from kvclient.errors import InvalidRequest, Status, Unsupported
from kvclient.health import ranges
from kvclient.protocol import KEY_BYTES_MAX, Kind, encode_error
from router import backupcommands, controlcommands, groupcommands, health
from router.errands import NOBODY, Asker, Respond, Then
from router.topology import Topology
from shared import groups
from shared.controlview import NO_VIEW, Figures, View, read_view, state
from shared.hashing import hashed_part, partition_of

BODY_BYTES_MAX = KEY_BYTES_MAX + 256  # `route` with the longest key; `control` has a few texts
ROUNDS_MAX = 64  # operators and probes, not traffic
STATUS_SECONDS_MAX = 2.0  # a live store answers in milliseconds; a screen should not wait for a dead one
CONTROL_SECONDS_MAX = 1.0  # nor long for an election of the control partition

AskControl = Callable[[float, Then, float], None]  # deadline, what follows, now


class Command(NamedTuple):
    """A checked command: its name and, for `route`, the key."""

    name: str
    key: bytes


@attrs.define
class _Round:
    deadline: float
    waiting: set[int]  # nodes, and NOBODY for the controller, whoever that is
    then: Callable[[_Round, float], None]  # what follows, and when it ended
    figures: dict[int, dict[str, Any]] = attrs.field(factory=dict)
    view: View = NO_VIEW


AnyCommand = Command | groupcommands.Command | controlcommands.Command | backupcommands.Command


def decode_command(body: bytes) -> AnyCommand:
    """The command in an ADMIN body; InvalidRequest or Unsupported says what is wrong with it."""
    if len(body) > BODY_BYTES_MAX:
        raise InvalidRequest("an admin command is short", limit=BODY_BYTES_MAX, size=len(body))
    try:
        fields = msgpack.unpackb(body, raw=False, max_array_len=8, max_map_len=0, max_ext_len=0)
    except Exception:  # noqa: BLE001 - msgpack raises many types on hostile bytes; all mean the same here
        raise InvalidRequest("an admin command is a MessagePack array") from None
    match fields:
        case ["status" | "ready" | "healthy" | "figures" as name]:
            return Command(name, b"")
        case ["route", bytes(key)] if 0 < len(key) <= KEY_BYTES_MAX:
            return Command("route", key)
        case ["route", *_]:
            raise InvalidRequest(f"route takes one key of 1 to {KEY_BYTES_MAX} bytes")
        case ["status" | "ready" | "healthy" | "figures" as name, *_]:
            raise InvalidRequest(f"{name} takes no arguments")
        case ["group", *_]:
            return groupcommands.decode_group(fields)
        case ["control", *_]:
            return controlcommands.decode_control(fields)
        case ["backup", *_]:
            return backupcommands.decode_backup(fields)
        case [str(name), *_]:
            known = "status, route, ready, healthy, figures, group, control, backup"
            raise Unsupported(f"unknown admin command {name[:40]!r}; known: {known}")
    raise InvalidRequest("an admin command begins with its name")


class StatusRounds:
    """The commands that wait for stores.

    `questions` is the outbox: (node id, token) for STATUS messages.
    """

    def __init__(
        self,
        router: str,
        topology: Topology,
        ask_control: AskControl,
        figures: Callable[[], dict[str, object]],
        respond: Respond,
    ) -> None:
        self.questions: list[tuple[int, int]] = []
        self._router = router
        self._topology = topology
        self._ask_control = ask_control
        self._figures = figures
        self._respond = respond
        self._rounds: dict[int, _Round] = {}
        self._token = 0

    @property
    def pending(self) -> bool:
        """Whether any round has not ended yet."""
        return bool(self._rounds)

    def status(self, asker: Asker, now: float) -> None:
        """Every node that is up is asked, and the controller; the answer says what they said."""
        self._ask_all(asker, now, partial(self._end_status, asker))

    def healthy(self, asker: Asker, now: float) -> None:
        """The same questions; the answer is whether anything is degraded."""
        self._ask_all(asker, now, partial(self._end_healthy, asker))

    def route(self, asker: Asker, key: bytes, now: float) -> None:
        """Where a key lives: the replicas of its partition are asked who leads."""
        known = self._topology.map
        assert known is not None
        partition = partition_of(key, known.bits)
        leader = self._topology.leaders[partition]  # may be none of the map's replicas
        asked = [node for node in {*known.replicas[partition], leader} if node in self._topology.queues]
        self._ask(asker, asked, now, asker.deadline, partial(self._end_route, asker, key))

    def ready(self, asker: Asker, now: float, proceed: Callable[[float], None]) -> None:
        """Goes on with `proceed` unless the stores know of a partition that nobody leads.

        Half of the time is kept for what follows.
        """
        half = (now + asker.deadline) / 2
        then = partial(self._end_ready, asker, proceed)
        self._ask(asker, self._topology.queues, now, half, then)

    def on_reply(self, node: int, token: int, figures: dict[str, Any], now: float) -> None:
        """A store's figures; a late or uninvited reply is ignored."""
        asked = self._rounds.get(token)
        if asked is None or node not in asked.waiting:
            return
        asked.figures[node] = figures
        self._said(token, asked, node, now)

    def _on_control(self, token: int, status: int, body: bytes, now: float) -> None:
        asked = self._rounds.get(token)
        if asked is not None:
            asked.view = read_view(status, body)
            self._said(token, asked, NOBODY, now)

    def _said(self, token: int, asked: _Round, node: int, now: float) -> None:
        asked.waiting.discard(node)
        if not asked.waiting:
            self._end(token, now)

    def expire(self, now: float) -> None:
        """End the rounds whose deadline has passed with what is known."""
        for token in [token for token, asked in self._rounds.items() if asked.deadline <= now]:
            self._end(token, now)

    def next_due(self) -> float:
        """When `expire` has to be called next."""
        return min((asked.deadline for asked in self._rounds.values()), default=inf)

    # -- rounds

    def _ask_all(self, asker: Asker, now: float, then: Callable[[_Round, float], None]) -> None:
        token = self._ask(asker, [*self._topology.queues, NOBODY], now, asker.deadline, then)
        if token is not None:
            deadline = min(self._rounds[token].deadline, now + CONTROL_SECONDS_MAX)
            self._ask_control(deadline, partial(self._on_control, token), now)

    def _ask(
        self,
        asker: Asker,
        nodes: Iterable[int],
        now: float,
        deadline: float,
        then: Callable[[_Round, float], None],
    ) -> int | None:
        """`then` follows when these nodes have answered, at once if there are none. The round's token, if
        there may be one more.
        """
        if len(self._rounds) >= ROUNDS_MAX:
            body = encode_error("too many status requests at once", retry_after_ms=100)
            self._give(asker, Status.BUSY, body)
            return None
        self._token += 1
        waiting = set(nodes)
        self._rounds[self._token] = _Round(min(deadline, now + STATUS_SECONDS_MAX), waiting, then)
        self.questions.extend((node, self._token) for node in waiting if node != NOBODY)
        if not waiting:
            self._end(self._token, now)
        return self._token

    def _end(self, token: int, now: float) -> None:
        asked = self._rounds.pop(token)
        asked.then(asked, now)

    def _give(self, asker: Asker, status: int, body: bytes) -> None:
        self._respond(asker.client, Kind.ADMIN, asker.request_id, status, body)

    # -- answers

    def _end_status(self, asker: Asker, heard: _Round, now: float) -> None:
        known, figures, view = self._topology.map, heard.figures, heard.view
        assert known is not None
        answer: dict[str, Any] = {
            "name": known.name,
            "id": known.cluster_id,
            "epoch": known.epoch,
            "router": self._router,
            "partitions": known.partition_count,
            "replicas": known.replication_factor,
            "nodes": self._nodes(figures, view),
            "router_figures": self._figures(),
            "controller": view.controller,
            "control": view.said.get("control", known.control),
            "control_text": view.text,
            **{name: view.said.get(name) for name in ("moves", "paused", "settings")},
        }
        views = groups.views(figures)
        if views:
            answer["groups"] = table = groups.table(known, views)
            _add_totals(answer["nodes"], table)
        self._give(asker, Status.OK, _pack(answer))

    def _end_healthy(self, asker: Asker, heard: _Round, now: float) -> None:
        known = self._topology.map
        assert known is not None
        problems = health.problems(known, heard.figures, heard.view)
        if problems:
            self._give(asker, Status.UNAVAILABLE, encode_error(f"not healthy: {'; '.join(problems)}"))
            return
        answer = {
            "router": self._router,
            "epoch": known.epoch,
            "partitions": known.partition_count,
            "nodes": len(known.nodes),
            "controller": heard.view.controller,
        }
        self._give(asker, Status.OK, _pack(answer))

    def _nodes(self, figures: Figures, view: View) -> list[dict[str, Any]]:
        known = self._topology.map
        assert known is not None
        held = Counter(node for replicas in known.replicas for node in replicas)
        return [
            {name: value for name, value in figures.get(node.id, {}).items() if name != "groups"}
            | {
                "id": node.id,
                "name": node.name,
                "rpc": node.rpc,
                "zone": node.zone,
                "state": state(node, figures, view),
                "reachable": node.id in figures,
                "partitions": held[node.id],
            }
            | view.figures(node.id)
            for node in known.nodes
        ]

    def _end_route(self, asker: Asker, key: bytes, heard: _Round, now: float) -> None:
        known = self._topology.map
        assert known is not None
        partition = partition_of(key, known.bits)
        views = groups.views(heard.figures, partition)
        row = groups.row(known, partition, views) if views else None
        leader = row["leader"] if row else self._topology.reachable_leader(partition)
        answer: dict[str, Any] = {
            "partition": partition,
            "hashed_part": hashed_part(key),
            "epoch": known.epoch,
            "replicas": [
                {"id": node, "name": known.node(node).name, "leader": node == leader}
                for node in (groups.members(row) if row else known.replicas[partition])
            ],
            "state": "up" if leader in self._topology.queues else "down",
        }
        if row:
            answer |= {"term": row["term"], "commit": row["commit"]}
            for replica, figure in zip(answer["replicas"], row["replicas"], strict=True):
                replica.update(figure)
        self._give(asker, Status.OK, _pack(answer))

    def _end_ready(self, asker: Asker, proceed: Callable[[float], None], heard: _Round, now: float) -> None:
        known, views = self._topology.map, groups.views(heard.figures)
        assert known is not None
        missing = health.unled(groups.table(known, views)) if views else {}
        if not missing:
            proceed(now)
            return
        reasons = "; ".join(
            f"{self._topology.describe(leader)}, which leads partition {ranges(partitions)}, does not answer"
            if leader
            else f"partition {ranges(partitions)} has no leader"
            for leader, partitions in sorted(missing.items())
        )
        self._give(asker, Status.UNAVAILABLE, encode_error(f"not ready: {reasons}"))


def _add_totals(nodes: list[dict[str, Any]], table: list[dict[str, Any]]) -> None:
    """How many partitions a node has and leads, and the largest lag of its replicas; None if it is silent."""
    led = Counter(row["leader"] for row in table)
    held = Counter(node for row in table for node in groups.members(row))
    lags: dict[int, int] = {}
    for row in table:
        for replica in row["replicas"]:
            if replica["up"] and replica["lag"] is not None:
                lags[replica["id"]] = max(lags.get(replica["id"], 0), replica["lag"])
    for node in nodes:
        node["partitions"] = held[node["id"]]
        node["leads"] = led[node["id"]] if node["reachable"] else None
        node["lag"] = lags.get(node["id"])


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed
