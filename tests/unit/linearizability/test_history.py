"""Recording histories, and what of them the judgement leaves out."""

from __future__ import annotations

import itertools
import math

import pytest

from tests.linearizability.history import Operation, Outcome, Recorder, partition
from tests.linearizability.models import Conflict, Found, KeyValue, Register
from tests.linearizability.reduction import needed, twins


def unknown(function: str, *arguments: object, called: float = 10) -> Operation:
    return Operation("lost", called, math.inf, function, arguments, Outcome.UNKNOWN)


def test_a_recorder_keeps_what_was_answered_and_what_is_open_is_unknown() -> None:
    recorder = Recorder(itertools.count().__next__)
    first = recorder.call("one", "write", 5, key="k")
    second = recorder.call("two", "read", key="k")
    third = recorder.call("three", "write", 6)
    recorder.call("four", "write", 7)
    recorder.ok(second, 5)
    recorder.unknown(first)
    recorder.fail(third)
    assert recorder.history() == [
        Operation("one", 0, math.inf, "write", (5,), Outcome.UNKNOWN, None, "k"),
        Operation("two", 1, 4, "read", (), Outcome.OK, 5, "k"),
        Operation("three", 2, 5, "write", (6,), Outcome.FAIL),
        Operation("four", 3, math.inf, "write", (7,), Outcome.UNKNOWN),
    ]
    with pytest.raises(ValueError, match="closed before"):
        recorder.ok(first)


def test_a_history_falls_into_the_parts_of_its_keys_in_order() -> None:
    history = [Operation(1, at, at + 1, "read", key=key) for at, key in enumerate("abab")]
    assert partition(history) == {"a": [history[0], history[2]], "b": [history[1], history[3]]}


@pytest.mark.parametrize(
    ("history", "kept"),
    [
        pytest.param([unknown("put", b"x")], 0, id="that nobody read"),
        pytest.param([unknown("delete")], 0, id="whose absence nobody saw"),
        pytest.param([unknown("get")], 0, id="that reads"),
        pytest.param(
            [unknown("put", b"x"), Operation(1, 11, 12, "get", (), result=Found(b"x"))], 1, id="read"
        ),
        pytest.param([unknown("delete"), Operation(1, 11, 12, "get", (), result=None)], 1, id="absence seen"),
        pytest.param(
            [unknown("put", b"x"), unknown("put", b"y", ("value", b"x"))],
            2,
            id="that another lost one expects",
        ),
        pytest.param(
            [unknown("put", b"x"), Operation(1, 11, 12, "put", (b"y", ("absent",)), result=Conflict(9))],
            1,
            id="that may be why a condition failed",
        ),
        pytest.param(
            [unknown("put", b"x"), Operation(1, 3, 9, "put", (b"y", ("absent",)), result=Conflict(9))],
            0,
            id="called after the condition had failed",
        ),
        pytest.param(
            [
                unknown("put", b"x"),
                Operation(1, 3, 9, "put", (b"z",), result=9),
                Operation(1, 11, 12, "put", (b"y", ("absent",)), result=Conflict(9)),
            ],
            0,
            id="where the condition failed on a version whose value is known",
        ),
        pytest.param([unknown("increment", 1)], 1, id="that depends on what was there"),
    ],
)
def test_of_the_unknown_operations_those_stay_that_may_explain_something(
    history: list[Operation], kept: int
) -> None:
    assert len(needed(history, KeyValue())[1]) == kept


def test_unknown_operations_that_nothing_tells_apart_are_twins() -> None:
    lost = [
        unknown("put", b"x"),
        unknown("put", b"y"),
        unknown("put", b"1"),
        unknown("increment", 1),
        unknown("put", b"z"),
        unknown("increment", 1),
        unknown("put", b"read"),
    ]
    read = Operation(1, 11, 12, "get", (), result=Found(b"read"))
    assert twins([read], lost, KeyValue()) == [-1, 0, -1, -1, 1, 3, -1]


def test_a_value_that_a_failed_compare_and_set_names_has_no_twin() -> None:
    lost = [unknown("write", 1), unknown("write", 2), unknown("write", 3)]
    failed = Operation(1, 11, 12, "cas", (2, 9), result=False)
    assert twins([failed], lost, Register()) == [-1, -1, 0]
