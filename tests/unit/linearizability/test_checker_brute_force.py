"""The linearizability checker on histories made at random: against brute force, and against their making."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linearizability.checker import Verdict, check
from tests.linearizability.history import Operation, Outcome
from tests.linearizability.models import (
    NOT_AN_INTEGER,
    REFUSED,
    Conflict,
    Found,
    KeyValue,
    Model,
    Register,
)

REGISTER = Register()
KEY = KeyValue()
Call = tuple[str, tuple[Hashable, ...], Hashable]


def may_be_next(operation: Operation, rest: list[Operation]) -> bool:
    """Whether nothing in `rest` had returned when it was called."""
    return all(
        other is operation or other.outcome is Outcome.UNKNOWN or operation.called <= other.returned
        for other in rest
    )


def explained(state: Hashable, rest: list[Operation], model: Model) -> bool:
    """Whether some order of `rest`, of which unknown ones may be missing, is possible from `state`."""
    if all(operation.outcome is Outcome.UNKNOWN for operation in rest):
        return True
    for operation in rest:
        if may_be_next(operation, rest):
            after = model.step(state, operation)
            others = [other for other in rest if other is not operation]
            if after is not REFUSED and explained(after, others, model):
                return True
    return False


def brute_force(history: list[Operation], model: Model) -> bool:
    return explained(
        model.initial,
        [
            one
            for one in history
            if one.outcome is Outcome.OK
            or (one.outcome is Outcome.UNKNOWN and one.function not in model.reads)
        ],
        model,
    )


VALUES = st.integers(0, 2)
REGISTER_CALLS = st.one_of(
    st.tuples(st.just("read"), st.just(()), st.one_of(st.none(), VALUES)),
    st.tuples(st.just("write"), st.tuples(VALUES), st.just(None)),
    st.tuples(st.just("cas"), st.tuples(VALUES, VALUES), st.booleans()),
)
KEY_VALUES = st.sampled_from([b"1", b"2", b"x"])
VERSIONS = st.integers(1, 4)
CONDITIONS = st.one_of(
    st.none(),
    st.sampled_from([("absent",), ("present",)]),
    st.tuples(st.just("version"), VERSIONS),
    st.tuples(st.just("value"), KEY_VALUES),
)
CONFLICTS = st.builds(Conflict, st.integers(0, 4))


def conditional(
    function: str, arguments: list[st.SearchStrategy[Hashable]], answer: st.SearchStrategy[Hashable]
) -> st.SearchStrategy[tuple[str, tuple[Hashable, ...], Hashable]]:
    return CONDITIONS.flatmap(
        lambda condition: st.tuples(
            st.just(function),
            st.tuples(*arguments, st.just(condition)),
            answer if condition is None else st.one_of(answer, CONFLICTS),
        )
    )


KEY_CALLS = st.one_of(
    st.tuples(
        st.just("get"), st.just(()), st.one_of(st.none(), st.builds(Found, KEY_VALUES, st.none() | VERSIONS))
    ),
    conditional("put", [KEY_VALUES], st.none() | VERSIONS),
    conditional("delete", [], st.booleans()),
    st.tuples(st.just("increment"), st.tuples(st.just(1)), st.sampled_from([1, 2, 3, NOT_AN_INTEGER])),
)


def histories(
    calls: st.SearchStrategy[tuple[str, tuple[Hashable, ...], Hashable]], size: int
) -> st.SearchStrategy[list[Operation]]:
    outcomes = st.sampled_from([Outcome.OK, Outcome.OK, Outcome.OK, Outcome.UNKNOWN, Outcome.FAIL])
    operation = st.builds(
        lambda called, lasts, call, outcome: Operation(
            0, called, called + lasts, call[0], call[1], outcome, call[2] if outcome is Outcome.OK else None
        ),
        st.integers(0, 8),
        st.integers(0, 5),
        calls,
        outcomes,
    )
    return st.lists(operation, max_size=size)


@settings(max_examples=400)
@given(histories(REGISTER_CALLS, 6))
def test_a_small_history_of_a_register_is_judged_as_by_brute_force(history: list[Operation]) -> None:
    assert (check(history, REGISTER).verdict is Verdict.LINEARIZABLE) == brute_force(history, REGISTER)


@settings(max_examples=400)
@given(histories(KEY_CALLS, 6))
def test_a_small_history_of_a_key_is_judged_as_by_brute_force(history: list[Operation]) -> None:
    assert (check(history, KEY).verdict is Verdict.LINEARIZABLE) == brute_force(history, KEY)


class CorrectKey:
    """A key that takes each call at one instant, and what its clients see. Each client calls once a round, at
    some time before its instant, and returns some time after it, within the round. Of the writes a share of
    `lost` has an unknown outcome, and half of those happen.
    """

    def __init__(self, seed: int, lost: float = 0.0, conditions: bool = True) -> None:
        self._source = random.Random(seed)
        self._lost = lost
        self._conditions = conditions
        self._value: bytes | None = None
        self._version = 0
        self._next = 1

    def history(self, rounds: int, clients: int) -> list[Operation]:
        uniform = self._source.uniform
        history = []
        for number in range(rounds):
            for instant in sorted(uniform(number, number + 1) for _ in range(clients)):
                times = uniform(number, instant), uniform(instant, number + 1)
                history.append(self._operation(len(history) % clients, *times))
        return history

    def _operation(self, client: int, called: float, returned: float) -> Operation:
        kind = self._source.random()
        if kind < 0.5:
            found = None if self._value is None else Found(self._value, self._version)
            return Operation(client, called, returned, "get", (), result=found)
        lost = self._source.random() < self._lost
        happens = not lost or self._source.random() < 0.5
        function, arguments = "delete", ()
        if kind < 0.95:
            function, arguments = "put", self._put_arguments()
        result = self._write(function, arguments) if happens else None
        outcome = Outcome.UNKNOWN if lost else Outcome.OK
        return Operation(client, called, returned, function, arguments, outcome, None if lost else result)

    def _put_arguments(self) -> tuple[Hashable, ...]:
        value = b"value %d" % self._next
        if not self._conditions or self._value is None or self._source.random() < 0.7:
            return (value,)
        return value, ("version", self._version - self._source.choice([0, 0, 1]))

    def _write(self, function: str, arguments: tuple[Hashable, ...]) -> Hashable:
        self._next += 1
        if function == "delete":
            there, self._value = self._value is not None, None
            return there
        if len(arguments) == 2 and arguments[1] != ("version", self._version):
            return Conflict(self._version)
        assert isinstance(arguments[0], bytes)
        self._value, self._version = arguments[0], self._next
        return self._version


def stale_read(history: list[Operation]) -> list[Operation]:
    """The same with one late get that answers what an early one found, though that was overwritten since."""
    gets = [at for at, one in enumerate(history) if one.function == "get" and one.result is not None]
    early, late = gets[len(gets) // 3], gets[-len(gets) // 3]
    assert history[early].result != history[late].result
    return [
        one._replace(result=history[early].result) if at == late else one for at, one in enumerate(history)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lost", [0.0, 0.05])
def test_what_a_correct_key_answers_is_linearizable_and_a_stale_read_in_it_is_not(
    seed: int, lost: float
) -> None:
    history = CorrectKey(seed, lost).history(rounds=60, clients=5)
    assert check(history, KEY).verdict is Verdict.LINEARIZABLE
    assert check(stale_read(history), KEY).verdict is Verdict.VIOLATION


@pytest.mark.parametrize("lost", [0.0, 0.02])
def test_ten_thousand_operations_of_eight_clients_take_few_steps_each(lost: float) -> None:
    history = CorrectKey(1, lost).history(rounds=1250, clients=8)
    judgement = check(history, KEY)
    assert judgement.verdict is Verdict.LINEARIZABLE
    assert judgement.work < 50 * len(history)
