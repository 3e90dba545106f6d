"""One write on its way through the log: the only object made per write, gone when it is answered."""

from __future__ import annotations


class Proposal:
    """The ops of one write, who waits for its results, and until when it may still be proposed (monotonic
    seconds).
    """

    __slots__ = ("acked_below", "client_id", "deadline", "flags", "ops", "routes", "sequence")

    def __init__(
        self,
        route: tuple[bytes, int],
        client_id: int,
        sequence: int,
        acked_below: int,
        flags: int,
        ops: bytes,
        deadline: float,
    ) -> None:
        self.routes = [route]
        self.client_id = client_id
        self.sequence = sequence
        self.acked_below = acked_below
        self.flags = flags
        self.ops = ops
        self.deadline = deadline
