"""One write on its way through the log: the only object made per write, gone when it is answered. And which
writes share an entry.
"""

from __future__ import annotations

from typing import Final

ENTRY_BYTES_MAX: Final = 1 << 20
"""Writes are gathered into one entry up to this; a larger one is an entry of its own. An append of one entry
is one message, and heartbeats wait behind it.
"""


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


def entries_of(proposals: list[Proposal]) -> list[list[Proposal]]:
    """The proposals in order, cut where an entry would become too large."""
    if sum(len(proposal.ops) for proposal in proposals) <= ENTRY_BYTES_MAX:
        return [proposals]
    entries: list[list[Proposal]] = [[]]
    size = 0
    for proposal in proposals:
        size += len(proposal.ops)
        if size > ENTRY_BYTES_MAX and entries[-1]:
            entries.append([])
            size = len(proposal.ops)
        entries[-1].append(proposal)
    return entries
