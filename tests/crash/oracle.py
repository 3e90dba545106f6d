"""What the crash oracles share: a life of something durable, the crashes in it, and the lives that follow
from each of them, in which the next crash comes.

Must not know what lives: a `Life` does the work and checks what it finds, an `Oracle` says how much there is
of everything. Which states a crash may leave is told in crashvfs.py. What is chosen follows from one seed,
and a failure names it.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from storenode.engine.vfs import Vfs
from tests.crash.crashvfs import Crash, CrashVfs, Step

STATES_LONG = int(os.environ.get("RINGKV_CRASH_STATES", "10000"))
"""For the long test of each oracle."""

LOSSES = 2
"""How often the power is lost in each crash: a crash allows many states."""

STEPS_AFTER_CRASH = 12
"""At most; what a crash has spoilt shows soon."""

Expected = TypeVar("Expected")


class Life(ABC, Generic[Expected]):
    """From opening to closing. `crashes`: those that were taken, each with what is expected after it."""

    unsynced: ClassVar[float] = 3
    """How much more often than anywhere else a crash comes between a write and its sync."""

    def __init__(self, vfs: Vfs, directory: str, dice: random.Random) -> None:
        self.vfs = vfs
        self.directory = directory
        self.dice = dice
        self.crashes: list[tuple[Crash, Expected]] = []

    def watch(self, chance: float, most: int) -> None:
        """Take a crash at each step with this chance, but only so many."""
        assert isinstance(self.vfs, CrashVfs)
        chooser = random.Random(self.dice.random())  # of its own: workers call, too

        def hook(vfs: CrashVfs, step: Step) -> None:
            likely = self.unsynced if (step.when, step.kind) == ("before", "sync") else 1
            if len(self.crashes) < most and chooser.random() < chance * likely:
                expected = self.expected()
                self.crashes.append((vfs.crash(step), expected))

        self.vfs.hook = hook

    def end(self) -> None:
        """Close, and take no more crashes."""
        self.close()
        if isinstance(self.vfs, CrashVfs):
            self.vfs.hook = None

    @abstractmethod
    def expected(self) -> Expected:
        """What may be found after a crash of now, or when this life has ended. Does not change later."""

    @abstractmethod
    def open(self) -> None:
        """Recover, and find what is expected."""

    @abstractmethod
    def act(self, steps: int) -> None:
        """Random work."""

    @abstractmethod
    def close(self) -> None:
        """End cleanly."""


LifeT = TypeVar("LifeT", bound=Life[Any])


class Watch(NamedTuple):
    """See `Life.watch`."""

    chance: float
    most: int


class Plan(NamedTuple):
    """How much there is of everything."""

    steps: tuple[int, int]
    """Of work in the first life."""
    first: Watch
    later: Watch
    """In a life after a crash that is not the last one in a row."""
    kills: float
    """How often a crash is also the death of the process alone."""
    twins: float
    """How often another crash follows on a loss of power."""
    crashes: int
    """In a row: all but the first hit a recovery, or what comes soon after it."""


class Oracle(ABC, Generic[LifeT, Expected]):
    """Lives and crashes from one seed."""

    plan: ClassVar[Plan]

    def __init__(self, seed: int, place: Path) -> None:
        self.dice = random.Random(seed)
        self.place = place
        self.options = self.random_options()
        self.states = 0
        self.story: list[str] = []

    @abstractmethod
    def random_options(self) -> Any:
        """For all lives."""

    @abstractmethod
    def life(self, vfs: Vfs, directory: str, expected: Expected | None) -> LifeT:
        """One life that has not been opened. `expected`: None where there is nothing yet."""

    def go_on(self, life: LifeT) -> None:
        """What a life does after it has recovered."""
        life.act(self.dice.randint(0, STEPS_AFTER_CRASH))

    def first_life(self) -> LifeT:
        """In an empty directory of its own."""
        directory = self.new_directory()
        os.mkdir(directory)
        return self.life(CrashVfs(directory), directory, None)

    def run(self) -> None:
        """One life from nothing, and everything that its crashes lead to."""
        life = self.first_life()
        life.watch(*self.plan.first)
        life.open()
        life.act(self.dice.randint(*self.plan.steps))
        life.end()
        self.descend(life, self.plan.crashes - 1)

    def descend(self, life: LifeT, more: int) -> None:
        """Everything that the crashes of a life lead to, with so many more crashes in a row."""
        shutil.rmtree(life.directory)
        for crash, expected in life.crashes:
            step = crash.step
            self.story.append(f"crash {step.when} {step.kind} {os.path.basename(step.path)}")
            for _ in range(LOSSES):
                self.after_power_loss(crash, expected, more)
            if self.dice.random() < self.plan.kills:
                self.after_kill(crash, expected, more)
            self.story.pop()

    def after_power_loss(self, crash: Crash, expected: Expected, more: int) -> None:
        directory = self.new_directory()
        crash.lose_power(directory, self.dice)
        if more > 0 and self.dice.random() < self.plan.twins:
            self.again(CrashVfs(directory), directory, expected, more)
        else:
            self.again(Vfs(), directory, expected, 0)

    def after_kill(self, crash: Crash, expected: Expected, more: int) -> None:
        directory = self.new_directory()
        self.again(crash.restart(directory, self.dice), directory, expected, more)

    def again(self, vfs: Vfs, directory: str, expected: Expected, more: int) -> None:
        """Recover, go on, end; and see that this, too, lasts."""
        self.states += 1
        life = self.life(vfs, directory, expected)
        if more > 0:
            life.watch(*self.plan.later)
        life.open()
        self.go_on(life)
        life.end()
        final = self.life(Vfs(), directory, life.expected())
        final.open()
        final.close()
        self.descend(life, more - 1)

    def new_directory(self) -> str:
        return tempfile.mktemp(dir=self.place)


def run_states(make: Callable[[int, Path], Oracle[Any, Any]], wanted: int, seed: int, place: Path) -> None:
    """Oracles of one seed after the other until so many states were checked."""
    states = 0
    while states < wanted:
        oracle = make(seed, place)
        try:
            oracle.run()
        except Exception as error:
            where = f"seed {seed}, state {states + oracle.states}, {' / '.join(oracle.story)}"
            raise AssertionError(f"{where}, {oracle.options}: {error}") from error
        states += oracle.states
        seed += 1
