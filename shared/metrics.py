"""Figures that cost next to nothing to count: plain lists of ints, by index.

One writer thread; no locks and no names on the hot path.

Counters only grow. Histogram buckets are powers of two of nanoseconds, fixed for all processes, so that the
buckets of many processes can be added up.
"""

from __future__ import annotations

from collections.abc import Sequence

# Bucket n counts durations with n significant bits, [2^(n-1), 2^n) ns. 40 bits are 18 minutes: longer than
# any deadline in use.
BUCKETS = 41
_LAST = BUCKETS - 1


class Counters:
    """Named counters, addressed by index: `counters.values[REQUESTS] += 1`, REQUESTS a plain int constant."""

    __slots__ = ("names", "values")

    def __init__(self, names: Sequence[str]) -> None:
        if len(set(names)) != len(names):
            raise ValueError("counter names must differ")
        self.names = tuple(names)
        self.values = [0] * len(self.names)

    def snapshot(self) -> dict[str, int]:
        """Name -> count now."""
        return dict(zip(self.names, self.values, strict=True))


class Histogram:
    """How long something took, in power-of-two buckets of nanoseconds."""

    __slots__ = ("buckets", "total_ns")

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS
        self.total_ns = 0

    def observe(self, nanoseconds: int) -> None:
        """Count one duration; a negative one (a clock that went back) counts as 0."""
        if nanoseconds < 0:
            nanoseconds = 0
        self.total_ns += nanoseconds
        bits = nanoseconds.bit_length()
        self.buckets[bits if bits < _LAST else _LAST] += 1

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.buckets)

    def percentile(self, percent: float) -> float:
        """The estimated duration (ns) that `percent` of all stay within; 0.0 when nothing was counted."""
        return percentile(self.buckets, percent)

    def snapshot(self) -> dict[str, int | list[int]]:
        """`count`, `total_ns` and `buckets`, detached from this object."""
        return {"count": self.count, "total_ns": self.total_ns, "buckets": self.buckets.copy()}


def percentile(buckets: Sequence[int], percent: float) -> float:
    """Estimate a percentile (0..100) in ns from power-of-two buckets.

    Interpolates inside the bucket, so the answer is in the right bucket: at most a factor of two from the
    exact one.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentile is between 0 and 100, not {percent}")
    count = sum(buckets)
    if not count:
        return 0.0
    rank = percent / 100 * count
    below = 0
    for bits, inside in enumerate(buckets):
        if inside and below + inside >= rank:
            low, high = _bounds(bits)
            return low + (high - low) * (rank - below) / inside
        below += inside
    raise AssertionError("the ranks of all buckets add up to the count")


def _bounds(bits: int) -> tuple[int, int]:
    return (0, 0) if bits == 0 else (1 << (bits - 1), (1 << bits) - 1)
