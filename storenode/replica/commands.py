"""What a NORMAL entry of a partition's log holds: the writes that its leader had gathered, and their time
(docs/raft.md section 2).

Owns the bytes. Knows neither Raft nor the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgpack

from kvclient.errors import Corruption
from storenode.replica.proposal import Proposal

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack

FLAG_CUT: Final = 1 << 8
"""Of a write without ops: every replica keeps a cut of what it holds then (docs/raft.md section 10)."""

Write = tuple[int, int, int, int, bytes]
"""(client_id, sequence, acked_below, flags, ops)."""


class Command(NamedTuple):
    """One entry: `stamp_ms` is what TTLs count from, `session_ms` what sessions are judged by."""

    stamp_ms: int
    session_ms: int
    writes: Sequence[Write]


def encode(stamp_ms: int, session_ms: int, proposals: Sequence[Proposal]) -> bytes:
    """The data of one entry."""
    writes = [(one.client_id, one.sequence, one.acked_below, one.flags, one.ops) for one in proposals]
    packed: bytes = _pack((stamp_ms, session_ms, writes))
    return packed


def encode_cut(stamp_ms: int, session_ms: int) -> bytes:
    """The data of an entry that asks for a cut."""
    packed: bytes = _pack((stamp_ms, session_ms, [(0, 0, 0, FLAG_CUT, b"")]))
    return packed


def asks_for_cut(command: Command) -> bool:
    """Whether replicas keep a cut when this is applied."""
    writes = command.writes
    return len(writes) == 1 and not writes[0][4] and bool(writes[0][3] & FLAG_CUT)


def decode(data: bytes) -> Command:
    """Corruption if a leader cannot have made these bytes: they are checksummed, so only another software can
    have.
    """
    try:
        command = Command(*msgpack.unpackb(data, raw=False, use_list=False))
        if not int is type(command.stamp_ms) is type(command.session_ms):
            raise ValueError("times are integers")
        for client_id, sequence, acked_below, flags, ops in command.writes:
            if not int is type(client_id) is type(sequence) is type(acked_below) is type(flags):
                raise ValueError("a write begins with four integers")
            if type(ops) is not bytes:
                raise ValueError("the ops of a write are bytes")
    except Exception as error:
        raise Corruption(f"an entry of the log is no command that this software knows: {error}") from error
    return command
