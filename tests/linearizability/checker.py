"""Whether a history is linearizable: some order of its operations, each between call and return, explains it.

Owns the search. Must not know what operations mean (`models`) or how they were recorded (`history`).

The algorithm is that of Wing and Gong (1993) as Lowe improved it (Testing for linearizability, 2017): walk
over the calls that come before the first return, take one that the model allows, lift it out of the linked
list of events, go on from the beginning; at a return without any such call, take the last one back. A
position (which operations are in, and the state) that was reached before leads nowhere new.

Three things are added for operations with an unknown outcome, which stay open for ever:
- They are not in the list. They are tried when no known operation is left to try, for in most orders they
  are not needed at all.
- One that writes whatever was there is only followed by one that depends on the value: otherwise it could as
  well be left out (see `reduction`). So it is tried only where an operation that can be next might need it.
- A position that was reached with a subset of them is as good as the new one, for it has more left to use. Of
  two that nothing tells apart, the one called first goes first.

The set of known operations is held as the number of the first one that is missing and the bits from there on,
so that a position costs what is concurrent there, and not the length of the history.
"""

from __future__ import annotations

import enum
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from operator import attrgetter
from typing import Final, NamedTuple

from tests.linearizability.history import Operation, partition
from tests.linearizability.models import BLIND, NOTHING, REFUSED, Model
from tests.linearizability.reduction import needed, twins

WORK_MAX: Final = 2_000_000
"""Steps of the search: about ten seconds. Each can add a position, of some 200 bytes."""

_LOOKS_PER_STEP_SHIFT = 4
"""A look at an unknown operation costs about a sixteenth of a step."""

_SHOWN = 6
"""Operations of the prefix that the text of an explanation lists."""


