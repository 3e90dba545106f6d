"""A store's figures as they are published (docs/monitor.md section 1): their bytes, and nothing of what they
mean. Decoders check the heading; each figure is for its reader to check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from kvclient.errors import ProtocolError
from shared import frames
from shared.messagefields import UINT16_MAX, UINT64_MAX, arity, pack, unsigned

FORMAT: Final = 1

FIGURES_BYTES_MAX: Final = 2 << 20
"""Three times the figures of a store that holds 4,096 partitions."""


class StoreFigures(NamedTuple):
    """`cluster`: XXH64 of the cluster id; `figures` by name, as the store gave them."""

    cluster: int
    node: int
    figures: dict[str, Any]


def encode(cluster: int, node: int, figures: Mapping[str, Any]) -> bytes:
    """What comes behind the topic."""
    return pack((FORMAT, cluster, node, figures))


def decode(payload: bytes) -> StoreFigures:
    """ProtocolError for anything else."""
    if len(payload) > FIGURES_BYTES_MAX:
        raise ProtocolError(f"figures have at most {FIGURES_BYTES_MAX:,} bytes")
    fields = frames.decode(payload)
    if type(fields) is not tuple or not fields or fields[0] != FORMAT:
        raise ProtocolError(f"figures are an array that begins with their format, {FORMAT}")
    arity(fields, 4, "figures")
    figures = fields[3]
    if type(figures) is not dict or not set(map(type, figures)) <= {str}:
        raise ProtocolError("figures are a map with names as keys")
    cluster, node = unsigned(fields[1], UINT64_MAX, "cluster"), unsigned(fields[2], UINT16_MAX, "node")
    return StoreFigures(cluster, node, figures)
