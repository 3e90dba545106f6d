"""Whether what a request does is covered by a client's grants (docs/security.md section 7).

Owns which op needs what. Pure; must not know who the client is. An op stream was checked as a whole before it
comes here, so its ops are what the protocol says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgpack

from kvclient.errors import PermissionDenied
from kvclient.protocol import REQUEST_BYTES_MAX, Op
from router import controlcommands, groupcommands
from router.admin import Command
from shared.controlmessages import ControlCommand
from shared.groupmessages import GroupCommand
from shared.security import Grants

_LOOKS: Final = frozenset({ControlCommand.SHOW, ControlCommand.KNOWN, ControlCommand.REBALANCE_PLAN})


class Need(NamedTuple):
    """What an op does to a key; `stop` of a range, None: to the end. `ranged` tells which it is."""

    way: str
    key: bytes
    ranged: bool = False
    stop: bytes | None = None


def require(name: str, ops: bytes, grants: Grants) -> None:
    """PermissionDenied names the first op that the grants do not cover."""
    reader = msgpack.Unpacker(raw=False, max_buffer_size=REQUEST_BYTES_MAX + 1)
    reader.feed(ops)
    for index, op in enumerate(reader):
        for need in _needs(op):
            prefixes = grants.read if need.way == "read" else grants.write
            if not (_covers_range(prefixes, need) if need.ranged else need.key.startswith(prefixes)):
                raise PermissionDenied(f"{name} may not {need.way} what op {index} is about", index=index)


def _needs(op: list[Any]) -> Iterator[Need]:
    """What tells something of a value, as a condition and a sum do, reads it as well."""
    code, key = op[0], op[1]
    if code == Op.SCAN:
        yield Need("read", key, True, op[2])
        return
    if code == Op.TXN:
        _, compares, *branches = op
        yield from (Need("read", compare[0]) for compare in compares)
        for branch in branches:
            for inner in branch:
                yield from _needs(inner)
        return
    conditional = (code == Op.PUT and len(op) > 4) or (code == Op.DELETE and len(op) > 2)
    if code in (Op.GET, Op.EXISTS, Op.INCREMENT) or conditional:
        yield Need("read", key)
    if code not in (Op.GET, Op.EXISTS):
        yield Need("write", key)


def _covers_range(prefixes: tuple[bytes, ...], need: Need) -> bool:
    for prefix in prefixes:
        end = _after(prefix)
        if need.key.startswith(prefix) and (end is None or (need.stop is not None and need.stop <= end)):
            return True
    return False


def _after(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with `prefix`; None: there is none."""
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else None


def changes_nothing(command: Command | groupcommands.Command | controlcommands.Command) -> bool:
    """Whether an operator's command only looks."""
    if isinstance(command, Command):
        return True
    if isinstance(command, groupcommands.Command):
        return command.command is GroupCommand.SHOW
    return command.command in _LOOKS
