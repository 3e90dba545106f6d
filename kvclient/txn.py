"""A transaction as one call: compares and two branches become one op, its result those of the branch taken.

Owns the checks that concern several keys (the same exceptions as the server's, before anything is sent). One
op alone, its bytes and the meaning of its result are `calls`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from kvclient import protocol
from kvclient.calls import Call, Calls
from kvclient.errors import InvalidRequest, ProtocolError, from_result
from kvclient.ops import Compare, Op

_NAMES: Final = frozenset({"get", "put", "delete", "exists", "increment", "touch"})


class TxnResult(NamedTuple):
    """Whether all compares held, and what each op of the branch that was executed returned."""

    succeeded: bool
    results: list[Any]


def txn(
    calls: Calls[Any], compare: Iterable[Compare], then: Iterable[Op], else_: Iterable[Op]
) -> Call[TxnResult]:
    """The call; InvalidRequest, KeyTooLong, ValueTooLarge or TypeError for what cannot be one."""
    compares = [_compare(calls, one) for one in compare]
    branches = _branch(calls, else_), _branch(calls, then)  # by whether the compares held
    keys = [key for key, _ in compares] + [call.key for branch in reversed(branches) for call in branch]
    _check_keys(keys)

    def decode(result: list[Any]) -> TxnResult:
        if result[0] != 0:
            raise from_result(result)
        match result:
            case [_, (0 | 1) as held, list(results)] if len(results) == len(branches[held]):
                return TxnResult(
                    bool(held),
                    [call.decode(one) for call, one in zip(branches[held], _results(results), strict=True)],
                )
        raise ProtocolError("malformed answer: the result of a transaction is [0, succeeded, results]")

    op = protocol.encode_txn(compares, [call.op for call in branches[1]], [call.op for call in branches[0]])
    return Call(op, keys[0], True, decode)


def _compare(calls: Calls[Any], compare: Compare) -> tuple[bytes, tuple[int | bytes, ...]]:
    if not isinstance(compare, Compare):
        raise TypeError(f"a compare is made by Compare.value(...) and so on, not {type(compare).__name__}")
    condition = calls.condition(*compare[1:])
    if condition is None:
        raise InvalidRequest("a compare has a condition: use Compare.absent, present, version or value")
    return calls.key(compare.key), condition


def _branch(calls: Calls[Any], ops: Iterable[Op]) -> list[Call[Any]]:
    branch: list[Call[Any]] = []
    written: set[bytes] = set()
    for op in ops:
        if getattr(op, "name", None) not in _NAMES:
            raise TypeError(f"an op of a transaction is made by ops.put(...) and so on, not {op!r:.100}")
        call: Call[Any] = getattr(calls, op.name)(*op.arguments)
        if call.writes and call.key in written:
            raise InvalidRequest(f"a branch of a transaction writes {call.key!r:.200} twice; once is allowed")
        if call.writes:
            written.add(call.key)
        branch.append(call)
    return branch


def _check_keys(keys: list[bytes]) -> None:
    """That there are some, not too many, and all with one hash tag.

    Keys without one may share a partition by chance, and the server would take them; with another number of
    partitions it would not.
    """
    if not 1 <= len(keys) <= protocol.TXN_PARTS_MAX:
        raise InvalidRequest(
            f"a transaction has 1 to {protocol.TXN_PARTS_MAX} compares and ops together, not {len(keys)}"
        )
    part = protocol.hashed_part(keys[0])
    for key in keys:
        if protocol.hashed_part(key) != part:
            raise InvalidRequest(
                f"the keys of a transaction must be in one partition, {keys[0]!r:.200} and {key!r:.200} need "
                "not be: give them the same hash tag, as in {user:7}name and {user:7}mail"
            )


def _results(results: list[Any]) -> list[list[Any]]:
    for result in results:
        if type(result) is not list or not result or type(result[0]) is not int:
            raise ProtocolError("malformed answer: a result is an array that begins with its status")
    return results
