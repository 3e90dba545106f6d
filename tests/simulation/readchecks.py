"""Whether reads see enough, looked at in the moment in which a replica answers one.

Owns how far anybody has applied. A read that is not allowed to be stale is answered from no less than what
had been applied anywhere when it came to this store: all of that may have been answered to somebody before,
and whoever leads with a proof or a lease (docs/raft.md section 7) knows that it is committed.

Histories tell the same of the keys that were asked for, if somebody wrote one of them in that very moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvclient.errors import Status
from storenode.replica.replica import LEASE, Replica
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.store import SimulatedStore


class ReadChecks:
    """Of one world."""

    def __init__(self) -> None:
        self.violation: Violation | None = None
        """What was seen; the product's own handlers must not get it."""
        self._applied: dict[int, int] = {}

    def applied(self, group: int, index: int) -> None:
        """A replica has applied this."""
        if index > self._applied.get(group, 0):
            self._applied[group] = index

    def watch(self, store: SimulatedStore, replica: Replica) -> None:
        """Sees all reads of this replica."""
        group = replica.partition
        least: dict[tuple[bytes, int], int] = {}
        read, answer = replica.read, replica._answer

        def watched_read(
            route: tuple[bytes, int], ops: bytes, mode: int, deadline: float, now: float
        ) -> None:
            if mode <= LEASE:  # a message that comes twice is held to what there was before the first
                least.setdefault(route, self._applied.get(group, 0))
            read(route, ops, mode, deadline, now)

        def watched_answer(router: bytes, token: int, status: int, body: bytes) -> None:
            wanted, found = least.get((router, token), 0), replica.machine.position.index
            if status == Status.OK and found < wanted and store.speaks:
                self.violation = Violation(
                    f"{store.name} p{group} answers a read from {found}; {wanted} was applied before it came"
                )
            answer(router, token, status, body)

        replica.read = watched_read  # type: ignore[method-assign]
        replica._answer = watched_answer
