"""Requests that spread over partitions: what goes to each, and how the answers become one.

Owns the gathers, one per such request. Must not know nodes, deadlines or retries: a gather hears, part by
part, either results or a refusal that is final, and says when the response is complete.

Invariants:
- Each part reports exactly once, and none after the response was complete (`remaining` is 0; a scan fails
  with its first refusal).
- A gather never waits for anything but its parts, so it ends when their deadline does.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

from kvclient.errors import Status
from kvclient.health import ranges
from kvclient.protocol import (
    SCAN_COUNT,
    SCAN_LIMIT_MAX,
    VALUE_BYTES_MAX_CONFIGURABLE,
    decode_results,
    encode_error,
    encode_scan,
    pack,
)
from router.figures import OP_BARRIER, OP_SCAN
from router.flight import Part, Refusal
from shared.opstream import Limits, Split, inspect, merge_scans, repeat_error, scan_fields

# Up to this many entries each partition is asked for the whole limit: a second round trip would cost more
# than the surplus.
WHOLE_LIMIT_MAX = 32

_ANY = Limits(VALUE_BYTES_MAX_CONFIGURABLE)  # for op streams that have passed the checks already


class Response(NamedTuple):
    """Status and body of the response to a client."""

    status: int
    body: bytes


class Gather:
    """Waits for the parts of one request.

    Subclasses say what results and refusals mean, and what the whole is.
    """

    __slots__ = ("arrived", "client", "kind", "op", "remaining", "request_id", "results", "size", "worst")

    def __init__(
        self, client: bytes, kind: int, request_id: int, arrived: float, size: int, parts: int, op: int
    ) -> None:
        self.client = client
        self.kind = kind
        self.request_id = request_id
        self.arrived = arrived
        self.size = size  # bytes charged to the in-flight budget: the request, and results held
        self.op = op  # as figures count it
        self.worst = int(Status.OK)  # status of any part that was refused
        self.remaining = parts  # 0 when the response has been given
        self.results: list[bytes] = [b""] * parts

    def rest(self, part: Part, results: bytes) -> bytes | None:
        """The op stream that the part's partition is still to be asked; None: these are its last results."""
        return None

    def accept(self, part: Part, results: bytes) -> Response | None:
        """The part was served. The response, if that completes it; ProtocolError if the results make none."""
        self.results[part.index] = results
        self.remaining -= 1
        return None if self.remaining else self.whole()

    def refuse(self, part: Part, refusal: Refusal) -> Response | None:
        """The part will not be served. The response, if that completes it."""
        raise NotImplementedError

    def whole(self) -> Response:
        """The response once all parts have reported."""
        raise NotImplementedError


class OpsGather(Gather):
    """An op stream of several partitions: each op gets its part's result, or its part's refusal."""

    __slots__ = ("split",)

    def __init__(
        self, client: bytes, kind: int, request_id: int, arrived: float, size: int, split: Split
    ) -> None:
        super().__init__(client, kind, request_id, arrived, size, len(split.parts), split.writes)
        self.split = split

    def refuse(self, part: Part, refusal: Refusal) -> Response | None:
        return self.accept(part, refusal_results(part, refusal))

    def whole(self) -> Response:
        return Response(Status.OK, self.split.merge(self.results))


class ScanGather(Gather):
    """One page of a range over all partitions.

    All or nothing: a page with a hole would look like missing keys.
    """

    __slots__ = ("flags", "limit")

    def __init__(
        self, client: bytes, kind: int, request_id: int, arrived: float, size: int, parts: int, scan: bytes
    ) -> None:
        super().__init__(client, kind, request_id, arrived, size, parts, OP_SCAN)
        _, _, self.limit, self.flags = scan_fields(scan)

    def refuse(self, part: Part, refusal: Refusal) -> Response | None:
        self.remaining = 0
        self.results = []
        return Response(Status.OK, refusal_results(part, refusal))

    def whole(self) -> Response:
        return Response(Status.OK, merge_scans(self.results, self.limit, self.flags))


class CountGather(ScanGather):
    """The number of keys of a range: every partition is asked until it has seen its whole range."""

    __slots__ = ("counted",)

    def __init__(
        self, client: bytes, kind: int, request_id: int, arrived: float, size: int, parts: int, scan: bytes
    ) -> None:
        super().__init__(client, kind, request_id, arrived, size, parts, scan)
        self.counted = 0  # by answers that were not their partition's last

    def rest(self, part: Part, results: bytes) -> bytes | None:
        match decode_results(results):
            case [[0, int(count), _, bytes(resume)]]:
                _, stop, limit, flags = scan_fields(part.item.ops)
                self.counted += count
                return encode_scan(resume, stop, limit, flags)
        return None

    def whole(self) -> Response:
        [result] = decode_results(merge_scans(self.results, self.limit, self.flags))
        if result[0] == Status.OK:
            result[1] += self.counted
        return Response(Status.OK, pack(result))


class BarrierGather(Gather):
    """An empty write through every partition: OK, or which partitions did not take it and why."""

    __slots__ = ("body_when_ok", "refusals")

    def __init__(
        self,
        client: bytes,
        kind: int,
        request_id: int,
        arrived: float,
        size: int,
        parts: int,
        body_when_ok: bytes,
    ) -> None:
        super().__init__(client, kind, request_id, arrived, size, parts, OP_BARRIER)
        self.body_when_ok = body_when_ok
        self.refusals: list[tuple[int, str]] = []

    def refuse(self, part: Part, refusal: Refusal) -> Response | None:
        self.refusals.append((part.item.partition, refusal.message))
        return self.accept(part, b"")

    def whole(self) -> Response:
        if not self.refusals:
            return Response(Status.OK, self.body_when_ok)
        missing = ranges(partition for partition, _ in self.refusals)
        return Response(
            Status.UNAVAILABLE,
            encode_error(f"not ready: no write in partition {missing}: {self._reasons()}"),
        )

    def _reasons(self) -> str:
        """The distinct reasons, bounded.

        Thousands of partitions fail for the few reasons that a few nodes have.
        """
        distinct = list(dict.fromkeys(reason for _, reason in self.refusals))
        shown = "; ".join(distinct[:3])
        return shown if len(distinct) <= 3 else f"{shown}; and {len(distinct) - 3} more"


def partition_scan(scan: bytes, partitions: int) -> bytes:
    """The SCAN op that each partition gets: the same range, and its share of a large limit.

    Keys are spread by a hash, so a partition's share of the first `limit` keys is about limit / partitions,
    and rarely over four standard deviations more. One that has more says `resume`; the page is then shorter,
    never wrong.
    """
    start, stop, limit, flags = scan_fields(scan)
    if flags & SCAN_COUNT:
        return encode_scan(start, stop, SCAN_LIMIT_MAX, SCAN_COUNT)
    if limit <= WHOLE_LIMIT_MAX:
        return scan
    share = limit // partitions + 4 * (isqrt(limit // partitions) + 1) + 8
    return encode_scan(start, stop, min(limit, share), flags)


def refusal_results(part: Part, refusal: Refusal) -> bytes:
    """Results for the ops of a part that failed as a whole."""
    count = inspect(part.item.ops, _ANY).count
    return repeat_error(refusal.status, refusal.message, refusal.retry_after_ms, count)


def is_write(part: Part) -> bool:
    """Whether sending the part twice could matter."""
    return inspect(part.item.ops, _ANY).writes
