"""Asks another store to host a partition, before its group takes it in (docs/raft.md section 9).

Owns one DEALER for each question that is out. The question changes nothing when it is asked twice, so it is
asked until there is an answer or the time is over. Loop thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvclient.errors import KVError, ProtocolError
from kvclient.protocol import decode_error
from shared import messages, sockets
from shared.clock import Clock
from shared.groupmessages import GroupCommand, GroupReply, GroupRequest, encode_group_request
from shared.reactor import Reactor

ASK_AGAIN_S: Final = 0.2
"""A socket takes some milliseconds to connect, and the store answers after one write to its disk."""

OnHosted = Callable[[str | None], object]
"""Gets None, or why the store does not host it."""


class HostRequests:
    """Questions of one node."""

    def __init__(self, reactor: Reactor, context: sockets.Context, clock: Clock, cluster: int) -> None:
        """`cluster`: XXH64 of the cluster id."""
        self._reactor = reactor
        self._context = context
        self._clock = clock
        self._cluster = cluster
        self._token = 0
        self._open: set[_Question] = set()

    def ask(self, node: int, endpoint: str, partition: int, deadline: float, done: OnHosted) -> None:
        """Ask the store of `node`, whose rpc socket is at `endpoint`, until `deadline` (monotonic)."""
        self._token += 1
        request = GroupRequest(self._token, self._cluster, partition, 0, 0, GroupCommand.HOST, node, 0)
        socket = sockets.bulk_dealer(self._context, endpoint)
        question = _Question(self._reactor, socket, request, deadline, self._clock, self._ended(done))
        self._open.add(question)
        question.ask()

    def _ended(self, done: OnHosted) -> Callable[[_Question, str | None], None]:
        def ended(question: _Question, reason: str | None) -> None:
            self._open.discard(question)
            done(reason)

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
        request: GroupRequest,
        deadline: float,
        clock: Clock,
        ended: Callable[[_Question, str | None], None],
    ) -> None:
        self._reactor = reactor
        self._socket = socket
        self._token = request.token
        self._frame = encode_group_request(request)
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
            self._end("it did not answer in time")
            return
        sockets.send_or_drop(self._socket, (self._frame,))
        self._reactor.call_later(min(ASK_AGAIN_S, left), self.ask)

    def _on_frames(self, batch: list[list[bytes]]) -> None:
        for frame, *_ in batch:
            try:
                answer = messages.decode_to_peer(frame)
            except ProtocolError as error:
                answer = messages.Fault(error.message)
            if isinstance(answer, messages.Fault):
                self._end(answer.message[:200])
            elif isinstance(answer, GroupReply) and answer.token == self._token:
                self._end(_reason(answer) if answer.status else None)

    def _end(self, reason: str | None) -> None:
        if not self._closed:
            self.close()
            self._ended(self, reason)

    def close(self) -> None:
        self._closed = True
        self._reactor.remove_reader(self._socket)
        self._socket.close(0)


def _reason(answer: GroupReply) -> str:
    try:
        return str(decode_error(answer.body)["message"])
    except KVError:
        return f"it refused with status {answer.status} and gave no reason"
