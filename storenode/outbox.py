"""Answers on their way to the routers: one BATCH_REPLY per router and turn.

Owns what was answered in this turn and how often each status was. Knows no socket: frames leave through
`send`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvclient.errors import Status
from shared import frames, messages

REPLY_BYTES_MAX: Final = 4 << 20
"""Answers are sent before the turn ends when they reach this: memory stays bounded, and a frame does not hold
up heartbeats for long.
"""

ANSWER_OVERHEAD: Final = REPLY_BYTES_MAX // frames.ITEMS_MAX
"""What an answer counts beside its body, so that a reply never has more answers than a router decodes."""


class Outbox:
    """Collects answers, sends them when told or when there are many bytes of them. One thread."""

    def __init__(self, epoch: int, send: Callable[[bytes, bytes], None]) -> None:
        self.epoch = epoch
        """Of the newest map: what routers are told."""
        self._send = send
        self._boxes: dict[bytes, list[tuple[int, int, bytes]]] = {}
        self._bytes = 0
        self._counts = [0] * (max(Status) + 1)

    def add(self, router: bytes, token: int, status: int, body: bytes) -> None:
        """Answers one item of a batch of `router`."""
        self._counts[status] += 1
        box = self._boxes.get(router)
        if box is None:
            box = self._boxes[router] = []
        box.append((token, status, body))
        self._bytes += len(body) + ANSWER_OVERHEAD
        if self._bytes >= REPLY_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Sends all that waits."""
        if not self._boxes:
            return
        boxes, self._boxes, self._bytes = self._boxes, {}, 0
        for router, answers in boxes.items():
            self._send(router, messages.encode_batch_reply(self.epoch, answers))

    def answered(self) -> dict[str, int]:
        """How many items were answered with each status so far."""
        return {status.name.lower(): self._counts[status] for status in Status if self._counts[status]}
