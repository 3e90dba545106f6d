"""Durations, sizes, histograms: what is read and shown."""

from __future__ import annotations

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient.cli import units
from kvclient.cli.histogram import LatencyHistogram


@pytest.mark.parametrize(
    ("text", "size"), [("100", 100), ("64KiB", 65536), ("1.5MB", 1_500_000), ("2k", 2048), ("1 GiB", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1TB5", "x"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_size(text)


def test_durations_are_click_values() -> None:
    assert units.DURATION.convert("1.5m", None, None) == 90
    with pytest.raises(click.BadParameter, match="5s or 250ms"):
        units.DURATION.convert("soon", None, None)


def test_shown() -> None:
    assert [units.show_bytes(size) for size in (0, 1023, 1536, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 TiB",
    ]
    assert [units.show_seconds(s) for s in (0.85, 4.2, 221, 7500)] == ["850ms", "4.2s", "3m41s", "2h05m"]
    assert [units.show_latency(s) for s in (0.000085, 0.00152, 2.1)] == ["85 us", "1.52 ms", "2.10 s"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200), st.sampled_from([50, 95, 99, 99.9, 100]))
def test_percentiles_are_close(values: list[int], percent: float) -> None:
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    ordered = sorted(values)
    rank = max(0, -(-len(values) * percent // 100) - 1)
    exact = ordered[min(int(rank), len(values) - 1)]
    assert exact <= histogram.percentile(percent) <= exact * 1.032 + 1


def test_extremes_have_a_place() -> None:
    histogram = LatencyHistogram()
    assert histogram.percentile(50) == 0
    for value in (-5, 0, 1 << 60):
        histogram.record(value)
    assert histogram.count == 3
    assert histogram.percentile(1) == 0
