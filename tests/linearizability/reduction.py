"""Which operations of a history its judgement does not need.

Owns the step before the search. Each operation with an unknown outcome doubles what has to be searched, for
it stays open for ever, and a history with faults has hundreds of them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator

from tests.linearizability.history import Operation, Outcome
from tests.linearizability.models import NOTHING, Model


def needed(history: Iterable[Operation], model: Model) -> tuple[list[Operation], list[Operation]]:
    """The operations that must have taken effect, and those that may have, each by the time of its call.

    Left out is what failed, reads with an unknown outcome, and the unknown writes that explain nothing.
    """
    part = sorted(
        (operation for operation in history if operation.outcome is not Outcome.FAIL),
        key=lambda operation: operation.called,
    )
    known = [operation for operation in part if operation.outcome is Outcome.OK]
    backwards = [operation for operation in known if operation.returned < operation.called]
    if backwards:
        raise ValueError(f"an operation returned before it was called: {backwards[0]}")
    unknown = [
        operation
        for operation in part
        if operation.outcome is Outcome.UNKNOWN and operation.function not in model.reads
    ]
    return known, _seen(known, unknown, model)


def _seen(known: list[Operation], unknown: list[Operation], model: Model) -> list[Operation]:
    """Without the blind unknown writes whose value nobody can have met.

    Such a write W of value v can be left out, whatever the other operations are, if
    - no operation has v among the values that it needs to find, and
    - every operation that depends on the value in a way that the model cannot list (a compare-and-set that
      failed, an increment) had returned before W was called.

    For take any order that explains the history and contains W, and the operation that follows W in it. It
    runs on v, so it is none that needs another value, and none of the second kind, for those come before W.
    What remains is one that does the same on every value (or an unknown delete, which may be left out as well
    if nothing is there without W). So W can be taken out of the order, and it still explains the history. The
    other direction holds for any unknown operation: it may never take effect.

    With values that are written once each, as tests should write them, that is every unknown write that
    nobody read.
    """
    met: set[Hashable] = set()
    depends_until = -math.inf
    everything = known + unknown
    for operation, sight in zip(everything, model.sights(everything), strict=True):
        if sight is not None:
            met |= sight
        else:
            depends_until = max(depends_until, _end(operation))
    kept = []
    for operation in unknown:
        value = model.blind_write(operation)
        if value is NOTHING or value in met or operation.called <= depends_until:
            kept.append(operation)
    return kept


def _end(operation: Operation) -> float:
    return math.inf if operation.outcome is Outcome.UNKNOWN else operation.returned


def twins(known: list[Operation], unknown: list[Operation], model: Model) -> list[int]:
    """For each unknown operation the last one before it that does the same, -1 if there is none.

    The search may always use the earlier of two: where an order has the later one and not the earlier, or has
    it first, they can change places. Two blind writes do the same also if their values differ, as long as
    nothing met or named either and the model holds them to be alike.
    """
    everything = known + unknown
    met: set[Hashable] = set()
    for operation, sight in zip(everything, model.sights(everything), strict=True):
        met.update(_flat(operation.arguments) if sight is None else sight)
    last: dict[Hashable, int] = {}
    before = []
    for number, operation in enumerate(unknown):
        value = model.blind_write(operation)
        does: Hashable = (operation.function, operation.arguments)
        if value is not NOTHING and value not in met:
            does = model.alike(value)
        before.append(last.get(does, -1))
        last[does] = number
    return before


def _flat(arguments: tuple[Hashable, ...]) -> Iterator[Hashable]:
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _flat(argument)
        else:
            yield argument
