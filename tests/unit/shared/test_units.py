"""Sizes, durations and endpoints: what is read, what is refused and with which words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.units import (
    Endpoint,
    format_duration,
    format_size,
    next_port,
    parse_duration,
    parse_size,
    split_endpoint,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("7B", 7),
        ("4KiB", 4096),
        ("64MiB", 64 << 20),
        ("64 MiB", 64 << 20),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("64MB", "write B, KiB, MiB"),
        ("64mib", "write B, KiB, MiB"),
        ("", "such as 64MiB"),
        ("-1", "such as 64MiB"),
        ("1.5GiB", "such as 64MiB"),
        ("9" * 16, "such as 64MiB"),
        ("\u0661MiB", "such as 64MiB"),
    ],
)
def test_what_is_no_size_is_refused_with_what_to_write(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_size(text)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**15 - 1) | st.integers(0, 1000).map(lambda n: n << 20))
def test_a_formatted_size_parses_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("5s", 5.0),
        ("5 s", 5.0),
        ("30min", 1800.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("0.1ms", 0.0001),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


def test_a_duration_longer_than_any_use_is_refused() -> None:
    assert parse_duration("10000d") == 864e6
    with pytest.raises(ValueError, match="over 10000d"):
        parse_duration("10001d")


@pytest.mark.parametrize("text", ["5", "5.5"])
def test_a_duration_without_a_unit_is_refused_with_the_unit_to_add(text: str) -> None:
    with pytest.raises(ValueError, match=rf"with its unit .* such as {text}s"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "s", "-5s", "1e3s", "5 minutes", "5m", "12:30"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


@settings(max_examples=200, deadline=None)
@given(st.decimals(0, 10_000, places=6), st.sampled_from(["ms", "s", "min", "h", "d"]))
def test_a_formatted_duration_parses_back(number: object, unit: str) -> None:
    seconds = parse_duration(f"{number}{unit}")
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "250ms"), (5.0, "5s"), (90.0, "90s"), (0.0, "0ms"), (7200.0, "2h")]
)
def test_durations_are_shown_in_the_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("tcp://127.0.0.1:7100", ("127.0.0.1", 7100)),
        ("tcp://store-1.example:7200", ("store-1.example", 7200)),
        ("tcp://[::1]:7100", ("::1", 7100)),
        ("tcp://*:*", ("*", 0)),
        ("tcp://127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_endpoints(endpoint: str, parts: tuple[str, int]) -> None:
    assert split_endpoint(endpoint) == parts


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "127.0.0.1:7100",
        "tcp://127.0.0.1",
        "tcp://:7100",
        "tcp://a:7100/x",
        "udp://a:1",
        "tcp://::1:7100",
        "tcp://a: 1",
    ],
)
def test_what_is_no_endpoint_is_refused_with_an_example(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"such as tcp://127\.0\.0\.1:7100"):
        split_endpoint(endpoint)


def test_a_port_past_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match=r"port 65536 of .* is over 65535"):
        split_endpoint("tcp://127.0.0.1:65536")
    with pytest.raises(ValueError, match="leaves no room"):
        next_port(Endpoint("tcp://127.0.0.1:65535"), 1)


def test_the_next_port_of_any_address() -> None:
    assert next_port(Endpoint("tcp://[::1]:7200"), 2) == "tcp://[::1]:7202"
    assert next_port(Endpoint("tcp://127.0.0.1:*"), 2) == "tcp://127.0.0.1:*"
