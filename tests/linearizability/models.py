"""What operations mean when they run one after another: a register, and one key of this store.

Owns the sequential specifications that `checker` holds a history against. Pure: a state is a hashable value,
a step gives the next one or REFUSED. Operations that a model does not know raise ValueError.

The step of a write with an UNKNOWN outcome ignores the result, and is REFUSED where it would change
nothing: as it need not take effect at all, "without effect" is a case that needs no step. Reads with an
unknown outcome say nothing and have none.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from tests.linearizability.history import Operation, Outcome


class Mark(enum.Enum):
    """What stands where a state or a value would, and is none."""

    REFUSED = 0
    NOTHING = 1


REFUSED: Final = Mark.REFUSED
"""The operation cannot have had this result in this state."""
NOTHING: Final = Mark.NOTHING

Sight = frozenset[Hashable] | None
BLIND: Final[frozenset[Hashable]] = frozenset()
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


class Model(Protocol):
    """A sequential specification."""

    initial: Hashable
    reads: frozenset[str]
    """The functions that change nothing."""

    def step(self, state: Any, operation: Operation) -> Hashable:
        """The state after `operation`, or REFUSED."""

    def blind_write(self, operation: Operation) -> Hashable:
        """The value that it leaves whatever was there before, if that is all it does; otherwise NOTHING."""

    def sights(self, operations: Sequence[Operation]) -> list[Sight]:
        """For each operation of a history, failed ones left out, the values on which it can have run. BLIND:
        on any, and what it leaves and answers does not depend on it. None: it does, in a way that cannot be
        listed."""

    def too_late(self, state: Any, operation: Operation) -> bool:
        """Whether no state that may come can have had the answer any more; False if that cannot be seen."""

    def alike(self, value: Hashable) -> Hashable:
        """A name that values share which no operation tells apart but those that name one of them."""


class Register:
    """read() -> value, write(value), cas(expected, value) -> whether it was as expected; at first nil."""

    initial: Hashable = None
    reads = frozenset({"read"})

    def step(self, state: Any, operation: Operation) -> Hashable:
        function, arguments = operation.function, operation.arguments
        unknown = operation.outcome is Outcome.UNKNOWN
        if function == "read":
            return state if operation.result == state else REFUSED
        if function == "write":
            written: Hashable = arguments[0]
            return written
        if function != "cas":
            raise ValueError(f"a register has no {function!r}")
        expected, value = arguments
        if unknown or operation.result:
            return value if state == expected else REFUSED
        return state if state != expected else REFUSED

    def blind_write(self, operation: Operation) -> Hashable:
        return operation.arguments[0] if operation.function == "write" else NOTHING

    def sights(self, operations: Sequence[Operation]) -> list[Sight]:
        return list(map(_register_sight, operations))

    def too_late(self, state: Any, operation: Operation) -> bool:
        del state, operation
        return False

    def alike(self, value: Hashable) -> Hashable:
        del value
        return "any"


class Found(NamedTuple):
    """What a get answers; `version` is None where the client was not told."""

    value: bytes
    version: int | None = None


class Conflict(NamedTuple):
    """The condition did not hold; `version` is the key's own, 0 if it is absent, None if not told."""

    version: int | None = None


NOT_AN_INTEGER: Final = "not an integer"
"""What an increment answers if it cannot be done."""


class Key(NamedTuple):
    """A key of the store. Its version is `version` if `exact`, otherwise that or any above: a write whose
    answer was lost has a version that shows only later. For an absent key it bounds the version to come.

    Several such writes in a row move the bound once only. That accepts two of them where there is room for
    one, and keeps states equal that differ in nothing else.
    """

    value: bytes | None = None
    version: int = 0
    exact: bool = False


class KeyValue:
    """One key, as docs/protocol.md section 2 has it, without TTLs.

    - get() -> Found, or None if it is absent
    - put(value, condition=None) -> its version (None: not told), or Conflict
    - delete(condition=None) -> whether it was there, or Conflict
    - increment(delta) -> the sum, or NOT_AN_INTEGER

    condition := ("absent",) | ("present",) | ("version", version) | ("value", value). Versions of the key
    grow with every write, also across deletes.
    """

    initial: Hashable = Key()
    reads = frozenset({"get"})

    def step(self, state: Key, operation: Operation) -> Hashable:
        function, arguments = operation.function, operation.arguments
        unknown = operation.outcome is Outcome.UNKNOWN
        result: Any = None if unknown else operation.result
        if function == "get":
            return _get(state, result)
        if function == "increment":
            return _increment(state, arguments[0], result, unknown)
        if function not in ("put", "delete"):
            raise ValueError(f"a key has no {function!r}")
        condition: Any = _condition(operation)
        if isinstance(result, Conflict):
            return _conflict(state, condition, result.version)
        if condition is not None:
            held = _meets(state, condition)
            if held is None:
                return REFUSED
            state = held
        if function == "put":
            value: Any = arguments[0]
            return _written(state, value, result)
        if (unknown and state.value is None) or (not unknown and result is not (state.value is not None)):
            return REFUSED
        return _written(state, None, None) if state.value is not None else state

    def blind_write(self, operation: Operation) -> Hashable:
        if operation.function not in ("put", "delete") or _condition(operation) is not None:
            return NOTHING
        return operation.arguments[0] if operation.function == "put" else None

    def sights(self, operations: Sequence[Operation]) -> list[Sight]:
        values = _values_of_versions(operations)
        return [_key_sight(operation, values) for operation in operations]

    def too_late(self, state: Key, operation: Operation) -> bool:
        """Versions only grow."""
        result: Any = operation.result
        if operation.function == "put" and type(result) is int:
            return result <= state.version
        if type(result) in (Found, Conflict) and result.version:
            return bool(result.version < state.version)
        return False

    def alike(self, value: Any) -> Hashable:
        return value if value is None or _integer(value) is not None else "text"


