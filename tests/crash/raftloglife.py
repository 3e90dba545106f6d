"""One life of a Raft log on the crash twin: random work, what each batch must lead to, and the crashes taken.

The model is told apart from the code under test: whole dictionaries of entries, copied for every batch.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import NamedTuple

from storenode.engine.vfs import Vfs
from storenode.raft.messages import Entry, HardState
from storenode.raftlog import RaftLog, Record, Written
from tests.crash.oracle import Life

NODE = 7
GROUPS = 4


class GroupModel:
    """What a group's log must hold."""

    def __init__(self) -> None:
        self.hard = HardState(0, 0, 0)
        self.cut = (0, 0)
        self.entries: dict[int, Entry] = {}

    @property
    def last(self) -> int:
        return max(self.entries, default=self.cut[0])

    def term(self, index: int) -> int:
        return self.cut[1] if index == self.cut[0] else self.entries[index].term

    def take(self, record: Record) -> None:
        if record.hard is not None:
            self.hard = record.hard
        if record.cut is not None and record.cut[0] >= self.cut[0]:
            index, term = record.cut
            holds = index <= self.last and self.term(index) == term
            self.entries = {at: entry for at, entry in self.entries.items() if holds and at > index}
            self.cut = record.cut
        if record.entries:
            self.entries = {at: entry for at, entry in self.entries.items() if at < record.first_index}
            self.entries.update(enumerate(record.entries, record.first_index))

    @property
    def seen(self) -> object:
        return self.hard, self.cut, self.last, sorted(self.entries.items())


Model = dict[int, GroupModel]


def took(model: Model, records: Sequence[Record]) -> Model:
    model = copy.copy(model)
    for record in records:
        if record.entries is None:
            model.pop(record.group, None)
            continue
        group = model[record.group] = copy.copy(model.get(record.group) or GroupModel())
        group.take(record)
    return model


def seen(model: Model) -> dict[int, object]:
    """What is observable; a group that has said nothing is the same as none."""
    nothing = GroupModel().seen
    return {number: group.seen for number, group in model.items() if group.seen != nothing}


def observed(log: RaftLog) -> Model:
    """What the log says, every entry read by the API."""
    model: Model = {}
    for number in list(log.groups):
        group, found = log.group(number), GroupModel()
        found.hard = group.hard_state
        cut = group.first_index - 1
        found.cut = (cut, group.term(cut))
        index = group.first_index
        while index <= group.last_index:
            part = group.entries(index, group.last_index + 1, 3000)
            assert part
            for entry in part:
                assert group.term(index) == entry.term
                found.entries[index] = entry
                index += 1
        model[number] = found
    return model


class Allowed(NamedTuple):
    """What a crash may lead to: the state when the last write returned, and that of a write under way."""

    models: list[Model]


class Options(NamedTuple):
    segment_bytes: int
    cache_bytes: int


def random_options(dice: random.Random) -> Options:
    return Options(dice.choice((200, 700, 2000, 4096, 9000, 40000)), dice.choice((0, 2000, 1 << 20)))


class RaftLogLife(Life[Allowed]):
    """One log from opening to closing."""

    unsynced = 1
    """A write and its sync are half of all steps anyway."""

    def __init__(
        self, vfs: Vfs, directory: str, options: Options, allowed: Allowed, dice: random.Random
    ) -> None:
        super().__init__(vfs, directory, dice)
        self.options = options
        self.allowed = allowed
        self.term = 1

    def expected(self) -> Allowed:
        return self.allowed

    def open(self) -> None:
        self.log = RaftLog(
            self.vfs,
            self.directory + "/raft",
            NODE,
            segment_bytes=self.options.segment_bytes,
            cache_bytes=self.options.cache_bytes,
        )
        found = observed(self.log)
        assert seen(found) in [seen(model) for model in self.allowed.models], (
            f"found {seen(found)}, allowed {[seen(model) for model in self.allowed.models]}"
        )
        self.model = found
        self.allowed = Allowed([found])
        self.term = (
            max([1, *(entry.term for group in found.values() for entry in group.entries.values())]) + 1
        )

    def close(self) -> None:
        self.log.close()

    def act(self, times: int) -> None:
        for _ in range(times):
            choice = self.dice.random()
            if choice < 0.12:
                self.log.collect()
            elif choice < 0.16:
                self.close_and_open()
            else:
                self.write(
                    [record for _ in range(self.dice.choice((0, 1, 1, 2, 5))) for record in self.records()]
                )
            if self.dice.random() < 0.05:
                self.term += 1
        assert seen(observed(self.log)) == seen(self.model)

    def close_and_open(self) -> None:
        self.close()
        self.open()

    def records(self) -> list[Record]:
        """Of one group, fitting behind `self.planned`."""
        dice = self.dice
        number = dice.randrange(GROUPS)
        model = self.planned.get(number) or GroupModel()
        choice = dice.random()
        if choice < 0.03:
            made = self.log.forget(number)
        else:
            hard = HardState(self.term, dice.randrange(3), model.last) if dice.random() < 0.5 else None
            cut = self.cut(model, choice) if choice < 0.3 else None
            after = took({number: model}, [Record(number, None, cut, 0, [])])[number]
            first = after.last + 1
            if dice.random() < 0.2:
                first = dice.randint(after.cut[0] + 1, first)
            entries = [self.entry() for _ in range(dice.choice((0, 1, 1, 2, 8)))]
            made = Record(number, hard, cut, first if entries else 0, entries)
        self.planned = took(self.planned, [made])
        return [made]

    def cut(self, model: GroupModel, choice: float) -> tuple[int, int]:
        """Forwards within the log, or a snapshot's: beyond it, or with another term."""
        if choice < 0.05:
            return model.last + self.dice.randint(1, 5), self.term
        index = self.dice.randint(model.cut[0], model.last)
        return index, model.term(index) if choice < 0.27 or index == model.cut[0] else self.term + 1

    def entry(self) -> Entry:
        size = self.dice.choice((0, 1, 30, 30, 100, 700, 5000))
        return Entry(self.term, self.dice.randrange(2), self.dice.randbytes(size))

    @property
    def planned(self) -> Model:
        return self._planned if self._planned is not None else self.model

    @planned.setter
    def planned(self, model: Model) -> None:
        self._planned = model

    _planned: Model | None = None

    def write(self, records: list[Record]) -> Written:
        after = took(self.model, records)
        self.allowed = Allowed([self.model, after])
        written = self.log.write(records)
        self.allowed = Allowed([after])
        self.log.installed(written)
        self.model, self._planned = after, None
        return written
