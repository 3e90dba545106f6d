"""A replica's engine against an oracle, after many crashes: power lost, or the process killed, at any step of
flushing, compacting, installing and recovering, and again while it recovers from that.

What must hold is told in replicalife.py, which states are legal in crashvfs.py.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from storenode.engine import Options, open_replica
from storenode.engine.vfs import Vfs
from tests.crash.crashlife import differences, random_options
from tests.crash.crashvfs import CrashVfs, Step
from tests.crash.oracle import STATES_LONG, Oracle, Plan, Watch, run_states
from tests.crash.replicalife import Expected, ReplicaLife, nothing_yet, state_of

STATES_DEFAULT = 200

OTHER_LEADER = 0.3
"""How often the log goes on otherwise after a crash than it did before."""


class ReplicaOracle(Oracle[ReplicaLife, Expected]):
    plan = Plan(
        steps=(10, 100), first=Watch(0.03, 24), later=Watch(0.15, 6), kills=0.25, twins=0.15, crashes=2
    )

    def random_options(self) -> Options:
        return random_options(self.dice)

    def life(self, vfs: Vfs, directory: str, expected: Expected | None) -> ReplicaLife:
        return ReplicaLife(vfs, directory, self.options, expected or nothing_yet(), self.dice)

    def go_on(self, life: ReplicaLife) -> None:
        if self.dice.random() < OTHER_LEADER:
            life.forget_rest()
        life.catch_up()
        super().go_on(life)


def test_after_any_crash_the_content_is_that_of_the_state_that_is_found(place: Path) -> None:
    run_states(ReplicaOracle, STATES_DEFAULT, 1, place)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_after_thousands_of_crashes(place: Path) -> None:
    run_states(ReplicaOracle, STATES_LONG, random.randrange(1 << 32), place)


def test_a_crash_at_any_step_of_the_first_opening_and_of_the_first_flush(place: Path) -> None:
    for seed in range(4):
        oracle = ReplicaOracle(seed, place)
        life = oracle.first_life()
        life.watch(1.0, 80)
        life.open()
        life.entry()
        life.flush()
        life.end()
        oracle.descend(life, 0)
        assert oracle.states >= 30


def test_a_crash_at_any_step_of_an_installation_leaves_all_old_or_all_new(place: Path) -> None:
    for seed in range(5):
        oracle = ReplicaOracle(seed, place)
        life = oracle.first_life()
        life.open()
        for _ in range(20):
            life.entry()
        life.flush()
        found = set()
        ahead = life.receive(more=7)
        life.watch(1.0, 400)
        life.take_over(ahead)
        life.end()
        assert len(life.crashes) >= 10
        for crash, expected in life.crashes:
            directory = oracle.new_directory()
            crash.lose_power(directory, oracle.dice)
            again = oracle.life(Vfs(), directory, expected)
            again.open()
            found.add(again.applied)
            again.catch_up()
            again.flush()
            again.look()
            again.close()
            shutil.rmtree(directory)
        assert found == {20, ahead}


def test_what_was_received_is_durable_under_its_name(place: Path) -> None:
    oracle = ReplicaOracle(1, place)
    life = oracle.first_life()
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
