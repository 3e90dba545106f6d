"""What goes back to clients: the outbox, and the words of refusals. Must not know how requests are served."""

from __future__ import annotations

from kvclient.errors import KVError, Status
from kvclient.protocol import Kind, encode_error, encode_response
from router.figures import OP_ADMIN, OP_MAP, OP_PING, OP_UNKNOWN, Figures, worth_logging
from shared import logs

_OPS = {int(Kind.ADMIN): OP_ADMIN, int(Kind.MAP): OP_MAP, int(Kind.PING): OP_PING}

_log = logs.get("router")


class Responses:
    """The responses of this turn. `outbox` is [(client, frame)]; the straight line appends to it as well."""

    __slots__ = ("_figures", "outbox")

    def __init__(self, figures: Figures) -> None:
        self.outbox: list[tuple[bytes, bytes]] = []
        self._figures = figures

    def give(self, client: bytes, kind: int, request_id: int, status: int, body: bytes) -> None:
        """One response, counted."""
        self._figures.count_answer(_OPS.get(kind, OP_UNKNOWN), status)
        self.finish(client, kind, request_id, status, body)

    def finish(self, client: bytes, kind: int, request_id: int, status: int, body: bytes) -> None:
        """The response of a request that `Figures.observe` has counted."""
        if status != Status.OK:
            self._figures.count_status(status)
        self.outbox.append((client, encode_response(kind, request_id, status, body)))

    def refuse(
        self,
        client: bytes,
        kind: int,
        request_id: int,
        status: int,
        message: str,
        retry_after_ms: int | None = None,
    ) -> None:
        """The request as a whole was not served."""
        body = encode_error(message, retry_after_ms=retry_after_ms)
        self.give(client, kind, request_id, status, body)

    def refuse_for(self, client: bytes, kind: int, request_id: int, status: int, error: KVError) -> None:
        """The request as a whole was refused with `error`: its message, limit, size and index."""
        body = encode_error(error.message, limit=error.limit, size=error.size, index=error.index)
        self.give(client, kind, request_id, status, body)

    def defect(self, client: bytes, kind: int, request_id: int) -> None:
        """Answer INTERNAL for the exception being handled; log it under the number the client is told."""
        number = self._figures.count_defect()
        if worth_logging(number):
            _log.exception("defect", number=number)
        message = f"a defect in the router, number {number}; its log has the details"
        self.refuse(client, kind, request_id, Status.INTERNAL, message)
