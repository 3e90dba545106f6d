"""Whether what a request does is covered by a client's grants (docs/security.md section 7).

Owns which op needs what. Pure; must not know who the client is. An op stream was checked as a whole before it
comes here, so its ops are what the protocol says.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from kvclient.errors import PermissionDenied
from kvclient.protocol import REQUEST_BYTES_MAX, Op
from router import controlcommands, groupcommands
from router.admin import AnyCommand, Command
from shared.controlmessages import ControlCommand
from shared.groupmessages import GroupCommand
from shared.security import Grants

_LOOKS: Final = frozenset({ControlCommand.SHOW, ControlCommand.KNOWN, ControlCommand.REBALANCE_PLAN})


# Plain numbers: comparing with members of an enumeration would cost more than the rest.
_GET, _PUT, _DELETE, _EXISTS, _INCREMENT = map(int, (Op.GET, Op.PUT, Op.DELETE, Op.EXISTS, Op.INCREMENT))
_SCAN, _TXN = int(Op.SCAN), int(Op.TXN)


def require(name: str, ops: bytes, grants: Grants) -> None:
    """PermissionDenied names the first op that the grants do not cover."""
    reader = msgpack.Unpacker(raw=False, max_buffer_size=REQUEST_BYTES_MAX + 1)
    reader.feed(ops)
    for index, op in enumerate(reader):
        missing = _missing(op, grants.read, grants.write)
        if missing:
            raise PermissionDenied(f"{name} may not {missing} what op {index} is about", index=index)


def _missing(op: list[Any], read: tuple[bytes, ...], write: tuple[bytes, ...]) -> str:
    """`read` or `write`, if the op needs it and these prefixes do not cover it. What tells something of a
    value, as a condition and a sum do, reads it as well.
    """
    code, key = op[0], op[1]
    if code == _SCAN:
        return "" if _covers_range(read, key, op[2]) else "read"
    if code == _TXN:
        return _missing_in_txn(op, read, write)
    if code in (_GET, _EXISTS):
        return "" if key.startswith(read) else "read"
    reads = code == _INCREMENT or (code == _PUT and len(op) > 4) or (code == _DELETE and len(op) > 2)
    if reads and not key.startswith(read):
        return "read"
    return "" if key.startswith(write) else "write"


def _missing_in_txn(op: list[Any], read: tuple[bytes, ...], write: tuple[bytes, ...]) -> str:
    _, compares, *branches = op
    if not all(compare[0].startswith(read) for compare in compares):
        return "read"
    inners = (inner for branch in branches for inner in branch)
    return next(filter(None, (_missing(inner, read, write) for inner in inners)), "")


def _covers_range(prefixes: tuple[bytes, ...], start: bytes, stop: bytes | None) -> bool:
    for prefix in prefixes:
        end = _after(prefix)
        if start.startswith(prefix) and (end is None or (stop is not None and stop <= end)):
            return True
    return False


def _after(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with `prefix`; None: there is none."""
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else None


def changes_nothing(command: AnyCommand) -> bool:
    """Whether an operator's command only looks. A backup does, but at everything."""
    if isinstance(command, Command):
        return True
    if isinstance(command, groupcommands.Command):
        return command.command is GroupCommand.SHOW
    return isinstance(command, controlcommands.Command) and command.command in _LOOKS
