"""What clients of a register or of a key saw: operations with the times between which they took effect.

Owns the shape of a history and how it is recorded. Must not know what an operation means (`models`) or how a
history is judged (`checker`).

Times are numbers of one clock, of any unit. Two operations whose times touch count as concurrent, so a coarse
clock makes the judgement weaker, never wrong.
"""

from __future__ import annotations

import enum
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple


class Outcome(enum.Enum):
    """What the client knows about its operation."""

    OK = "ok"
    """It took effect once, and `result` is what it answered; a refusal that tells the state is an answer."""
    FAIL = "fail"
    """It had no effect and has told nothing."""
    UNKNOWN = "unknown"
    """It takes effect at some time after the call, or never."""


class Operation(NamedTuple):
    """One call of one client. An UNKNOWN one returns at infinity, whatever `returned` says."""

    process: Hashable
    called: float
    returned: float
    function: str
    arguments: tuple[Any, ...] = ()
    """Hashable."""
    outcome: Outcome = Outcome.OK
    result: Any = None
    """Hashable."""
    key: Hashable = None

    def __str__(self) -> str:
        arguments = ", ".join(map(repr, self.arguments))
        answer = repr(self.result) if self.outcome is Outcome.OK else self.outcome.value
        end = "" if self.outcome is Outcome.UNKNOWN else f"{self.returned:g}"
        return f"[{self.called:g}..{end}] {self.process}: {self.function}({arguments}) -> {answer}"


class Recorder:
    """Collects a history from any number of threads. `clock` is read at each call and at each return."""

    def __init__(self, clock: Callable[[], float] = time.monotonic_ns) -> None:
        self._clock = clock
        self._tickets = itertools.count()
        # One dict each, written once for each ticket: safe without a lock.
        self._open: dict[int, Operation] = {}
        self._closed: dict[int, Operation] = {}

    def call(self, process: Hashable, function: str, *arguments: Hashable, key: Hashable = None) -> int:
        """To be called before anything is sent; the ticket goes to `ok`, `fail` or `unknown`."""
        ticket = next(self._tickets)
        self._open[ticket] = Operation(
            process, self._clock(), math.inf, function, arguments, Outcome.UNKNOWN, None, key
        )
        return ticket

    def ok(self, ticket: int, result: Hashable = None) -> None:
        """It was answered."""
        self._close(ticket, self._clock(), Outcome.OK, result)

    def fail(self, ticket: int) -> None:
        """It is certain that it had no effect."""
        self._close(ticket, self._clock(), Outcome.FAIL, None)

    def unknown(self, ticket: int) -> None:
        """Nobody can say."""
        self._close(ticket, math.inf, Outcome.UNKNOWN, None)

    def history(self) -> list[Operation]:
        """All operations by the time of their call; those still open are UNKNOWN."""
        return sorted((self._open | self._closed).values(), key=attrgetter("called"))

    def _close(self, ticket: int, returned: float, outcome: Outcome, result: Hashable) -> None:
        if ticket in self._closed:
            raise ValueError(f"the operation was closed before: {self._closed[ticket]}")
        self._closed[ticket] = self._open[ticket]._replace(returned=returned, outcome=outcome, result=result)


def partition(
    history: Iterable[Operation], key: Callable[[Operation], Hashable] = attrgetter("key")
) -> dict[Hashable, list[Operation]]:
    """The operations of each key. A history is linearizable exactly if that of each object is (Herlihy and
    Wing 1990, section 3.2), and the parts are far cheaper to judge than the whole."""
    parts: dict[Hashable, list[Operation]] = defaultdict(list)
    for operation in history:
        parts[key(operation)].append(operation)
    return parts
