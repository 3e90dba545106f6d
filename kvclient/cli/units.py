"""Durations, sizes and counts as people write and read them.

Owns the reading of `5s` and `64KiB` on the command line and the printing of figures. Knows nothing of
commands.
"""

from __future__ import annotations

import re
from typing import Any

import click

from kvclient.errors import InvalidRequest
from kvclient.url import parse_duration

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|kb|mb|gb|kib|mib|gib|k|m|g|)", re.IGNORECASE)
_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_BYTES |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes in `100`, `64KiB`, `1.5MB`. ValueError says what is accepted."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write 100, 64KiB or 1MB")
    return int(float(match[1]) * _BYTES[match[2].lower()])


class DurationType(click.ParamType[float]):
    """Click type: seconds as float."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return parse_duration(value, (param and param.name) or "duration")
        except InvalidRequest as error:
            self.fail(error.message, param, ctx)


class SizeType(click.ParamType[int]):
    """Click type: bytes as int."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = DurationType()
SIZE = SizeType()


def show_bytes(count: float) -> str:
    """`1.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def show_seconds(seconds: float) -> str:
    """`850ms`, `4.2s`, `3m41s`, `2h05m`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def show_latency(seconds: float) -> str:
    """`85 us`, `1.52 ms`, `2.10 s`."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds:.2f} s"
