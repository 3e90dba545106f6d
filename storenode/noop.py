"""The no-op partition of `kv-store --noop`: answers every op at once, stores nothing. For measuring the
message path alone.

Has the face of `Replica` that the service uses. Results have the shape of the real ones; their content is
fixed.
"""

from __future__ import annotations

from typing import Final

import msgpack

from kvclient.errors import Status
from kvclient.protocol import Op
from storenode.replica.replica import Answer

_RESULTS: Final[dict[int, bytes]] = {
    code: msgpack.packb(result)
    for code, result in {
        Op.GET: (0, bytes(100), 1),
        Op.PUT: (0, 1),
        Op.DELETE: (0, 1),
        Op.EXISTS: (0, 1),
        Op.INCREMENT: (0, 1, 1),
        Op.TOUCH: (0, 1),
        Op.SCAN: (0, 0, b""),
    }.items()
}


class NoopReplica:
    """Answers, and remembers nothing."""

    takes_writes = True

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def read(self, route: tuple[bytes, int], ops: bytes, mode: int, deadline: float, now: float) -> None:
        """One fixed result per op."""
        self._answer(*route, Status.OK, _results(ops))

    def propose(
        self,
        route: tuple[bytes, int],
        client_id: int,
        sequence: int,
        acked_below: int,
        flags: int,
        ops: bytes,
        deadline: float,
        now: float,
    ) -> None:
        """One fixed result per op, at once."""
        self._answer(*route, Status.OK, _results(ops))


def _results(ops: bytes) -> bytes:
    try:
        return _RESULTS[msgpack.unpackb(ops)[0]]  # one op is usual, and this much cheaper than an Unpacker
    except msgpack.ExtraData:
        pass
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=0)
    unpacker.feed(ops)
    return b"".join(_RESULTS[op[0]] for op in unpacker)
