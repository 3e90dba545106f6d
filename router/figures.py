"""What a router counts: one list of names, and the index constants that the hot paths use.

Names are for operators (`kvcli status`, later Prometheus) and stay what they are.
"""

from __future__ import annotations

import time

from kvclient.errors import Status
from shared.metrics import BUCKETS, Counters, Histogram

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


class Figures:
    """The counters of one router and the time its requests take, from arrival to answer."""

    __slots__ = ("_started", "_statuses", "counters", "latency")

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.counters = Counters(_NAMES)
        self.latency = Histogram()
        self._statuses = {int(status): 0 for status in Status}

    def observe(self, seconds: float, count: int = 1) -> None:
        """`count` requests took this long each."""
        nanoseconds = int(seconds * 1e9)
        self.latency.total_ns += nanoseconds * count
        self.latency.buckets[min(nanoseconds.bit_length(), BUCKETS - 1)] += count

    def count_defect(self) -> int:
        """The number of a new defect."""
        self.counters.values[DEFECTS] += 1
        return self.counters.values[DEFECTS]

    def count_status(self, status: int) -> None:
        """A request, or one part of a request, was answered with this error."""
        known = status if status in self._statuses else int(Status.INTERNAL)
        self._statuses[known] += 1

    def snapshot(self) -> dict[str, object]:
        """Everything by name: uptime, counters, errors by status, latency percentiles in microseconds."""
        percentiles = {
            f"latency_p{percent:g}_us": round(self.latency.percentile(percent) / 1000)
            for percent in (50, 99, 99.9)
        }
        errors = {
            f"errors_{Status(status).name.lower()}": count
            for status, count in self._statuses.items()
            if count
        }
        uptime = {"uptime_s": round(time.monotonic() - self._started, 3)}
        return {**uptime, **self.counters.snapshot(), **errors, **percentiles}


def worth_logging(count: int) -> bool:
    """Whether to log the `count`-th of what a peer can cause at will: the first ten, then powers of two."""
    return count <= 10 or count & (count - 1) == 0
