"""Whether reads that may be stale were no staler than they may be, and saw only what was once there.

The bound counts from when a replica heard its leader's commit index. That message had been under way, and the
leader may have been deposed meanwhile without knowing; both take their time, which the bound of the check has
on top (SLACK_S).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.linearizability.history import Operation, Outcome
from tests.linearizability.models import Found
from tests.simulation.clients import StaleRead
from tests.simulation.world import Violation

SLACK_S = 6.0
"""Pauses are up to 4 s, a leader without a quorum goes after at most 2, both in clocks that may run slow."""


def check(reads: Sequence[StaleRead], history: Iterable[Operation]) -> None:
    """Violation if one read what never was, or what had been replaced long before."""
    known: dict[bytes, list[Operation]] = {}
    for operation in history:
        known.setdefault(operation.key, []).append(operation)  # type: ignore[arg-type]
    for read in reads:
        _check(read, known.get(read.key, []))


def _check(read: StaleRead, operations: list[Operation]) -> None:
    horizon = read.called - read.bound_ms / 1000 - SLACK_S
    newest = 0
    for one in operations:
        if one.outcome is Outcome.OK and one.returned < horizon:
            newest = max(newest, _version(one))
    if read.version:
        if read.version < newest:
            raise Violation(f"{read} is too old: version {newest} was seen before {horizon:.3f}")
        if not read.key.startswith(b"n") and not any(
            one.function == "put" and one.arguments[0] == read.value and one.called <= read.returned
            for one in operations
        ):
            raise Violation(f"{read}: nobody has written that")
    elif newest and not any(one.function == "delete" and one.called <= read.returned for one in operations):
        raise Violation(
            f"{read} found nothing; version {newest} was seen before {horizon:.3f}, nobody deletes"
        )


def _version(operation: Operation) -> int:
    if operation.function == "get" and isinstance(operation.result, Found):
        return operation.result.version or 0
    return operation.result if operation.function == "put" and type(operation.result) is int else 0
