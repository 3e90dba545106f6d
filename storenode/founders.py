"""A founder with an empty directory asks the other founders whether it was there before (docs/control.md
section 7).

Owns what their answers mean, and what this store answers meanwhile on its rpc socket: the others ask too, and
wait for it. In a loop of its own, before the directory is claimed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgpack

from kvclient.errors import KVError, ProtocolError, Status
from kvclient.protocol import decode_error
from shared import frames, logs, messages, sockets
from shared.clustermap import ClusterMap, Node
from shared.controlmessages import (
    ControlCommand,
    ControlReply,
    ControlRequest,
    encode_control_reply,
    encode_control_request,
)
from shared.hashing import xxh64
from shared.messages import ToPeer
from shared.reactor import Reactor
from storenode import registry
from storenode.asking import Inquiry

GRACE_S: Final = 0.5
"""What the others have to say is waited for so long when a majority has answered: one of them may know what
those with empty directories do not.
"""

SAY_S: Final = 5.0
SAY_FIRST_S: Final = 1.0

_log = logs.get("founders")


class Before(NamedTuple):
    """Who says that this node had another disk, and which."""

    witness: Node
    incarnation: str


class Ballot:
    """What the founders have said; `node` is the one that asks."""

    def __init__(self, first: ClusterMap, node: int) -> None:
        self.others = {one.rpc: one for one in first.nodes if one.id != node}
        self.before: Before | None = None
        self.reasons: dict[str, str] = {one.name: "no answer yet" for one in self.others.values()}
        """By name, of who has not answered."""
        self.needed = len(first.nodes) // 2
        """Answers that make a majority with this node."""

    @property
    def enough(self) -> bool:
        """Whether a majority has answered."""
        return len(self.others) - len(self.reasons) >= self.needed

    @property
    def complete(self) -> bool:
        """Whether all have."""
        return not self.reasons

    def hear(self, endpoint: str, answer: ToPeer) -> None:
        """Something came from there."""
        founder = self.others[endpoint]
        if isinstance(answer, messages.Fault):
            self._refused(founder, answer.message[:200])
        elif not isinstance(answer, ControlReply):
            self._refused(founder, "it answered something else")
        elif answer.status != Status.OK:
            self._refused(founder, _reason(answer))
        else:
            self._count(founder, answer.body)

    def _count(self, founder: Node, body: bytes) -> None:
        try:
            fields = frames.decode(body)
            node, incarnation = fields["node"], fields["incarnation"]
        except (ProtocolError, KeyError, TypeError):
            self._refused(founder, "its answer was not understood")
            return
        if node != founder.id:
            self._refused(founder, f"at {founder.rpc} node {node!r:.20} answers, not node {founder.id}")
        elif incarnation:
            self.before = Before(founder, str(incarnation)[:64])
        else:
            self.reasons.pop(founder.name, None)

    def _refused(self, founder: Node, reason: str) -> None:
        if founder.name in self.reasons:
            self.reasons[founder.name] = reason


class Founding:
    """Asks, and answers, until `reactor` stops: then `ballot.before` says that the node was there before, or
    `granted` that it was not; neither if something else stopped the loop.
    """

    def __init__(
        self, reactor: Reactor, context: sockets.Context, socket: sockets.Socket, first: ClusterMap, node: int
    ) -> None:
        self.ballot = Ballot(first, node)
        self.granted = False
        self._reactor = reactor
        self._socket = socket
        self._first = first
        self._node = node
        self._cluster = xxh64(first.cluster_id.encode())
        self._grace = False
        self._inquiry = Inquiry(reactor, context, self._on_answer)
        arguments = msgpack.packb({"node": node})
        for number, endpoint in enumerate(self.ballot.others):
            request = ControlRequest(number, self._cluster, 0, 0, ControlCommand.KNOWN, arguments)
            self._inquiry.ask(endpoint, encode_control_request(request))
        reactor.add_reader(socket, self._on_questions)
        reactor.call_later(SAY_FIRST_S, self._say)

    def close(self) -> None:
        """Ask and answer no more; the rpc socket stays."""
        self._inquiry.close()
        self._reactor.remove_reader(self._socket)

    def _on_answer(self, endpoint: str, answer: ToPeer) -> None:
        self.ballot.hear(endpoint, answer)
        if self.ballot.before is not None:
            self._reactor.stop()
        elif self.ballot.complete:
            self._grant()
        elif self.ballot.enough and not self._grace:
            self._grace = True
            self._reactor.call_later(GRACE_S, self._grant)

    def _grant(self) -> None:
        if self.ballot.before is None:
            self.granted = True
            self._reactor.stop()

    def _say(self) -> None:
        waits = ", ".join(f"{name}: {reason}" for name, reason in self.ballot.reasons.items())
        _log.info("waiting_for_founders", needed=self.ballot.needed, of=len(self.ballot.others), waits=waits)
        self._reactor.call_later(SAY_S, self._say)

    def _on_questions(self, batch: list[list[bytes]]) -> None:
        for peer, *rest in batch:
            try:
                frame = self._answer(rest)
            except ProtocolError as error:
                frame = messages.encode_fault(error.message)
            if frame is not None:
                sockets.send_or_drop(self._socket, (peer, frame))

    def _answer(self, rest: list[bytes]) -> bytes | None:
        if len(rest) != 1:
            raise ProtocolError("a message is one frame, this one has more")
        request = messages.decode_to_store(rest[0])
        if isinstance(request, messages.Fault):
            return None
        if isinstance(request, messages.MapRequest):
            return messages.encode_map_reply(request.token, self._first.encode())
        if isinstance(request, ControlRequest) and request.command is ControlCommand.KNOWN:
            status, body = registry.answer(self._cluster, self._node, {}, request.cluster, request.arguments)
            return encode_control_reply(request.token, status, body)
        raise ProtocolError(
            f"this store is new and waits for {self.ballot.needed} of the other founders: "
            f"{', '.join(self.ballot.reasons)} did not answer yet"
        )


def _reason(answer: ControlReply) -> str:
    try:
        return str(decode_error(answer.body)["message"])[:200]
    except KVError:
        return f"it refused with status {answer.status} and gave no reason"
