"""The bytes of writes that a node holds in memory between their arrival and their answer."""

from __future__ import annotations

from typing import Final

PROPOSAL_OVERHEAD: Final = (
    512  # a Proposal with its route, session slot and log entry; keeps empty ops from being free
)


class Budget:
    """A bounded sum, shared by all replicas of a node. One thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Reserves room for a write of `size` bytes; False if the budget is full. A write that finds it empty
        always fits.
        """
        if self.used and self.used + size > self.limit:
            return False
        self.used += size + PROPOSAL_OVERHEAD
        return True

    def give_back(self, size: int) -> None:
        """Ends what `take(size)` reserved."""
        self.used -= size + PROPOSAL_OVERHEAD
