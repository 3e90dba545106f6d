"""A replica's engine against an oracle, after many crashes: power lost, or the process killed, at any step of
flushing, compacting, installing and recovering, and again while it recovers from that.

What must hold is told in replicalife.py, which states are legal in crashvfs.py.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from storenode.engine import open_replica
from storenode.engine.vfs import Vfs
from tests.crash.crashlife import differences, random_options
from tests.crash.crashvfs import Crash, CrashVfs, Step
from tests.crash.replicalife import Expected, ReplicaLife, nothing_yet, state_of
from tests.crash.test_engine_crash_oracle import place  # noqa: F401 - a fixture

STATES_DEFAULT = 200
STATES_LONG = int(os.environ.get("RINGKV_CRASH_STATES", "10000"))


class Oracle:
    """Lives and crashes from one seed."""

    def __init__(self, seed: int, place: Path) -> None:  # noqa: F811
        self.dice = random.Random(seed)
        self.place = place
        self.options = random_options(self.dice)
        self.states = 0
        self.story: list[str] = []

    def run(self) -> None:
        """One engine from nothing, and everything that its crashes lead to."""
        life = self.life(None, nothing_yet(), watch=(0.03, 24))
        life.open()
        life.act(self.dice.randint(10, 100))
        self.end(life)
        self.descend(life, 2)

    def descend(self, life: ReplicaLife, lives: int) -> None:
        shutil.rmtree(life.directory)
        for crash, expected in life.crashes:
            self.story.append(
                f"crash {crash.step.when} {crash.step.kind} {os.path.basename(crash.step.path)}"
            )
            for _ in range(2):
                self.after_power_loss(crash, expected, lives)
            if self.dice.random() < 0.25:
                directory = self.new_directory()
                self.again(crash.restart(directory, self.dice), directory, expected, lives)
            self.story.pop()

    def after_power_loss(self, crash: Crash, expected: Expected, lives: int) -> None:
        directory = self.new_directory()
        crash.lose_power(directory, self.dice)
        if lives > 1 and self.dice.random() < 0.15:
            self.again(CrashVfs(directory), directory, expected, lives)
        else:
            self.again(Vfs(), directory, expected, 0)

    def again(self, vfs: Vfs, directory: str, expected: Expected, lives: int) -> None:
        """Recover, apply the rest, close; and see that this, too, lasts."""
        self.states += 1
        life = ReplicaLife(vfs, directory, self.options, expected, self.dice)
        if lives > 1:
            life.watch(0.15, 6)
        life.open()
        while life.applied < len(life.log):
            life.entry()
        life.look()
        life.act(self.dice.randint(0, 12))
        self.end(life)
        final = ReplicaLife(
            Vfs(), directory, self.options, Expected(life.log, life.states, life.promised), self.dice
        )
        final.open()
        final.close()
        self.descend(life, lives - 1)

    def life(self, vfs: Vfs | None, expected: Expected, watch: tuple[float, int] | None) -> ReplicaLife:
        directory = self.new_directory()
        os.mkdir(directory)
        life = ReplicaLife(vfs or CrashVfs(directory), directory, self.options, expected, self.dice)
        if watch:
            life.watch(*watch)
        return life

    def end(self, life: ReplicaLife) -> None:
        life.close()
        if isinstance(life.vfs, CrashVfs):
            life.vfs.hook = None

    def new_directory(self) -> str:
        return tempfile.mktemp(dir=self.place)


def run_states(wanted: int, first_seed: int, place: Path, seconds: float) -> int:  # noqa: F811
    """Seeds until so many states were checked; fails with the seed that found something."""
    deadline = time.monotonic() + seconds
    states, seed = 0, first_seed
    while states < wanted and time.monotonic() < deadline:
        oracle = Oracle(seed, place)
        try:
            oracle.run()
        except Exception as error:
            where = f"seed {seed}, state {states + oracle.states}, {' / '.join(oracle.story)}"
            raise AssertionError(f"{where}, {oracle.options}: {error}") from error
        states += oracle.states
        seed += 1
    return states


def test_after_any_crash_the_content_is_that_of_the_state_that_is_found(place: Path) -> None:  # noqa: F811
    assert run_states(STATES_DEFAULT, 1, place, 60) >= STATES_DEFAULT


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_after_thousands_of_crashes(place: Path) -> None:  # noqa: F811
    first_seed = int.from_bytes(os.urandom(4), "little")
    assert run_states(STATES_LONG, first_seed, place, 1200) >= STATES_LONG


def test_a_crash_at_any_step_of_the_first_opening_and_of_the_first_flush(place: Path) -> None:  # noqa: F811
    for seed in range(4):
        oracle = Oracle(seed, place)
        life = oracle.life(None, nothing_yet(), watch=(1.0, 80))
        life.open()
        life.entry()
        life.flush()
        oracle.end(life)
        oracle.descend(life, 1)
        assert oracle.states >= 30


def test_a_crash_at_any_step_of_an_installation_leaves_all_old_or_all_new(place: Path) -> None:  # noqa: F811
    for seed in range(5):
        oracle = Oracle(seed, place)
        life = oracle.life(None, nothing_yet(), watch=None)
        life.open()
        for _ in range(20):
            life.entry()
        life.flush()
        found = set()
        ahead = life.receive(more=7)
        life.watch(1.0, 400)
        life.take_over(ahead)
        oracle.end(life)
        assert len(life.crashes) >= 10
        for crash, expected in life.crashes:
            directory = oracle.new_directory()
            crash.lose_power(directory, oracle.dice)
            again = ReplicaLife(Vfs(), directory, oracle.options, expected, oracle.dice)
            again.open()
            found.add(again.applied)
            while again.applied < len(again.log):
                again.entry()
            again.flush()
            again.look()
            again.close()
            shutil.rmtree(directory)
        assert found == {20, ahead}


def test_what_was_received_is_durable_under_its_name(place: Path) -> None:  # noqa: F811
    oracle = Oracle(1, place)
    life = oracle.life(None, nothing_yet(), watch=None)
    life.open()
    assert life.receive(more=30) == 30
    assert isinstance(life.vfs, CrashVfs)
    crash = life.vfs.crash(Step("after", "receive", ""))
    life.close()
    directory = oracle.new_directory()
    crash.lose_power(directory, oracle.dice, kept=0.0)
    with open_replica(os.path.join(directory, "incoming")) as received:
        assert received.state == state_of(30)
        assert received.verify() == []
        assert differences(received, life.states[30]) == []
