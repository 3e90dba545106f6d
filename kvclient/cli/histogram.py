"""A histogram of durations with a relative error below 3.2 %, in bounded memory: 32 linear steps in every
power of two.
"""

from __future__ import annotations

_STEP_BITS = 5
_STEPS = 1 << _STEP_BITS
# Up to 2^46 ns, nineteen hours; longer ones count as that.
_LARGEST = (1 << 46) - 1


class LatencyHistogram:
    """Counts durations in nanoseconds."""

    def __init__(self) -> None:
        self._counts = [0] * ((46 - _STEP_BITS + 1) * _STEPS)
        self.count = 0
        self.largest = 0

    def record(self, nanoseconds: int, times: int = 1) -> None:
        """Count a duration."""
        value = min(max(nanoseconds, 0), _LARGEST)
        shift = max(value.bit_length() - _STEP_BITS - 1, 0)
        # Below 64 every value has its own step; above, the leading six bits choose it.
        self._counts[shift * _STEPS + (value >> shift)] += times
        self.count += times
        self.largest = max(self.largest, nanoseconds)

    def percentile(self, percent: float) -> int:
        """Nanoseconds below or at which `percent` of the durations are (upper end of the step); 0 without
        any.
        """
        wanted = self.count * percent / 100
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_upper_end(index), self.largest)
        return self.largest


def _upper_end(index: int) -> int:
    shift = max(index // _STEPS - 1, 0)
    return ((index - shift * _STEPS + 1) << shift) - 1
