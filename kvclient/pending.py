"""One request on its way, and what is known of its answer while attempts fail in part.

Owns the fields that the session works on and the bookkeeping of per-op results over several attempts. Knows
no routers and no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack

from kvclient.errors import (
    ConnectError,
    KVError,
    KVTimeout,
    OutcomeUnknown,
    ProtocolError,
    Status,
    from_result,
)
from kvclient.protocol import decode_results

# Per-op statuses after which the op certainly was not applied and may be sent again.
OP_RETRYABLE: Final = frozenset(
    map(int, (Status.BUSY, Status.NOT_LEADER, Status.WRONG_REPLICA, Status.UNAVAILABLE))
)
# Those, and TIMEOUT, which is final unless another attempt is open: nothing was applied by the attempt that
# was answered so.
NOT_APPLIED: Final = OP_RETRYABLE | {int(Status.TIMEOUT)}

# OK, NOT_FOUND and the answers about the data: the op ran, whichever attempt brought it.
_DATA_STATUS_MAX: Final = int(Status.NOT_AN_INTEGER)

# Where a request is. Plain ints: they are compared several times per request.
QUEUED = 0  # too many are in flight
PARKED = 1  # no router has a connection
SENT = 2  # the current attempt is out
PAUSED = 3  # waits for its next attempt
DONE = 4


class Pending:
    """One request on its way. When `done`, either `error` is set or `results` is (for kinds other than OPS:
    `[value]`).
    """

    __slots__ = (
        "attempts", "body", "count", "deadline", "done", "due", "error", "first_sent", "frame", "indexes",
        "kind", "on_done", "open", "patience", "pinned", "read_mode", "refusal", "request_id", "results",
        "router", "sent_at", "sequence", "state", "timeout", "writes",
    )  # fmt: skip

    def __init__(
        self,
        kind: int,
        body: bytes,
        count: int,
        writes: bool,
        read_mode: int,
        timeout: float,
        on_done: Callable[[Any], None] | None = None,
    ) -> None:
        self.kind = kind
        self.body = body
        self.count = count
        self.writes = writes
        self.read_mode = read_mode
        self.timeout = timeout
        self.on_done = on_done
        self.done = False
        self.error: KVError | None = None
        self.results: list[Any] = []
        self.sequence = 0
        self.attempts = 0
        self.open: list[int] | tuple[()] = ()
        self.pinned = -1
        self.indexes: list[int] | None = None  # which ops of the caller `body` still holds; None = all
        self.refusal: KVError | None = None
        self.state = QUEUED
        self.router = -1
        self.frame = b""
        self.deadline = 0.0
        self.due = 0.0
        self.first_sent = -1.0
        self.sent_at = 0.0
        self.patience = 0.0
        self.request_id = 0


def read_results(body: bytes, count: int) -> tuple[list[Any], set[int]]:
    """`count` results and the statuses among them; raises anything if the body is something else."""
    results: list[Any] = [msgpack.unpackb(body)] if count == 1 else decode_results(body)
    statuses = set()
    for result in results:
        if type(result) is not list or type(result[0]) is not int:
            raise ProtocolError("a result is an array that begins with a status")
        statuses.add(result[0])
    if len(results) != count:
        raise ProtocolError(f"{len(results)} results for {count} ops")
    return results, statuses


def longest_wait_ms(results: list[Any]) -> int:
    """How long the refused ops were told to wait."""
    waits = [result[2] for result in results if result[0] in OP_RETRYABLE and len(result) > 2]
    return max((wait for wait in waits if type(wait) is int), default=0)


def others_open(pending: Pending, request_id: int) -> bool:
    """Whether an attempt other than this one has no answer yet."""
    sent = [*pending.open, pending.request_id] if pending.state == SENT else pending.open
    return any(attempt != request_id for attempt in sent)


def merge(pending: Pending, results: list[Any]) -> None:
    """Add the results of one attempt to what is known; what an earlier attempt answered for good stays."""
    if not pending.results:
        pending.results = results
        return
    known = pending.results
    for index, result in zip(pending.indexes or range(len(known)), results, strict=True):
        if known[index][0] in NOT_APPLIED:
            known[index] = result


def cut(pending: Pending) -> None:
    """Leave only the ops in the request that have no final result yet."""
    kept: list[int] = []
    ops: list[bytes] = []
    unpacker = msgpack.Unpacker(max_buffer_size=len(pending.body))
    unpacker.feed(pending.body)
    begin = 0
    for index in pending.indexes or range(pending.count):
        unpacker.skip()
        end = unpacker.tell()
        if pending.results[index][0] in NOT_APPLIED:
            kept.append(index)
            ops.append(pending.body[begin:end])
        begin = end
    pending.indexes = kept
    pending.body = b"".join(ops)
    pending.count = len(kept)


def blame(pending: Pending, index: int, error: KVError) -> None:
    """The request was refused because of one op: that is the op's result, the other ops remain."""
    if not pending.results:
        pending.results = [[int(Status.UNAVAILABLE), "not executed"] for _ in range(pending.count)]
    pending.results[index if pending.indexes is None else pending.indexes[index]] = [int(error.status), error]


def fail(pending: Pending, error: KVError) -> None:
    """The request ends with `error`: all of it, or the ops that no earlier attempt has settled."""
    known = pending.results
    if any(result[0] not in NOT_APPLIED for result in known):
        for index, result in enumerate(known):
            if result[0] in NOT_APPLIED:
                known[index] = [int(error.status), error]
    else:
        pending.error = error


def qualify(results: list[Any]) -> None:
    """These results came while another attempt was open: an op that failed for good may still have been
    applied by that one.
    """
    for index, result in enumerate(results):
        if result[0] > _DATA_STATUS_MAX and result[0] not in NOT_APPLIED:
            error = from_result(result)
            error.maybe_applied = True
            results[index] = [result[0], error]


def settle(pending: Pending, endpoints: Sequence[str]) -> None:
    """The deadline has passed: set the results or the error that follow from what is known."""
    uncertain = pending.writes and (bool(pending.open) or pending.state == SENT)
    tries = f"no answer within {pending.timeout:.3g} s"
    if pending.results:
        if uncertain:
            _doubt(pending.results)
    elif uncertain:
        pending.error = OutcomeUnknown(
            f"{tries}; the write may have been applied", hint="read the key before you write it again"
        )
    elif pending.refusal is not None:
        pending.error = pending.refusal
    elif pending.state == PARKED:
        pending.error = ConnectError(
            f"cannot reach any router (tried {', '.join(endpoints)})",
            attempts=[(endpoint, "no connection") for endpoint in endpoints],
        )
    else:
        pending.error = KVTimeout(f"{tries}; nothing was applied" if pending.writes else tries)


def _doubt(results: list[Any]) -> None:
    """Another attempt has no answer: ops that one attempt was refused may have run."""
    for index, result in enumerate(results):
        if result[0] in NOT_APPLIED:
            results[index] = [
                int(Status.OUTCOME_UNKNOWN),
                "no answer to another attempt; the write may have been applied",
            ]