class Verdict(enum.Enum):
    """What can be said about a history."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "not linearizable"
    UNKNOWN = "undecided within the bound on work"


class Explanation(NamedTuple):
    """Where the longest order found ends."""

    prefix: tuple[Operation, ...]
    """As far as it goes, in the order in which it explains the history."""
    state: Hashable
    stuck: Operation
    """It has to take effect next at the latest, for it returns before any other, and nothing makes it fit."""
    open: tuple[Operation, ...]
    """All that were under way and could have been next, `stuck` among them."""

    def __str__(self) -> str:
        shown = self.prefix[-_SHOWN:]
        lines = [
            f"{len(self.prefix)} operations can be ordered, the last of them:",
            *(f"  {one}" for one in shown),
        ]
        lines += [f"then the state is {self.state!r}, and this one cannot be next:", f"  {self.stuck}"]
        others = [one for one in self.open if one is not self.stuck]
        if others:
            lines += ["nor after any of those that were open then:", *(f"  {one}" for one in others)]
        return "\n".join(lines)


class Judgement(NamedTuple):
    """A verdict, the steps that it took, and for a violation the key and where the search got stuck."""

    verdict: Verdict
    work: int
    key: Hashable = None
    explanation: Explanation | None = None

    def __str__(self) -> str:
        text = f"key {self.key!r}: {self.verdict.value} ({self.work} steps)"
        return text if self.explanation is None else f"{text}\n{self.explanation}"


def check(history: Iterable[Operation], model: Model, work_max: int = WORK_MAX) -> Judgement:
    """Judge the operations on one object. UNKNOWN after `work_max` steps."""
    known, unknown = needed(history, model)
    return _Search(known, unknown, model).run(work_max)


def check_by_key(
    history: Iterable[Operation],
    model: Model,
    key: Callable[[Operation], Hashable] = attrgetter("key"),
    work_max: int = WORK_MAX,
) -> Judgement:
    """Judge each key's operations on their own: the first violation, otherwise the first UNKNOWN, otherwise
    LINEARIZABLE. `work_max` is for each key; the judgement has the work of all.
    """
    work = 0
    undecided: Judgement | None = None
    for name, part in partition(history, key).items():
        judgement = check(part, model, work_max)._replace(key=name)
        work += judgement.work
        if judgement.verdict is Verdict.VIOLATION:
            return judgement._replace(work=work)
        if judgement.verdict is Verdict.UNKNOWN and undecided is None:
            undecided = judgement
    return (undecided or Judgement(Verdict.LINEARIZABLE, 0))._replace(work=work)


class _Frame(NamedTuple):
    """What was before a choice, to take it back and go on with the next one."""

    entry: int
    """The event at which the choice was made: the call of a known operation, or a return."""
    chosen: int
    """The number of the unknown operation, -1 if the choice is the known one of `entry`."""
    others: list[int]
    """Unknown operations to try after `chosen`, the next one last."""
    first: int
    window: int
    used: int
    state: Hashable
    seen_next: bool


class _Search:
    """Event i is the call of known operation i, event count + i its return."""

    def __init__(self, known: list[Operation], unknown: list[Operation], model: Model) -> None:
        self._known = known
        self._unknown = unknown
        self._model = model
        sights = model.sights(known + unknown)
        self._sights, self._unknown_sights = sights[: len(known)], sights[len(known) :]
        self._twins = twins(known, unknown, model)
        values = [model.blind_write(operation) for operation in unknown]
        self._blind = {number for number, value in enumerate(values) if value is not NOTHING}
        self._dependent = [number for number in range(len(unknown)) if number not in self._blind]
        self._writers: dict[Hashable, list[int]] = defaultdict(list)
        for number in sorted(self._blind):
            self._writers[values[number]].append(number)
        self._following: list[int] = []
        self._preceding: list[int] = []
        self._link()
        # Position (first, window, seen next, state) -> the sets of unknown operations it was reached with.
        self._reached: dict[tuple[int, int, bool, Hashable], list[int]] = {}
        self._longest: tuple[list[_Frame], int, Hashable] | None = None
        self._ordered_most = -1

    def run(self, work_max: int) -> Judgement:
        step, known, unknown, sights = self._model.step, self._known, self._unknown, self._sights
        following, count, head = self._following, len(self._known), 2 * len(self._known)
        frames: list[_Frame] = []
        others: list[int] | None = None  # not looked for yet
        first = window = used = work = 0
        seen_next = False  # the next operation has to depend on the value: a blind unknown write was the last
        state = self._model.initial
        left = count
        entry = following[head]
        while left:
            work += 1
            if work > work_max:
                return Judgement(Verdict.UNKNOWN, work_max)
            if entry < count:
                if not (seen_next and sights[entry] == BLIND):
                    after = step(state, known[entry])
                    if after is not REFUSED:
                        advanced = _with(first, window, entry)
                        if self._is_new(*advanced, False, used, after):
                            frames.append(_Frame(entry, -1, [], first, window, used, state, seen_next))
                            self._lift(entry)
                            left -= 1
                            (first, window), state, seen_next = advanced, after, False
                            entry, others = following[head], None
                            continue
                entry = following[entry]
                continue
            if others is None:
                others = self._worth_trying(state, used, known[entry - count].returned, seen_next)
                work += len(self._dependent) >> _LOOKS_PER_STEP_SHIFT
            if others:
                chosen = others.pop()
                after = step(state, unknown[chosen])
                blind = chosen in self._blind
                if after is not REFUSED and self._is_new(first, window, blind, used | 1 << chosen, after):
                    frames.append(_Frame(entry, chosen, others, first, window, used, state, seen_next))
                    used, state, seen_next = used | 1 << chosen, after, blind
                    entry, others = following[head], None
                continue
            if count - left > self._ordered_most:
                self._ordered_most = count - left
                self._longest = (frames.copy(), entry - count, state)
            if not frames:
                return Judgement(Verdict.VIOLATION, work, explanation=self._explain())
            entry, chosen, others, first, window, used, state, seen_next = frames.pop()
            if chosen < 0:
                self._unlift(entry)
                left += 1
                entry, others = following[entry], None
        return Judgement(Verdict.LINEARIZABLE, work)

    def _link(self) -> None:
        """The events in the order of time as a doubly linked list. Calls come before returns of the same
        time, for such operations are concurrent."""
        count = len(self._known)
        events = [(operation.called, 0, number) for number, operation in enumerate(self._known)]
        events += [(operation.returned, 1, count + number) for number, operation in enumerate(self._known)]
        order = [2 * count, *(event for _, _, event in sorted(events)), 2 * count + 1]
        self._following = [0] * (2 * count + 2)
        self._preceding = [0] * (2 * count + 2)
        for before, after in itertools.pairwise(order):
            self._following[before] = after
            self._preceding[after] = before

    def _lift(self, entry: int) -> None:
        following, preceding = self._following, self._preceding
        for event in (entry, entry + len(self._known)):
            following[preceding[event]] = following[event]
            preceding[following[event]] = preceding[event]

    def _unlift(self, entry: int) -> None:
        """What _lift did, backwards: each event still knows its neighbours."""
        following, preceding = self._following, self._preceding
        for event in (entry + len(self._known), entry):
            following[preceding[event]] = event
            preceding[following[event]] = event

    def _worth_trying(self, state: Hashable, used: int, until: float, seen_next: bool) -> list[int]:
        """The unknown operations that were called by `until`, are unused and may help, the first one last."""

        def free(number: int) -> bool:
            twin = self._twins[number]
            return (
                not used >> number & 1
                and self._unknown[number].called <= until
                and (twin < 0 or bool(used >> twin & 1))
            )

        if not self._unknown:
            return []
        candidates = self._candidates()
        if any(self._model.too_late(state, self._known[number]) for number in candidates):
            return []
        dependent = list(filter(free, self._dependent))
        if seen_next or not self._blind:
            return dependent[::-1]
        wanted = [self._unknown_sights[number] for number in dependent]
        wanted += [self._sights[number] for number in candidates]
        numbers: Iterable[int] = self._blind
        if None not in wanted:
            values = {value for sight in wanted if sight is not None for value in sight}
            numbers = itertools.chain.from_iterable(self._writers.get(value, ()) for value in values)
        return [*sorted(filter(free, numbers), reverse=True), *reversed(dependent)]

    def _candidates(self) -> list[int]:
        """The known operations that were called before the first return; one of them has to be next."""
        count, entry = len(self._known), self._following[2 * len(self._known)]
        candidates = []
        while entry < count:
            candidates.append(entry)
            entry = self._following[entry]
        return candidates

    def _is_new(self, first: int, window: int, seen_next: bool, used: int, state: Hashable) -> bool:
        """Whether the position was not reached before with the same unknown operations or fewer; notes it."""
        sets = self._reached.setdefault((first, window, seen_next, state), [])
        for other in sets:
            if other & used == other:
                return False
        sets.append(used)
        return True

    def _explain(self) -> Explanation:
        assert self._longest is not None
        frames, number, state = self._longest
        known, unknown = self._known, self._unknown
        prefix = tuple(known[frame.entry] if frame.chosen < 0 else unknown[frame.chosen] for frame in frames)
        ordered = set(map(id, prefix))
        stuck = known[number]
        under_way = tuple(
            one for one in known + unknown if id(one) not in ordered and one.called <= stuck.returned
        )
        return Explanation(prefix, state, stuck, under_way)


def _with(first: int, window: int, number: int) -> tuple[int, int]:
    """The set with `number` in it; the bits up to the first that is missing are shifted out."""
    window |= 1 << (number - first)
    full = (~window & (window + 1)).bit_length() - 1
    return first + full, window >> full
