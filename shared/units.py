"""Values with units, as people write them: `64MiB`, `250ms`, `tcp://127.0.0.1:7100`.

Owns the text forms; must not know where a text came from. Each parser raises ValueError with a text that
says what to write instead, and each formatter gives a text that parses back to the same value.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NewType

Size = NewType("Size", int)
"""Bytes."""
Duration = NewType("Duration", float)
"""Seconds."""
Endpoint = NewType("Endpoint", str)
"""`tcp://ADDRESS:PORT`."""

PORT_MAX = 65535

_SIZES = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
_DURATIONS = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "min": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
_LONGEST = 10_000 * _DURATIONS["d"]

# Numbers are kept short so that a typo cannot become a number no machine has.
_SIZE = re.compile(r"([0-9]{1,15}) ?([A-Za-z]*)")
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,15})?) ?([A-Za-z]*)")
_ENDPOINT = re.compile(r"tcp://(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):([0-9]{1,5}|\*)")


def parse_size(text: str) -> Size:
    """`64MiB` -> 67108864; a number without a unit is bytes."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a size such as 64MiB, got {text!r:.60}")
    number, unit = match.groups()
    if unit and unit not in _SIZES:
        raise ValueError(f"{unit!r:.20} is no unit of size: write B, KiB, MiB, GiB or TiB")
    return Size(int(number) * _SIZES[unit or "B"])


def format_size(size: int) -> str:
    """The shortest exact form: `64MiB`, `1000B`."""
    for unit, scale in _SIZES.items():
        if size >= scale and size % scale == 0:
            return f"{size // scale}{unit}"
    return f"{size}B"


def parse_duration(text: str) -> Duration:
    """`250ms` -> 0.25. The unit is required: nobody should have to guess between seconds and milliseconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a duration such as 250ms or 5s, got {text!r:.60}")
    number, unit = match.groups()
    if unit not in _DURATIONS:
        raise ValueError(
            f"expected a duration with its unit (ms, s, min, h or d) such as {number}s, got {text!r:.60}"
        )
    seconds = Decimal(number) * _DURATIONS[unit]
    if seconds > _LONGEST:
        raise ValueError(f"{text} is over 10000d, the longest duration there is")
    return Duration(float(seconds))


def format_duration(seconds: float) -> str:
    """The largest unit that gives a whole number, otherwise milliseconds: `30min`, `250ms`, `0.5ms`."""
    exact = Decimal(repr(seconds))
    for unit, scale in _DURATIONS.items():
        if exact and exact % scale == 0:
            return f"{(exact / scale).normalize():f}{unit}"
    return f"{(exact * 1000).normalize():f}ms"


def next_port(endpoint: Endpoint, offset: int) -> Endpoint:
    """The same address, `offset` ports on; "any port" stays that. ValueError past the last port."""
    port = split_endpoint(endpoint)[1]
    if port == 0:
        return endpoint
    if port + offset > PORT_MAX:
        raise ValueError(f"{endpoint} leaves no room for the {offset} ports after it")
    return Endpoint(f"{endpoint.rpartition(':')[0]}:{port + offset}")


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """`tcp://127.0.0.1:7100` -> ("127.0.0.1", 7100). Port `*` is 0: any free one."""
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        raise ValueError(f"expected an endpoint such as tcp://127.0.0.1:7100, got {endpoint!r:.80}")
    host, port_text = match.groups()
    port = 0 if port_text == "*" else int(port_text)
    if port > PORT_MAX:
        raise ValueError(f"port {port} of {endpoint} is over {PORT_MAX}")
    return host.strip("[]"), port
