"""Which versions of what processes say to each other this software understands, and whether that fits what
another one says of itself (docs/protocol.md section 8).

Owns the list. Each format refuses by itself what it does not know; this tells it before anything is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kvclient.errors import ProtocolError
from shared.clustermap import FORMAT, OLD_FORMAT
from shared.messagefields import UINT16_MAX, VERSION, unsigned

Versions = Mapping[str, tuple[int, int]]
"""By name: the oldest that is understood, and the newest."""

SPOKEN: Final[Versions] = {
    "messages": (VERSION, VERSION),
    "map": (OLD_FORMAT, FORMAT),
    "router": (1, 1),  # the message ROUTER
}

NAMES_MAX: Final = 32


def decode(value: Any) -> Versions:
    """What another process says; ProtocolError if it is none. Names that this software does not know stay."""
    if type(value) is not dict or len(value) > NAMES_MAX:
        raise ProtocolError(f"versions are a map of at most {NAMES_MAX} names")
    found = {}
    for name, span in value.items():
        if type(name) is not str or type(span) is not tuple or len(span) != 2:
            raise ProtocolError("a version is a name with an array of the oldest and the newest")
        oldest, newest = (unsigned(number, UINT16_MAX, "a version") for number in span)
        found[name] = (oldest, newest)
    return found


def mismatch(theirs: Versions, mine: Versions = SPOKEN) -> str | None:
    """Why two processes do not understand each other, with both numbers; None if they do."""
    for name, (oldest, newest) in mine.items():
        there = theirs.get(name)
        if there is not None and (there[0] > newest or there[1] < oldest):
            return (
                f"{name}: the other side speaks {_shown(there)}, this side {_shown((oldest, newest))}: "
                "upgrade the older one; one version between them is understood, more are not"
            )
    return None


def _shown(span: tuple[int, int]) -> str:
    oldest, newest = span
    return f"version {newest}" if oldest == newest else f"versions {oldest} to {newest}"
