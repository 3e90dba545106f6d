"""How a store becomes a member of a cluster that runs (docs/control.md section 7): it asks until the
controller has taken it in.

Owns what the answers mean. In a loop of its own, before anything else runs. Knows nothing of the data
directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgpack

from kvclient.errors import KVError, ProtocolError, Status
from kvclient.protocol import decode_error
from shared import frames, logs, messages, sockets
from shared.clustermap import ClusterMap
from shared.controlmessages import ControlCommand, ControlReply, ControlRequest, encode_control_request
from shared.hashing import xxh64
from shared.messages import ToPeer
from shared.reactor import Reactor
from storenode.asking import Inquiry

SAY_S: Final = 5.0
SAY_FIRST_S: Final = 1.0
TIMEOUT_MS: Final = 5000

FINAL: Final = (Status.CONDITION_FAILED, Status.INVALID_REQUEST)
"""What asking again would not change."""

_NO_ANSWER: Final = "no answer yet"

_log = logs.get("joining")


class Newcomer(NamedTuple):
    """What a store says of itself."""

    name: str
    rpc: str
    bus: str
    events: str
    zone: str
    weight: int
    incarnation: str


class Joined(NamedTuple):
    """It is a member: with this id, and a map that has it."""

    node: int
    map: ClusterMap


class Joining:
    """Asks until `reactor` stops: then `joined` or `refusal` says how it ended, neither if something else
    stopped the loop.
    """

    def __init__(
        self,
        reactor: Reactor,
        context: sockets.Context,
        newcomer: Newcomer,
        cluster_name: str,
        endpoints: Sequence[str],
    ) -> None:
        self.joined: Joined | None = None
        self.refusal: str | None = None
        self._reactor = reactor
        self._newcomer = newcomer
        self._cluster_name = cluster_name
        self._map: ClusterMap | None = None
        self._map_from = ""
        self._token = 0
        self._strangers: set[int] = set()
        """Who was said to lead, and was not in the map."""
        self._reasons = dict.fromkeys(endpoints, _NO_ANSWER)
        self._inquiry = Inquiry(reactor, context, self._on_answer)
        for endpoint in self._reasons:
            self._inquiry.ask(endpoint, messages.encode_map_request(0))
        reactor.call_later(SAY_FIRST_S, self._say)

    def close(self) -> None:
        """Ask no more."""
        self._inquiry.close()

    def _on_answer(self, endpoint: str, answer: ToPeer) -> None:
        if isinstance(answer, messages.MapReply):
            self._on_map(endpoint, answer.map)
        elif isinstance(answer, ControlReply):
            self._on_reply(endpoint, answer)
        elif isinstance(answer, messages.Fault):
            self._reasons[endpoint] = answer.message[:200]

    def _on_map(self, endpoint: str, encoded: bytes) -> None:
        try:
            there = ClusterMap.decode(encoded)
        except ProtocolError as error:
            self._reasons[endpoint] = error.message
            return
        if there.name != self._cluster_name:
            self._refuse(
                f"{endpoint} belongs to cluster {there.name}, the configuration names {self._cluster_name}: "
                "correct cluster.name or cluster.join, and start this store again"
            )
        elif self._map is not None and there.cluster_id != self._map.cluster_id:
            self._refuse(
                f"{self._map_from} and {endpoint} belong to two clusters named {there.name} (ids "
                f"{self._map.cluster_id} and {there.cluster_id}): take those of the other cluster out of "
                "cluster.join, and start this store again"
            )
        else:
            if self._map is None or there.epoch > self._map.epoch:
                self._map, self._map_from = there, endpoint
            self._reasons[endpoint] = "asked to let this store join"
            self._ask_to_join(endpoint, there)

    def _ask_to_join(self, endpoint: str, there: ClusterMap) -> None:
        self._token += 1
        cluster = xxh64(there.cluster_id.encode())
        arguments = msgpack.packb(self._newcomer._asdict())
        request = ControlRequest(self._token, cluster, TIMEOUT_MS, 0, ControlCommand.JOIN, arguments)
        self._inquiry.ask(endpoint, encode_control_request(request))

    def _on_reply(self, endpoint: str, reply: ControlReply) -> None:
        if reply.status == Status.OK:
            self._on_joined(endpoint, reply.body)
            return
        try:
            error = decode_error(reply.body)
        except KVError:
            error = {"message": f"status {reply.status} without a reason"}
        text = str(error["message"])[:300]
        if reply.status in FINAL:
            self._refuse(self._with_remedy(text))
            return
        self._reasons[endpoint] = text
        if reply.status == Status.NOT_LEADER and self._map is not None:
            self._follow(endpoint, error.get("leader", 0), self._map)

    def _follow(self, endpoint: str, leader: int, known: ClusterMap) -> None:
        """The store at `endpoint` says who leads the control partition."""
        found = next((node for node in known.nodes if node.id == leader), None)
        if found is None and leader and leader not in self._strangers:
            self._strangers.add(leader)  # once each: the map there need not be newer
            self._inquiry.ask(endpoint, messages.encode_map_request(0))
        elif found is not None and found.rpc not in self._reasons:
            self._reasons[found.rpc] = _NO_ANSWER
            self._ask_to_join(found.rpc, known)

    def _on_joined(self, endpoint: str, body: bytes) -> None:
        try:
            fields = frames.decode(body)
            joined = Joined(fields["node"], ClusterMap.decode(fields["map"]))
            mine = joined.map.node(joined.node)
        except (ProtocolError, KeyError, TypeError) as error:
            self._reasons[endpoint] = f"its answer was not understood: {error!r:.200}"
            return
        if joined.map.name != self._cluster_name or mine.name != self._newcomer.name:
            self._reasons[endpoint] = f"it let {mine.name} join {joined.map.name}, which was not asked"
            return
        self.joined = joined
        self._reactor.stop()

    def _refuse(self, text: str) -> None:
        self.refusal = text
        self._reactor.stop()

    def _with_remedy(self, text: str) -> str:
        """What the cluster said, and the commands that help."""
        lines = [f"the cluster {self._cluster_name} does not let this store join: {text}"]
        known = () if self._map is None else self._map.nodes
        name, rpc = self._newcomer.name, self._newcomer.rpc
        for node in known:
            if node.name == name:
                lines += [
                    f"If {name} (node {node.id}, {node.rpc}) is gone for good, or its disk is, remove it and "
                    "start this store again:",
                    f"  kvcli node remove {name} --force",
                    "If it is another store, give this one another node.name.",
                ]
            elif node.rpc == rpc:
                lines += [
                    f"{rpc} is the address of {node.name} (node {node.id}). If that one is gone for good:",
                    f"  kvcli node remove {node.name} --force",
                    "Otherwise give this store another listen.rpc or node.rpc.",
                ]
        return "\n".join(lines)

    def _say(self) -> None:
        _log.info("waiting_to_join", cluster=self._cluster_name, waits=self._reasons)
        self._reactor.call_later(SAY_S, self._say)
