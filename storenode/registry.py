"""Which disk each node of the cluster had when this store first heard of it: the answer to `known`
(docs/control.md section 7).

Owns `known.json`: node ids and incarnations. The first word stands, for a node id is never given to a second
disk; only the control state may correct it. What cannot be written is kept in memory, and tried again with
the next news. One thread, the loop's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgpack

from kvclient.errors import ProtocolError, Status
from kvclient.protocol import encode_error
from shared import frames, logs
from shared.clustermap import NODE_ID_MAX
from storenode import durable
from storenode.beside import Beside
from storenode.directory import is_incarnation

FORMAT_VERSION: Final = 1
KNOWN: Final = "known.json"

_log = logs.get("registry")

Answer = tuple[int, bytes]
"""Status and body of a CONTROL_REPLY."""


class Registry:
    """Of one store, kept in its data directory."""

    def __init__(self, directory: Path, node: int, incarnation: str, cluster: int) -> None:
        """`cluster`: XXH64 of the cluster id."""
        self._path = directory / KNOWN
        self._node = node
        self._cluster = cluster
        self._known = {**_read(self._path), node: incarnation}
        self._beside: Beside = _at_once
        self._writing = False

    def write_beside(self, beside: Beside) -> None:
        """From now on the disk is not waited for: the loop runs."""
        self._beside = beside

    def incarnation(self, node: int) -> str:
        """ "" if nothing was ever heard."""
        return self._known.get(node, "")

    def hear(self, node: int, incarnation: str) -> None:
        """A report of that node came, of this cluster."""
        if node not in self._known and is_incarnation(incarnation):
            self._known[node] = incarnation
            self._write()

    def settle(self, members: Iterable[tuple[int, str]]) -> None:
        """What the control state says."""
        news = {
            node: incarnation
            for node, incarnation in members
            if node != self._node and incarnation and self._known.get(node) != incarnation
        }
        if news:
            self._known |= news
            self._write()

    def answer(self, cluster: int, arguments: bytes) -> Answer:
        """To the CONTROL command `known` with these arguments."""
        return answer(self._cluster, self._node, self._known, cluster, arguments)

    def _write(self) -> None:
        if self._writing:
            return  # what is news now follows
        known = {node: one for node, one in self._known.items() if node != self._node}
        text = json.dumps({"format": FORMAT_VERSION, "known": known}).encode() + b"\n"
        began = dict(self._known)

        def written(outcome: object) -> None:
            self._writing = False
            if isinstance(outcome, Exception):
                _log.error("known_not_written", path=str(self._path), error=str(outcome))
            if self._known != began:
                self._write()

        self._writing = True
        self._beside(lambda: durable.replace(self._path, text), written)


def _at_once(work: Callable[[], object], done: Callable[[Any], None]) -> None:
    try:
        result: object = work()
    except OSError as error:
        result = error
    done(result)


def answer(mine: int, me: int, known: dict[int, str], cluster: int, arguments: bytes) -> Answer:
    """Status and body for who asks with `cluster`; `mine` and `me` are this side's cluster and node."""
    if cluster != mine:
        return Status.CONDITION_FAILED, encode_error(
            "this store belongs to another cluster, or was configured otherwise"
        )
    try:
        fields = frames.decode(arguments)
    except ProtocolError as error:
        return Status.INVALID_REQUEST, encode_error(error.message)
    node = fields.get("node") if isinstance(fields, dict) else None
    if type(node) is not int or not 1 <= node <= NODE_ID_MAX:
        return Status.INVALID_REQUEST, encode_error(f"known: node must be an integer 1..{NODE_ID_MAX}")
    return Status.OK, msgpack.packb({"node": me, "incarnation": known.get(node, "")})


def _read(path: Path) -> dict[int, str]:
    """What is damaged is told and forgotten: it is heard again from whoever runs."""
    try:
        fields = json.loads(path.read_bytes())
        if fields["format"] != FORMAT_VERSION:
            raise ValueError(f"format version {fields['format']!r:.20}, this software reads {FORMAT_VERSION}")
        known = {int(node): incarnation for node, incarnation in fields["known"].items()}
        if not all(map(is_incarnation, known.values())):
            raise ValueError("an incarnation is none")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _log.error("known_not_read", path=str(path), error=f"{type(error).__name__}: {error}")
        return {}
    return known
