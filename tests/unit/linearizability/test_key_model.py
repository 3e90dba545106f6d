"""What one key of the store may answer, in turn: the model that histories of a cluster are held against."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from tests.linearizability.checker import Verdict, check
from tests.linearizability.history import Operation, Outcome
from tests.linearizability.models import NOT_AN_INTEGER, Conflict, Found, KeyValue

KEY = KeyValue()


def in_turn(*steps: tuple[str, tuple[Hashable, ...], Hashable]) -> list[Operation]:
    """Operations of one client, one after another; `...` as the result is an unknown outcome."""
    history = []
    for number, (function, arguments, result) in enumerate(steps):
        outcome = Outcome.UNKNOWN if result is ... else Outcome.OK
        answer = None if result is ... else result
        history.append(Operation(1, 2 * number, 2 * number + 1, function, arguments, outcome, answer))
    return history


KEY_LINEARIZABLE = {
    "versions are told and grow": [("put", (b"a",), 3), ("get", (), Found(b"a", 3)), ("put", (b"b",), 9)],
    "a version that the write did not tell shows later": [
        ("put", (b"a",), 3),
        ("put", (b"b",), None),
        ("get", (), Found(b"b", 7)),
        ("put", (b"c", ("version", 7)), 8),
    ],
    "a lost write is what a conflict shows": [
        ("put", (b"a",), 3),
        ("put", (b"b",), ...),
        ("put", (b"c", ("version", 3)), Conflict(5)),
        ("get", (), Found(b"b", 5)),
    ],
    "a delete, what it leaves and what comes after": [
        ("delete", (), False),
        ("put", (b"a", ("absent",)), 1),
        ("delete", (("value", b"a"),), True),
        ("get", (), None),
        ("put", (b"b", ("present",)), Conflict(0)),
        ("put", (b"b", ("absent",)), 3),
    ],
    "an increment from nothing, of a number and of a text": [
        ("increment", (5,), 5),
        ("increment", (-7,), -2),
        ("get", (), Found(b"-2")),
        ("put", (b"x",), None),
        ("increment", (1,), NOT_AN_INTEGER),
    ],
    "an unknown increment was done": [
        ("increment", (1,), 1),
        ("increment", (1,), ...),
        ("increment", (1,), 3),
    ],
    "an unknown increment was not done": [
        ("increment", (1,), 1),
        ("increment", (1,), ...),
        ("increment", (1,), 2),
    ],
    "a lost write takes the first version after a delete": [
        ("put", (b"a",), 3),
        ("delete", (), True),
        ("put", (b"b",), ...),
        ("get", (), Found(b"b", 4)),
    ],
    "an unknown delete explains an absence": [("put", (b"a",), 1), ("delete", (), ...), ("get", (), None)],
    "an unknown delete came to nothing": [("put", (b"a",), 1), ("delete", (), ...), ("delete", (), True)],
    "the largest integer has no successor": [
        ("put", (b"9223372036854775807",), 1),
        ("increment", (1,), NOT_AN_INTEGER),
        ("increment", (-1,), 2**63 - 2),
    ],
}
KEY_VIOLATIONS = {
    "a conflict with an absent key although it is there": [
        ("put", (b"a",), None),
        ("put", (b"b", ("version", 1)), Conflict(0)),
    ],
    "a version goes back": [("put", (b"a",), 3), ("put", (b"b",), 3)],
    "a version goes back across a delete": [
        ("put", (b"a",), 3),
        ("delete", (), True),
        ("put", (b"a",), 4),
        ("get", (), Found(b"a", 3)),
    ],
    "a write whose version was not told has that of the one before": [
        ("put", (b"a",), 3),
        ("put", (b"b",), None),
        ("get", (), Found(b"b", 3)),
    ],
    "a version changes without a write": [
        ("put", (b"a",), None),
        ("get", (), Found(b"a", 3)),
        ("get", (), Found(b"a", 4)),
    ],
    "a value under another one's version": [("put", (b"a",), 3), ("get", (), Found(b"a", 4))],
    "a conflict although the version is that": [
        ("put", (b"a",), 3),
        ("put", (b"b", ("version", 3)), Conflict(3)),
    ],
    "a conflict although the value is that": [
        ("put", (b"a",), 3),
        ("delete", (("value", b"a"),), Conflict(3)),
    ],
    "a conflict although it is absent": [("put", (b"b", ("absent",)), Conflict(0))],
    "a conflict although it is present": [("put", (b"a",), 3), ("put", (b"b", ("present",)), Conflict(3))],
    "no conflict although the version is another": [("put", (b"a",), 3), ("put", (b"b", ("version", 2)), 4)],
    "no conflict although the value is another": [("put", (b"a",), 3), ("put", (b"b", ("value", b"b")), 4)],
    "no conflict although it is there": [("put", (b"a",), 3), ("put", (b"b", ("absent",)), 4)],
    "no conflict although it is absent": [("put", (b"b", ("present",)), 4)],
    "a delete of nothing": [("delete", (), True)],
    "a delete that found nothing": [("put", (b"a",), 1), ("delete", (), False)],
    "a key that comes back": [("put", (b"a",), 1), ("delete", (), True), ("get", (), Found(b"a"))],
    "an increment counted twice": [("increment", (1,), 1), ("increment", (1,), 3)],
    "an unknown increment counted twice": [
        ("increment", (1,), 1),
        ("increment", (1,), ...),
        ("increment", (1,), 4),
    ],
    "a number that is not one": [("put", (b"07",), 1), ("increment", (1,), 8)],
}


@pytest.mark.parametrize("steps", KEY_LINEARIZABLE.values(), ids=KEY_LINEARIZABLE)
def test_a_key_does_this(steps: list[tuple[str, tuple[Hashable, ...], Hashable]]) -> None:
    assert check(in_turn(*steps), KEY).verdict is Verdict.LINEARIZABLE


@pytest.mark.parametrize("steps", KEY_VIOLATIONS.values(), ids=KEY_VIOLATIONS)
def test_a_key_never_does_this(steps: list[tuple[str, tuple[Hashable, ...], Hashable]]) -> None:
    assert check(in_turn(*steps), KEY).verdict is Verdict.VIOLATION


def test_an_operation_that_a_key_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match="'append'"):
        check(in_turn(("append", (b"a",), None)), KEY)
