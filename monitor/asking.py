"""Questions to one endpoint, again and again: a DEALER that is made afresh when nothing comes back. Must not
know what is asked, nor what an answer means. Loop thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shared import logs, sockets
from shared.config import ConfigError
from shared.reactor import Reactor

UNANSWERED_MAX: Final = 3
"""Questions in a row: then the link may be one that libzmq has given up for good, and a new one is made."""

_log = logs.get("asking")

OnAnswer = Callable[[bytes], object]


class Asker:
    """Of one endpoint. `on_answer` gets each frame that comes back; messages of more frames are none."""

    def __init__(
        self, reactor: Reactor, context: sockets.Context, endpoint: str, on_answer: OnAnswer
    ) -> None:
        self._reactor = reactor
        self._context = context
        self._endpoint = endpoint
        self._on_answer = on_answer
        self._socket: sockets.Socket | None = None
        self._unanswered = 0

    def ask(self, frame: bytes) -> None:
        """Now, if there is a link; never later."""
        if self._unanswered >= UNANSWERED_MAX:
            self.close()
        if self._socket is None:
            self._open()
        if self._socket is not None:
            self._unanswered += 1
            sockets.send_or_drop(self._socket, (frame,))

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._reactor.remove_reader(self._socket)
            self._socket.close(0)
            self._socket = None

    def _open(self) -> None:
        self._unanswered = 0
        try:
            self._socket = sockets.bulk_dealer(self._context, self._endpoint)
        except ConfigError as error:  # maps do not look at what an endpoint is
            _log.warning("endpoint_refused", endpoint=self._endpoint, reason=str(error))
            return
        self._reactor.add_reader(self._socket, self._on_frames)

    def _on_frames(self, batch: list[list[bytes]]) -> None:
        self._unanswered = 0
        for frames in batch:
            if len(frames) == 1:
                self._on_answer(frames[0])
