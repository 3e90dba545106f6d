"""Stores of a local cluster that came later, and those that are gone: `added.json`, and what the stores' data
says.

    added.json            [{"name": "store4", "number": 4, "zone": "zone4"}, ...]

A number is never given twice; it says which ports. Whether a store was removed from the cluster stands in the
newest map that any store has on its disk, so it is known also while nothing runs. Knows nothing of processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import msgpack

from kvclient.cli.failure import Failure
from kvclient.cli.resume import replace_file
from kvclient.errors import Exit

ADDED_FILE: Final = "added.json"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MAGIC: Final = b"ringmap2"
_HEAD: Final = len(_MAGIC) + 4
_EPOCH, _NODES = 3, 6
"""Where they stand in a map (docs/protocol.md section 6)."""


@dataclass(frozen=True)
class Added:
    """A store that joined after the cluster was made."""

    name: str
    number: int
    zone: str

    def is_sound(self) -> bool:
        """A file edited by hand may say anything."""
        return type(self.number) is int and self.number > 0 and is_name(self.name) and is_name(self.zone)


def is_name(name: object) -> bool:
    """Whether a node or a zone may be called so."""
    return type(name) is str and _NAME.fullmatch(name) is not None


def load(directory: Path) -> list[Added]:
    """Those of a cluster's directory, in the order in which they came."""
    file = directory / ADDED_FILE
    try:
        found = [Added(**fields) for fields in json.loads(file.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        found = None
    if found is None or not all(one.is_sound() for one in found):
        raise Failure(
            Exit.ERROR,
            f"{file} is damaged. Remove the directory, or use another --dir",
            "DEV_DIRECTORY",
        )
    return found


def save(directory: Path, added: Iterable[Added]) -> None:
    """Write them."""
    replace_file(directory / ADDED_FILE, json.dumps([asdict(one) for one in added]).encode() + b"\n")


def removed(data: dict[str, Path]) -> set[str]:
    """Which of these stores the cluster has let go, by their data directories: the newest map does not have
    their node.
    """
    nodes = {name: _node_of(path) for name, path in data.items()}
    maps = [found for path in data.values() if (found := _map_of(path)) is not None]
    if not maps:
        return set()
    _, members = max(maps, key=lambda found: found[0])
    return {name for name, node in nodes.items() if node is not None and node not in members}


def has_joined(data: Path) -> bool:
    """Whether the store with this data directory was ever a node."""
    return _node_of(data) is not None


def _node_of(data: Path) -> int | None:
    try:
        return int(json.loads((data / "identity.json").read_bytes())["node_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map_of(data: Path) -> tuple[int, set[int]] | None:
    """Epoch and node ids. What is damaged is the store's to complain about."""
    try:
        content = (data / "map.bin").read_bytes()
        length = int.from_bytes(content[len(_MAGIC) : _HEAD], "little")
        fields = msgpack.unpackb(content[_HEAD : _HEAD + length])
        return int(fields[_EPOCH]), {int(node[0]) for node in fields[_NODES]}
    except Exception:  # noqa: BLE001 - damaged bytes raise many types
        return None
