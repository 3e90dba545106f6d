"""Counters by index and power-of-two histograms."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.metrics import BUCKETS, Counters, Histogram, percentile

REQUESTS, ERRORS = range(2)


def test_counters_count_by_index_and_are_read_by_name() -> None:
    counters = Counters(("requests", "errors"))
    counters.values[REQUESTS] += 3
    counters.values[ERRORS] += 1
    assert counters.snapshot() == {"requests": 3, "errors": 1}


def test_a_snapshot_does_not_move_with_its_counters() -> None:
    counters = Counters(("requests",))
    histogram = Histogram()
    first, second = counters.snapshot(), histogram.snapshot()
    counters.values[REQUESTS] += 1
    histogram.observe(5)
    assert first == {"requests": 0}
    assert second == {"count": 0, "total_ns": 0, "buckets": [0] * BUCKETS}


def test_counter_names_must_differ() -> None:
    with pytest.raises(ValueError, match="must differ"):
        Counters(("a", "a"))


@pytest.mark.parametrize(
    ("nanoseconds", "bucket"),
    [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 2),
        (4, 3),
        (1023, 10),
        (1024, 11),
        (1 << 38, 39),
        (1 << 39, 40),
        (1 << 80, 40),
    ],
)
def test_a_duration_falls_into_the_bucket_of_its_bit_length(nanoseconds: int, bucket: int) -> None:
    histogram = Histogram()
    histogram.observe(nanoseconds)
    assert [index for index, count in enumerate(histogram.buckets) if count] == [bucket]
    assert (histogram.count, histogram.total_ns) == (1, nanoseconds)


def test_a_clock_that_went_back_counts_as_nothing_rather_than_raising() -> None:
    histogram = Histogram()
    histogram.observe(-7)
    assert (histogram.buckets[0], histogram.total_ns) == (1, 0)


def test_percentiles_of_nothing_are_zero() -> None:
    assert Histogram().percentile(99) == 0.0


@pytest.mark.parametrize("percent", [-0.1, 100.1])
def test_a_percentile_out_of_range_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        Histogram().percentile(percent)


def test_percentile_interpolates_inside_a_bucket() -> None:
    buckets = [0] * BUCKETS
    buckets[11] = 100  # 1024 .. 2047
    assert percentile(buckets, 50) == pytest.approx(1024 + 1023 / 2)
    assert percentile(buckets, 100) == 2047


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1 << 39), min_size=1, max_size=60), st.floats(0, 100))
def test_an_estimate_is_within_a_factor_of_two_of_the_exact_percentile(
    durations: list[int], percent: float
) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.observe(duration)
    rank = max(1, -int(-(percent / 100 * len(durations)) // 1))
    exact = sorted(durations)[rank - 1]
    estimate = histogram.percentile(percent)
    assert exact / 2 <= estimate <= exact * 2 or exact == estimate == 0
    assert histogram.count == len(durations)
    assert histogram.total_ns == sum(durations)
