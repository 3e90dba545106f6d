"""`map.bin`: the newest cluster map that a store has taken, in its data directory (docs/control.md section
3).

Owns its bytes. Must not know who makes maps, nor when one is newer.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from kvclient.errors import ProtocolError
from shared.clustermap import ClusterMap
from storenode import durable
from storenode.engine.codec import crc32c

NAME: Final = "map.bin"
MAGIC: Final = b"ringmap2"

_HEAD: Final = struct.Struct("<8sI")
_TAIL: Final = struct.Struct("<I")


class MapFileDamaged(Exception):
    """There is a map, and it cannot be used; the text names the file and says why."""


def read(path: Path) -> ClusterMap | None:
    """The map in the data directory `path`; None if there is none. MapFileDamaged, OSError."""
    file = path / NAME
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        magic, length = _HEAD.unpack_from(content)
        encoded = content[_HEAD.size : _HEAD.size + length]
        (checksum,) = _TAIL.unpack(content[_HEAD.size + length :])
    except struct.error:
        raise MapFileDamaged(f"{file} is not a whole map") from None
    if magic != MAGIC:
        raise MapFileDamaged(f"{file} begins with {magic!r}, this software reads {MAGIC!r}")
    if checksum != crc32c(encoded):
        raise MapFileDamaged(f"{file}: its checksum is wrong")
    try:
        return ClusterMap.decode(encoded)
    except ProtocolError as error:
        raise MapFileDamaged(f"{file}: {error.message}") from None


def write(path: Path, cluster_map: ClusterMap) -> None:
    """Put the map there, durably. OSError."""
    encoded = cluster_map.encode()
    content = _HEAD.pack(MAGIC, len(encoded)) + encoded + _TAIL.pack(crc32c(encoded))
    durable.replace(path / NAME, content)
