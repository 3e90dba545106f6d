"""The same kind of question to many stores at once, before this one serves anything.

Owns a DEALER for each endpoint. A question is repeated until it is answered or another takes its place, with
growing pauses; questions that change nothing when they are asked twice, therefore. Loop thread. Knows nothing
of what is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from kvclient.errors import ProtocolError
from shared import messages, sockets
from shared.messages import ToPeer
from shared.reactor import Reactor

PAUSE_S: Final = 0.05
"""After the first attempt: by then a socket is connected to whoever listens."""
PAUSE_MAX_S: Final = 1.0
GROWTH: Final = 1.3

OnAnswer = Callable[[str, ToPeer], object]
"""Gets an endpoint and what came from there; a frame that is no message is a Fault."""


class Inquiry:
    """Questions under way. `on_answer` may ask and `close`."""

    def __init__(self, reactor: Reactor, context: sockets.Context, on_answer: OnAnswer) -> None:
        self._reactor = reactor
        self._context = context
        self._on_answer = on_answer
        self._sockets: dict[str, sockets.Socket] = {}
        self._frames: dict[str, bytes] = {}
        self._pause = PAUSE_S
        self._closed = False
        reactor.call_later(PAUSE_S, self._repeat)

    @property
    def endpoints(self) -> list[str]:
        """Whom anything was asked, in order."""
        return list(self._sockets)

    def ask(self, endpoint: str, frame: bytes) -> None:
        """Have `frame` answered by the store there; in the place of what was asked there before."""
        if self._closed:
            return
        if endpoint not in self._sockets:
            socket = sockets.bulk_dealer(self._context, endpoint, eager=True)
            self._sockets[endpoint] = socket
            self._reactor.add_reader(socket, lambda batch: self._on_frames(endpoint, batch))
            self._pause = PAUSE_S
        self._frames[endpoint] = frame
        sockets.send_or_drop(self._sockets[endpoint], (frame,))

    def stop(self, endpoint: str) -> None:
        """Ask there no more; answers that are on their way still come."""
        self._frames.pop(endpoint, None)

    def close(self) -> None:
        """Ask nobody anything any more."""
        self._closed = True
        for socket in self._sockets.values():
            self._reactor.remove_reader(socket)
            socket.close(0)
        self._sockets.clear()
        self._frames.clear()

    def _repeat(self) -> None:
        if self._closed:
            return
        for endpoint, frame in self._frames.items():
            sockets.send_or_drop(self._sockets[endpoint], (frame,))
        self._pause = min(self._pause * GROWTH, PAUSE_MAX_S)
        self._reactor.call_later(self._pause * random.uniform(0.8, 1.2), self._repeat)

    def _on_frames(self, endpoint: str, batch: list[list[bytes]]) -> None:
        for frame, *_ in batch:
            if self._closed:
                return
            try:
                answer = messages.decode_to_peer(frame)
            except ProtocolError as error:
                answer = messages.Fault(error.message)
            self._on_answer(endpoint, answer)
