"""Numbers and times as the page writes them. Pure; what is not known is a dash, never a zero."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

UNKNOWN: Final = "\N{EN DASH}"
_LAST_MS: Final = 253_402_300_799_000
"""The end of the year 9999, beyond which there are no dates."""


def count(value: float | None) -> str:
    """`1,234`, `12.3`, `0.4`; from 100,000 on `123k`, `1.23M`, `1.23G`."""
    if value is None:
        return UNKNOWN
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.{_digits(value / limit)}f}{unit}"
    if value >= 100_000:
        return f"{value / 1000:.0f}k"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def milliseconds(value: float | None) -> str:
    """`0.42 ms`, `12.3 ms`, `1.20 s`."""
    if value is None:
        return UNKNOWN
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.{_digits(value)}f} ms"


def size(value: float | None) -> str:
    """Bytes in powers of 1024: `812 B`, `1.50 MiB`."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.{_digits(value)}f} {unit}"
        value /= 1024
    return f"{value:,.{_digits(value)}f} TiB"


def share(part: float | None) -> str:
    """0.123 is `12 %`."""
    return UNKNOWN if part is None else f"{part * 100:.0f} %"


def duration(seconds: float | None) -> str:
    """The two largest units: `8 s`, `4 min`, `2 h 10 min`, `12 d 3 h`."""
    if seconds is None:
        return UNKNOWN
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def clock(at_ms: int, now_ms: int | None = None) -> str:
    """The time of day in UTC, with the date before it unless it is the one of `now_ms`."""
    then = _utc(at_ms)
    known = now_ms is None or _utc(now_ms).date() == then.date()
    return f"{then:%H:%M:%S}" if known else f"{then:%Y-%m-%d %H:%M:%S}"


def iso(at_ms: int) -> str:
    """As `<time>` wants it."""
    return f"{_utc(at_ms):%Y-%m-%dT%H:%M:%SZ}"


def plural(number: int, noun: str) -> str:
    """`1 store`, `2 stores`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _digits(value: float) -> int:
    """Digits behind the point that make about three in all."""
    return 0 if value >= 100 else 1 if value >= 10 else 2


def _utc(at_ms: int) -> datetime:
    return datetime.fromtimestamp(min(max(at_ms, 0), _LAST_MS) / 1000, UTC)
