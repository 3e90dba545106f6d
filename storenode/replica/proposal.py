"""One write on its way through the log: the only object made per write, gone when it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storenode.replica.sessions import Session


class Proposal:
    """The ops of one write, who waits for its results, and until when it may still be logged (monotonic
    seconds).
    """

    __slots__ = ("client_id", "count", "deadline", "ops", "routes", "sequence", "session")

    def __init__(
        self, route: tuple[bytes, int], client_id: int, sequence: int, ops: bytes, count: int, deadline: float
    ) -> None:
        self.routes = [route]
        self.client_id = client_id
        self.sequence = sequence
        self.ops = ops
        self.count = count
        self.deadline = deadline
        self.session: Session | None = None
