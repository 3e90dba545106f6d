"""What is under way: every part of every unanswered request, and when it next needs attention.

A *part* is the slice of one request that goes to one partition; most requests are one part. Owns tokens,
deadlines, the in-flight bytes, the back-off heap and the parts that wait for a node. Must not know messages,
nodes' states or clients' answers.

Invariants:
- A live part has exactly one token, and `parts` maps that token to it. Each attempt to send has its own
  token, so the answer to an attempt that was given up finds nothing.
- Deadlines have no timer each: `expire` looks at all parts, but only when `deadline_floor`, a lower bound of
  the earliest deadline, has passed. In good times that is about once per deadline length, whatever the rate
  of requests.
"""

from __future__ import annotations

import heapq
from math import inf
from typing import TYPE_CHECKING

from shared.messages import Item

if TYPE_CHECKING:
    from router.scatter import Gather

# What a part has for a node id, or a token, while it is with nobody; real ones start at 1.
NOT_SENT = 0

# Seconds between two looks at all parts, plus this per part: stuck parts with staggered deadlines cost at
# most about 5 % of the loop, and are answered at most 10 ms + 1 us per part late.
SWEEP_SECONDS = 0.010
SWEEP_SECONDS_PER_PART = 0.000_001


class Refusal:
    """Why a part, or all of a request, was not served: what the client will read."""

    __slots__ = ("leader", "message", "retry_after_ms", "status")

    def __init__(self, status: int, message: str, retry_after_ms: int | None = None, leader: int = 0) -> None:
        self.status = status
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.leader = leader  # the node that leads, says the store that does not; 0 = it knows nobody


class Part:
    """One slice of a request.

    With `gather` None it is the whole request, and its results are the response.
    """

    __slots__ = (
        "arrived",
        "attempts",
        "client",
        "deadline",
        "gather",
        "hops",
        "index",
        "item",
        "lost",
        "node",
        "op",
        "refusal",
        "request_id",
        "size",
        "token",
    )

    def __init__(
        self,
        token: int,
        client: bytes,
        request_id: int,
        arrived: float,
        deadline: float,
        size: int,
        item: Item,
        op: int,
        node: int = NOT_SENT,
        gather: Gather | None = None,
        index: int = 0,
    ) -> None:
        self.token = token
        self.client = client
        self.request_id = request_id
        self.arrived = arrived
        self.deadline = deadline
        self.size = size  # bytes charged to the in-flight budget; 0 when the gather is charged
        self.item = item  # as last sent; what has not been sent has no token and no timeout in it
        self.op = op  # of the request, as figures count it
        self.node = node  # the store that has this attempt, or NOT_SENT
        self.gather = gather
        self.index = index  # position among the gather's parts
        self.attempts = 0  # pauses so far
        self.hops = 0  # attempts since the last pause that went where a store pointed to
        self.lost = False  # a store went down with an attempt, or lost sight of it: it may have been applied
        self.refusal: Refusal | None = None  # the store's last "no, but try again"


class Flight:
    """All parts under way. `parts` and `bytes_held` are also read and written by the core's straight line."""

    __slots__ = ("_parked", "_retries", "_sweep_not_before", "bytes_held", "deadline_floor", "parts", "token")

    def __init__(self) -> None:
        self.parts: dict[int, Part] = {}
        self.bytes_held = 0
        self.token = 0
        self.deadline_floor = inf
        self._sweep_not_before = -inf
        self._parked: dict[int, None] = {}
        self._retries: list[tuple[float, int]] = []

    def track(self, part: Part) -> None:
        """Give the part a fresh token; it is with nobody now."""
        self.token += 1
        part.token = self.token
        part.node = NOT_SENT
        self.parts[self.token] = part
        if part.deadline < self.deadline_floor:
            self.deadline_floor = part.deadline

    def park(self, part: Part) -> None:
        """A tracked part waits until something changes: a node comes up, a new map."""
        self._parked[part.token] = None

    def take_parked(self) -> list[Part]:
        """All parts that wait, in the order they came; they are not parked any more."""
        parked, self._parked = self._parked, {}
        return [self.parts[token] for token in parked]

    def retry_at(self, part: Part, when: float) -> None:
        """A tracked part is due again at `when`."""
        heapq.heappush(self._retries, (when, part.token))

    def due_retries(self, now: float) -> list[Part]:
        """Parts whose back-off has passed; those that ended meanwhile are skipped."""
        due = []
        while self._retries and self._retries[0][0] <= now:
            part = self.parts.get(heapq.heappop(self._retries)[1])
            if part is not None:
                due.append(part)
        return due

    def take_from(self, node: int) -> list[Part]:
        """Stop tracking the parts that `node` has, and return them."""
        return [self._forget(token) for token in [t for t, part in self.parts.items() if part.node == node]]

    def is_with(self, node: int) -> bool:
        """Whether the node has a part that it has not answered."""
        return any(part.node == node for part in self.parts.values())

    def expire(self, now: float) -> list[Part]:
        """Stop tracking the parts whose deadline has passed, and return them."""
        if now < self.next_expiry():
            return []
        expired = [self._forget(token) for token in [t for t, p in self.parts.items() if p.deadline <= now]]
        self.deadline_floor = min((part.deadline for part in self.parts.values()), default=inf)
        self._sweep_not_before = now + SWEEP_SECONDS + SWEEP_SECONDS_PER_PART * len(self.parts)
        return expired

    def next_expiry(self) -> float:
        """When `expire` has to be called next."""
        return max(self.deadline_floor, self._sweep_not_before)

    def next_due(self) -> float:
        """When `expire` or `due_retries` has to be called next; infinity when nothing is under way."""
        expiry = self.next_expiry()
        return min(expiry, self._retries[0][0]) if self._retries else expiry

    def _forget(self, token: int) -> Part:
        self._parked.pop(token, None)
        return self.parts.pop(token)
