"""Asks stores one thing at a time on their rpc sockets: to host a partition, for their map, to carry out what
the controller orders.

Owns one DEALER for each question that is out. Must not know what follows from an answer. Loop thread.

A question that changes nothing when it is asked twice is asked until there is an answer or the time is over.
Others are asked `once`: sent again only while there is no link to send them by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvclient.errors import KVError, ProtocolError, Status
from kvclient.protocol import decode_error
from shared import messages, sockets
from shared.clock import Clock
from shared.config import ConfigError
from shared.controlmessages import ControlReply
from shared.groupmessages import GroupCommand, GroupReply, GroupRequest, encode_group_request
from shared.messages import Fault, MapReply
from shared.reactor import Reactor

ASK_AGAIN_S: Final = 0.2
"""A socket takes some milliseconds to connect, and the store answers after one write to its disk."""

Reply = GroupReply | ControlReply | MapReply | Fault

OnReply = Callable[[Reply | None], object]
"""Gets the answer; a Fault if the store did not understand, or its answer was none; None: nothing in time."""

Encode = Callable[[int], bytes]
"""The frame of a question that has this token."""


class StoreRequests:
    """Questions of one node."""

    def __init__(self, reactor: Reactor, context: sockets.Context, clock: Clock) -> None:
        self._reactor = reactor
        self._context = context
        self._clock = clock
        self._token = 0
        self._open: set[_Question] = set()

    def ask(
        self, endpoint: str, encode: Encode, deadline: float, done: OnReply, *, once: bool = False
    ) -> None:
        """Ask the store whose rpc socket is at `endpoint`, until `deadline` (monotonic)."""
        self._token += 1
        try:
            socket = sockets.bulk_dealer(self._context, endpoint)
        except ConfigError as error:  # maps do not look at what an endpoint is
            done(Fault(str(error)))
            return
        question = _Question(
            self._reactor,
            socket,
            self._token,
            encode(self._token),
            once,
            deadline,
            self._clock,
            self._ended(done),
        )
        self._open.add(question)
        question.ask()

    def _ended(self, done: OnReply) -> Callable[[_Question, Reply | None], None]:
        def ended(question: _Question, reply: Reply | None) -> None:
            self._open.discard(question)
            done(reply)

        return ended

    def close(self) -> None:
        """End all questions without an answer."""
        for question in list(self._open):
            question.close()
        self._open.clear()


class _Question:
    """One store is asked one thing."""

    def __init__(
        self,
        reactor: Reactor,
        socket: sockets.Socket,
        token: int,
        frame: bytes,
        once: bool,
        deadline: float,
        clock: Clock,
        ended: Callable[[_Question, Reply | None], None],
    ) -> None:
        self._reactor = reactor
        self._socket = socket
        self._token = token
        self._frame = frame
        self._once = once
        self._asked = False
        self._deadline = deadline
        self._clock = clock
        self._ended = ended
        self._closed = False
        reactor.add_reader(socket, self._on_frames)

    def ask(self) -> None:
        """Now, and again until there is an answer."""
        if self._closed:
            return
        left = self._deadline - self._clock.monotonic()
        if left <= 0:
            self._end(None)
            return
        if not (self._once and self._asked):
            self._asked |= sockets.send_or_drop(self._socket, (self._frame,)) is None
        self._reactor.call_later(min(ASK_AGAIN_S, left), self.ask)

    def _on_frames(self, batch: list[list[bytes]]) -> None:
        for frame, *_ in batch:
            try:
                answer = messages.decode_to_peer(frame)
            except ProtocolError as error:
                answer = Fault(error.message)
            if isinstance(answer, Fault) or (isinstance(answer, Reply) and answer.token == self._token):
                self._end(answer)

    def _end(self, reply: Reply | None) -> None:
        if not self._closed:
            self.close()
            self._ended(self, reply)

    def close(self) -> None:
        self._closed = True
        self._reactor.remove_reader(self._socket)
        self._socket.close(0)


def to_host(cluster: int, partition: int, node: int) -> Encode:
    """The question whether store `node` hosts the partition, or begins to (docs/raft.md section 9).
    `cluster`: XXH64 of the cluster id.
    """

    def encode(token: int) -> bytes:
        return encode_group_request(GroupRequest(token, cluster, partition, 0, 0, GroupCommand.HOST, node, 0))

    return encode


def refusal(reply: Reply | None) -> str | None:
    """Why a store did not do what it was asked; None if it did."""
    if reply is None:
        return "it did not answer in time"
    if isinstance(reply, Fault):
        return reply.message[:200]
    if isinstance(reply, MapReply) or reply.status == Status.OK:
        return None
    try:
        return str(decode_error(reply.body)["message"])
    except KVError:
        return f"it refused with status {reply.status} and gave no reason"