def _register_sight(operation: Operation) -> Sight:
    if operation.function == "write":
        return BLIND
    if operation.function == "read":
        return frozenset({operation.result})
    if operation.outcome is Outcome.UNKNOWN or operation.result:
        return frozenset({operation.arguments[0]})
    return None


def _values_of_versions(operations: Sequence[Operation]) -> dict[Any, frozenset[Hashable]]:
    """For each version that an answer told together with its value: all values so told, one if nothing is
    wrong. Version 0 is absence."""
    values: dict[Any, frozenset[Hashable]] = {0: frozenset({None})}
    for operation in operations:
        result: Any = operation.result
        if operation.outcome is not Outcome.OK or result is None or isinstance(result, Conflict):
            continue
        if operation.function == "put":
            version, value = result, operation.arguments[0]
        elif operation.function == "get" and result.version is not None:
            version, value = result.version, result.value
        else:
            continue
        values[version] = values.get(version, BLIND) | {value}
    return values


def _key_sight(operation: Operation, values: dict[Any, frozenset[Hashable]]) -> Sight:
    unknown = operation.outcome is Outcome.UNKNOWN
    result: Any = None if unknown else operation.result
    if operation.function == "get":
        return frozenset({None if result is None else result.value})
    if operation.function == "increment":
        return None
    if isinstance(result, Conflict):
        return values.get(result.version)
    condition = _condition(operation)
    if condition is not None:
        if condition[0] == "absent":
            return frozenset({None})
        if condition[0] == "value":
            return frozenset({condition[1]})
        return values.get(condition[1]) if condition[0] == "version" else None
    if operation.function == "put" or unknown:
        return BLIND
    return None if result else frozenset({None})


def _condition(operation: Operation) -> Any:
    place = 1 if operation.function == "put" else 0
    return operation.arguments[place] if len(operation.arguments) > place else None


def _get(state: Key, result: Found | None) -> Hashable:
    if result is None:
        return state if state.value is None else REFUSED
    if state.value is None or state.value != result.value:
        return REFUSED
    return _at_version(state, result.version) or REFUSED


def _increment(state: Key, delta: int, result: Any, unknown: bool) -> Hashable:
    before = 0 if state.value is None else _integer(state.value)
    fits = before is not None and INT64_MIN <= before + delta <= INT64_MAX
    if not fits or before is None:
        return state if result == NOT_AN_INTEGER else REFUSED
    if not unknown and result != before + delta:
        return REFUSED
    return _written(state, b"%d" % (before + delta), None)


def _conflict(state: Key, condition: Any, version: int | None) -> Hashable:
    """The state in which `condition` does not hold and the key has `version`."""
    if state.value is None:
        holds, told = condition[0] == "absent", version in (0, None)
        return state if told and not holds else REFUSED
    seen = _at_version(state, version)
    if seen is None or condition[0] == "present":
        return REFUSED
    if condition[0] == "version" and seen.exact and seen.version == condition[1]:
        return REFUSED
    if condition[0] == "value" and seen.value == condition[1]:
        return REFUSED
    return seen


def _meets(state: Key, condition: Any) -> Key | None:
    """The state if `condition` holds in it, with the version that this shows."""
    if condition[0] == "absent":
        return state if state.value is None else None
    if state.value is None:
        return None
    if condition[0] == "version":
        return _at_version(state, condition[1])
    if condition[0] == "value":
        return state if state.value == condition[1] else None
    return state


def _at_version(state: Key, version: int | None) -> Key | None:
    """The state of a key that is there, once it is known that it has `version`; None if it cannot."""
    if version is None:
        return state
    if version < max(state.version, 1) or (state.exact and version != state.version):
        return None
    return Key(state.value, version, True)


def _written(state: Key, value: bytes | None, version: int | None) -> Hashable:
    if version is None:
        return Key(value, state.version + state.exact, False)
    return Key(value, version, True) if version > state.version else REFUSED


def _integer(value: bytes) -> int | None:
    """The number whose one decimal text this is."""
    digits = value[1:] if value.startswith(b"-") else value
    if not digits.isdigit():
        return None
    number = int(value)
    return number if b"%d" % number == value and INT64_MIN <= number <= INT64_MAX else None
