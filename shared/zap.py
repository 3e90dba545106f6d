"""Who gets in: the thread that answers libzmq's questions about keys (RFC 27).

Owns that thread and its socket. Must not know certificates: `judge` says who is who. Every question is
answered, whatever happens, or the handshake would hang; if the thread could not run, nobody would get in, as
domains are enforced.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import zmq
from zmq.utils import z85

from shared import logs
from shared.security import DOMAINS, Guard

ENDPOINT: Final = "inproc://zeromq.zap.01"
REFUSALS_LOGGED: Final = 10
"""A second; all are counted. Whoever knocks without a key must not fill the disk."""

_VERSION: Final = b"1.0"
_OK: Final = b"200"
_AGAIN: Final = b"300"
"""Ends the handshake when its time is over; the other side tries again."""
_NO: Final = b"400"
"""The other side hears that its key is refused, and gives up."""
_START_S: Final = 5.0

_log = logs.get("zap")


class ZapThread:
    """Answers for one context, until that is terminated. `refused` counts up."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], guard: Guard) -> None:
        self.refused = 0
        self._guard = guard
        self._logged = 0
        self._second = 0
        # A shadow: `destroy` of the context itself closes sockets only of its own thread.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(context.underlying)
        self._ready = threading.Event()
        threading.Thread(target=self._run, name="zap", daemon=True).start()
        if not self._ready.wait(_START_S):
            raise RuntimeError("the thread that judges keys did not start")

    def _run(self) -> None:
        with self._context.socket(zmq.REP) as socket:
            socket.set(zmq.LINGER, 0)
            socket.bind(ENDPOINT)
            self._ready.set()
            while True:
                try:
                    request = socket.recv_multipart()
                    socket.send_multipart(self._answer(request))
                except zmq.ContextTerminated:
                    return

    def _answer(self, request: list[bytes]) -> list[bytes]:
        token = request[1] if len(request) > 1 else b""
        try:
            status, text, name = self._judge(request)
        except Exception:  # noqa: BLE001 - fail closed, and go on
            _log.exception("judging_failed")
            status, text, name = _AGAIN, "the other side cannot judge keys at the moment", ""
        return [_VERSION, token, status, text.encode(), name.encode(), b""]

    def _judge(self, request: list[bytes]) -> tuple[bytes, str, str]:
        _, _, domain_bytes, address, _, mechanism, *credentials = request
        domain = domain_bytes.decode()
        if mechanism != b"CURVE" or len(credentials) != 1:
            self._note_refusal(domain, address, "", "it has no key")
            return _NO, "a key is needed", ""
        name, refusal = self._guard.judge(domain, z85.encode(credentials[0]).decode())
        if refusal:
            self._note_refusal(domain, address, name, refusal)
            return _NO if DOMAINS[domain].tells else _AGAIN, refusal, ""
        return _OK, "", name

    def _note_refusal(self, domain: str, address: bytes, name: str, reason: str) -> None:
        self.refused += 1
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._logged = second, 0
        self._logged += 1
        if self._logged <= REFUSALS_LOGGED:
            _log.warning(
                "peer_refused",
                socket=domain,
                address=address.decode(errors="replace"),
                name=name,
                reason=reason,
                count=self.refused,
            )
