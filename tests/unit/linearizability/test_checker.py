"""The linearizability checker, judged by histories that Jepsen recorded and by hand-made ones."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from pathlib import Path

import pytest

from tests.linearizability.checker import Verdict, check, check_by_key
from tests.linearizability.history import Operation, Outcome
from tests.linearizability.models import Register

REGISTER = Register()
LINE = re.compile(r"INFO\s+jepsen\.util - (\d+)\s+:(invoke|ok|fail|info)\s+:(read|write|cas)\s+(.+)")


def oracles() -> Path | None:
    for parent in Path(__file__).resolve().parents:
        found = parent / "shared" / "oracles" / "linearizability"
        if found.is_dir():
            return found
    return None


ORACLES = oracles()


def verdicts() -> list[tuple[str, bool]]:
    if ORACLES is None:
        return []
    rows = (line.split() for line in (ORACLES / "verdicts.txt").read_text().splitlines() if line.strip())
    return [(name, {"true": True, "false": False}[verdict]) for name, verdict in rows]


def jepsen(path: Path) -> list[Operation]:
    """A history that Jepsen recorded; the number of a line is its time. A compare-and-set that failed has
    seen another value, which is an answer; a read that timed out tells nothing."""
    history: list[Operation] = []
    open_calls: dict[str, Operation] = {}
    for now, line in enumerate(path.read_text().splitlines()):
        match = LINE.fullmatch(line.strip())
        if match is None:
            continue
        process, event, function, value = match.groups()
        values = tuple(None if word == "nil" else int(word) for word in re.findall(r"-?\d+|nil", value))
        if event == "invoke":
            arguments = () if function == "read" else values
            open_calls[process] = Operation(process, now, math.inf, function, arguments, Outcome.UNKNOWN)
            continue
        call = open_calls.pop(process)
        if event == "ok":
            result: Hashable = values[0] if function == "read" else True
            history.append(call._replace(returned=now, outcome=Outcome.OK, result=result))
        elif event == "fail" and function == "cas":
            history.append(call._replace(returned=now, outcome=Outcome.OK, result=False))
        elif event == "info":
            history.append(call)
    return history + list(open_calls.values())


@pytest.mark.skipif(ORACLES is None, reason="no shared/oracles/linearizability beside the repository")
def test_every_history_of_the_oracle_has_a_verdict_and_both_verdicts_occur() -> None:
    assert ORACLES is not None
    assert {name for name, _ in verdicts()} == {path.name for path in ORACLES.glob("*.log")}
    assert len(verdicts()) > 50
    assert {verdict for _, verdict in verdicts()} == {True, False}


@pytest.mark.parametrize(("name", "linearizable"), verdicts())
def test_the_verdict_is_that_of_the_oracle_for(name: str, linearizable: bool) -> None:
    assert ORACLES is not None
    history = jepsen(ORACLES / name)
    assert len(history) > 20
    judgement = check(history, REGISTER)
    assert judgement.verdict is (Verdict.LINEARIZABLE if linearizable else Verdict.VIOLATION)


def timeline(picture: str) -> list[Operation]:
    """One line for each operation of a register: dashes from call to return, `>` at the end if the outcome is
    unknown, then `w1`, `r1`, `rnil` or `c1:2=ok`."""
    history = []
    for line in picture.strip("\n").splitlines():
        span, text = re.fullmatch(r"( *-+>?) +(\S+)", line.rstrip()).groups()  # type: ignore[union-attr]
        called, returned = span.index("-"), len(span)
        outcome = Outcome.UNKNOWN if span.endswith(">") else Outcome.OK
        values = [None if word == "nil" else int(word) for word in re.findall(r"nil|\d+", text)]
        function = {"w": "write", "r": "read", "c": "cas"}[text[0]]
        result: Hashable = values[0] if function == "read" else text.endswith("=ok")
        arguments = () if function == "read" else tuple(values)
        history.append(Operation(line, called, returned, function, arguments, outcome, result))
    return history


LINEARIZABLE = {
    "nothing happened": "",
    "a read of what was never written": "-- rnil",
    "a read that overlaps a write sees the old value": "----- w1\n  --  rnil",
    "a read that overlaps a write sees the new value": "----- w1\n --   r1",
    "two reads see two writes in their order": "------- w1\n ------ w2\n  --    r2\n     -- r1",
    "an unknown write takes effect late": "-> w1\n   -- rnil\n      -- r1",
    "an unknown write never takes effect": "-- w1\n   -> w2\n      -- r1\n         -- r1",
    "an unknown write takes effect after a later one": "-> w1\n   -- w2\n      -- r2\n         -- r1",
    "equal unknown writes take effect one by one": (
        "-> w1\n-> w1\n   -- r1\n      -- w2\n         -- r1\n            -- w2\n               -- r2"
    ),
    "a compare-and-set fails for a write that nobody read": (
        "-- w1\n   -> w2\n      -- c1:3=no\n         -- w4"
    ),
    "an unknown compare-and-set succeeds": "-- w1\n   -> c1:2\n      -- r2",
    "operations whose times touch are concurrent": "--- w1\n  -- rnil",
}
VIOLATIONS = {
    "a read of what was never written": "-- r1",
    "a stale read": "-- w1\n   -- rnil",
    "a read goes back": "---------- w1\n --        r1\n    --     rnil",
    "a write is lost": "-- w1\n   -- w2\n      -- r1",
    "an unknown write is seen before its call": "-- r1\n   -> w1",
    "an unknown write takes effect twice": (
        "-> w1\n   -- r1\n      -- w2\n         -- r1\n            -- w2\n               -- r1"
    ),
    "a compare-and-set succeeds twice": "-- w1\n   -- c1:2=ok\n      -- c1:2=ok",
    "a compare-and-set fails on what it expected": "-- w1\n   -- c1:2=no",
    "an unknown compare-and-set without its value": "-- w1\n   -> c3:2\n      -- r2",
}


@pytest.mark.parametrize("picture", LINEARIZABLE.values(), ids=LINEARIZABLE)
def test_this_is_linearizable(picture: str) -> None:
    assert check(timeline(picture), REGISTER).verdict is Verdict.LINEARIZABLE


@pytest.mark.parametrize("picture", VIOLATIONS.values(), ids=VIOLATIONS)
def test_this_is_not_linearizable(picture: str) -> None:
    assert check(timeline(picture), REGISTER).verdict is Verdict.VIOLATION


def test_an_operation_that_the_model_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="'append'"):
        check([Operation(1, 0, 1, "append", (1,))], REGISTER)


def test_an_operation_that_returns_before_its_call_is_an_error() -> None:
    with pytest.raises(ValueError, match="returned before it was called"):
        check([Operation(1, 5, 4, "write", (1,))], REGISTER)


def test_what_failed_has_no_effect() -> None:
    failed = Operation(1, 0, 1, "write", (1,), Outcome.FAIL)
    read = Operation(1, 2, 3, "read", (), result=1)
    assert check([failed, read], REGISTER).verdict is Verdict.VIOLATION
    assert check([failed, read._replace(result=None)], REGISTER).verdict is Verdict.LINEARIZABLE


def test_keys_are_judged_one_by_one_and_the_violation_names_its_key() -> None:
    good = [operation._replace(key="good") for operation in timeline("-- w1\n   -- r1")]
    bad = [operation._replace(key="bad") for operation in timeline("-- w1\n   -- rnil")]
    assert check_by_key(good, REGISTER).verdict is Verdict.LINEARIZABLE
    judgement = check_by_key(good + bad, REGISTER)
    assert (judgement.verdict, judgement.key) == (Verdict.VIOLATION, "bad")
    assert str(judgement).startswith("key 'bad': not linearizable")


def test_an_explanation_names_the_operation_that_does_not_fit_and_what_was_open() -> None:
    history = timeline("-- w1\n   -- w2\n      -------- w3\n       --  r3\n          -- r2")
    judgement = check(history, REGISTER)
    explanation = judgement.explanation
    assert explanation is not None
    assert [str(one.process).split()[-1] for one in explanation.prefix] == ["w1", "w2", "w3", "r3"]
    assert (explanation.state, explanation.stuck) == (3, history[4])
    assert explanation.open == (history[4],)
    assert "then the state is 3, and this one cannot be next:" in str(explanation)
    assert "read() -> 2" in str(explanation)


def test_the_search_ends_at_its_bound_and_says_that_it_does_not_know() -> None:
    history = [Operation(number, 0, 100, "write", (number,)) for number in range(12)]
    history.append(Operation("reader", 101, 102, "read", (), result=99))
    assert check(history, REGISTER, work_max=1000)[:2] == (Verdict.UNKNOWN, 1000)
    keyed = [operation._replace(key="busy") for operation in history]
    judgement = check_by_key([*keyed, Operation(1, 0, 1, "write", (1,), key="idle")], REGISTER, work_max=1000)
    assert (judgement.verdict, judgement.key) == (Verdict.UNKNOWN, "busy")
    assert check(history, REGISTER).verdict is Verdict.VIOLATION
