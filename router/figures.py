"""What a router counts: one list of names, and the index constants that the hot paths use.

Names are for operators (`kvcli status`, the monitor) and stay what they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kvclient.errors import Status
from shared.metrics import BUCKETS, Counters, Histogram, percentile

REQUESTS_OPS = 0
REQUESTS_ADMIN = 1
REQUESTS_PING = 2
REQUESTS_MAP = 3
REQUESTS_REFUSED = 4  # malformed, unsupported or over a limit
REQUESTS_BUSY = 5  # over the in-flight budget
PARTS_RETRIED = 6  # refused by a store in a way that may pass
PARTS_LOST = 7  # with a store when it went down
PARTS_UNSENT = 8  # the socket did not take them
PARTS_EXPIRED = 9
ANSWERS_STRAY = 10  # to an attempt that was given up
STORE_FRAMES_BAD = 11
RESPONSES_CLIENT_GONE = 12
RESPONSES_CLIENT_FULL = 13  # the client does not read its responses
DEFECTS = 14
PARTS_REDIRECTED = 15  # refused by a store that does not lead, and sent at once to the one that does

_NAMES = (
    "requests_ops",
    "requests_admin",
    "requests_ping",
    "requests_map",
    "requests_refused",
    "requests_busy",
    "parts_retried",
    "parts_lost",
    "parts_unsent",
    "parts_expired",
    "answers_stray",
    "store_frames_bad",
    "responses_client_gone",
    "responses_client_full",
    "defects",
    "parts_redirected",
)


OP_READ, OP_WRITE, OP_SCAN, OP_BARRIER, OP_ADMIN, OP_MAP, OP_PING, OP_UNKNOWN = range(8)
"""What a request asked for. False and True of `Split.writes` are OP_READ and OP_WRITE."""

OPS = ("read", "write", "scan", "barrier", "admin", "map", "ping", "unknown")
_TIMED = OPS[: OP_BARRIER + 1]


class Figures:
    """The counters of one router, and how its requests ended after how long, from arrival to answer."""

    __slots__ = ("_answered", "_durations", "_started", "_statuses", "counters", "ops", "process")

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.counters = Counters(_NAMES)
        self.ops = [0, 0]
        """Single ops in the op streams taken, by OP_READ and OP_WRITE of their stream; scans left out."""
        self._answered = [[0] * (max(Status) + 1) for _ in OPS]  # by op, then by status
        self.process: Callable[[], dict[str, object]] = dict
        """Figures of the process, where there is one."""
        self._durations = [Histogram() for _ in _TIMED]
        self._statuses = {int(status): 0 for status in Status}

    def observe(self, op: int, seconds: float, count: int = 1, status: int = 0) -> None:
        """`count` requests took this long each, and had this status at worst."""
        nanoseconds = int(seconds * 1e9)
        durations = self._durations[op]
        durations.total_ns += nanoseconds * count
        durations.buckets[min(nanoseconds.bit_length(), BUCKETS - 1)] += count
        self.count_answer(op, status, count)

    def observe_served(self, seconds: float, counts: list[int]) -> None:
        """So many requests, by OP_READ and OP_WRITE, took this long each and were served; sets them to 0."""
        for op in (OP_READ, OP_WRITE):
            if counts[op]:
                self.observe(op, seconds, counts[op])
                counts[op] = 0

    def count_answer(self, op: int, status: int, count: int = 1) -> None:
        """A request of that op was answered; statuses of stores may be any number."""
        self._answered[op][self._known(status)] += count

    def _known(self, status: int) -> int:
        return status if status in self._statuses else int(Status.INTERNAL)

    def count_defect(self) -> int:
        """The number of a new defect."""
        self.counters.values[DEFECTS] += 1
        return self.counters.values[DEFECTS]

    def count_status(self, status: int) -> None:
        """A request, or one part of a request, was answered with this error."""
        self._statuses[self._known(status)] += 1

    def snapshot(self) -> dict[str, object]:
        """Numbers by name: uptime, counters, errors by status, latency percentiles in microseconds."""
        together = [sum(counts) for counts in zip(*(one.buckets for one in self._durations), strict=True)]
        percentiles = {
            f"latency_p{percent:g}_us": round(percentile(together, percent) / 1000)
            for percent in (50, 99, 99.9)
        }
        errors = {
            f"errors_{Status(status).name.lower()}": count
            for status, count in self._statuses.items()
            if count
        }
        uptime = {"uptime_s": round(time.monotonic() - self._started, 3)}
        return {**uptime, **self.counters.snapshot(), **errors, **percentiles}

    def everything(self) -> dict[str, object]:
        """The same, and `requests`: op -> status -> how many; `durations`: op -> `count`, `total_ns`,
        `buckets`; `ops`; the process's own.
        """
        requests = {
            op: {status.name.lower(): counts[status] for status in Status if counts[status]}
            for op, counts in zip(OPS, self._answered, strict=True)
            if any(counts)
        }
        durations = {op: histogram.snapshot() for op, histogram in zip(_TIMED, self._durations, strict=True)}
        ops = {"read": self.ops[OP_READ], "write": self.ops[OP_WRITE]}
        return {**self.snapshot(), "requests": requests, "durations": durations, "ops": ops, **self.process()}


def worth_logging(count: int) -> bool:
    """Whether to log the `count`-th of what a peer can cause at will: the first ten, then powers of two."""
    return count <= 10 or count & (count - 1) == 0
