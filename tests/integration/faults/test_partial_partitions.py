"""Networks in which two stores do not hear each other and a third hears both, and stores that only hear or
only speak: wherever a majority is connected, data is written and the controller obeys; afterwards everybody
agrees.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.faults.cluster import STORES
from tests.integration.faults.judgement import judge
from tests.integration.faults.network import Network
from tests.integration.faults.replicas import assert_equal
from tests.integration.faults.test_partitioned_network import CUT_SECONDS, spread
from tests.integration.faults.trial import LONG, SHORT, Fault, Trial, endure

MOVE_SECONDS = 4.0
"""A move meets a cut of this length: a controller that does not hear a store calls it suspect after 3 s."""

LONG_MOVE_SECONDS = 14.0
"""After 10 s it is down; a learner that its leader has not heard for so long is given up."""

FOUR = (*STORES, 4)
"""As many as it takes to have a store that a replica can move to."""

LIMITS = range(64 << 20, 128 << 20)
"""Of bytes per second, which no test comes near: each is a change of the map."""


def faults_of(network: Network) -> list[Fault]:
    def two_stores_are_parted(trial: Trial) -> None:
        """One may lead what the other one misses: who hears that leader refuses the other one its vote."""
        one, other = trial.dice.sample(STORES, 2)
        network.part([one], [other])
        _all_follow(trial)
        _heal(trial, network)

    def a_leader_does_not_reach_a_follower(trial: Trial) -> None:
        leader = trial.leader()
        network.cut(leader, trial.others(leader)[0])
        _all_follow(trial)
        _heal(trial, network)

    def a_leader_does_not_hear_a_follower(trial: Trial) -> None:
        leader = trial.leader()
        network.cut(trial.others(leader)[0], leader)
        _all_follow(trial)
        _heal(trial, network)

    def a_store_hears_and_does_not_speak(trial: Trial) -> None:
        """It may believe that all is well; the controller must not."""
        node = trial.dice.choice(STORES)
        network.isolate(node, incoming=False)
        _serves(trial)
        trial.cluster.until(lambda: _state(trial, node) != "up", f"store{node} is known to be silent")
        _heal(trial, network)

    def a_store_speaks_and_does_not_hear(trial: Trial) -> None:
        """What it led, and it may be the controller, must not wait for it."""
        node = trial.dice.choice(STORES)
        network.isolate(node, outgoing=False)
        _serves(trial)
        trial.cluster.until(lambda: _controller(trial) != node, "a controller that hears")
        _heal(trial, network)

    def part_the_controller_from_stores_only(trial: Trial) -> None:
        """Routers still reach it: it must not answer as if it were one."""
        gone = _controller(trial)
        network.part([gone], trial.others(gone))
        trial.cluster.until(lambda: _controller(trial) != gone, "another controller")
        _serves(trial)
        _heal(trial, network)

    return [
        two_stores_are_parted,
        a_leader_does_not_reach_a_follower,
        a_leader_does_not_hear_a_follower,
        a_store_hears_and_does_not_speak,
        a_store_speaks_and_does_not_hear,
        part_the_controller_from_stores_only,
    ]


def _all_follow(trial: Trial) -> None:
    """Everybody serves and gets new maps, if not from its neighbour then from the third store."""
    epoch = _serves(trial)
    trial.cluster.until(
        lambda: all(node.get("epoch", 0) >= epoch for node in trial.cluster.figures().values()),
        "a new map gets around the cut",
    )
    trial.hold(CUT_SECONDS)
    trial.workload.wait_for_writes()


def _serves(trial: Trial) -> int:
    """Writes go on in every partition, and the controller makes a new map when it is told to: its epoch."""
    trial.resumed["cut off in part"].append(trial.workload.wait_for_writes())
    limit = trial.dice.choice(LIMITS)
    _order(trial, "set", bytes_per_second=limit)
    shown = _shown(trial)
    assert shown["settings"]["bytes_per_second"] == limit, "what the controller has confirmed is lost"
    return int(shown["epoch"])


def _heal(trial: Trial, network: Network) -> None:
    network.heal()
    trial.cluster.wait_healthy()


def _shown(trial: Trial) -> dict[str, Any]:
    return _order(trial, "show")


def _order(trial: Trial, command: str, **arguments: Any) -> dict[str, Any]:
    """The answer, as soon as a controller gives one. The command may be carried out more than once."""
    answer: dict[str, Any] = {}

    def answered() -> bool:
        answer.update(trial.cluster.control(command, **arguments))
        return True

    trial.cluster.until(answered, f"a controller that answers {command}")
    return answer


def _controller(trial: Trial) -> int:
    return int(_shown(trial)["controller"])


def _state(trial: Trial, node: int) -> str:
    """As the controller sees it."""
    return next(str(row["state"]) for row in _shown(trial)["nodes"] if row["id"] == node)


def run(directory: Path, seconds: float) -> None:
    with ExitStack() as stack:
        cluster, network = spread(stack, directory)
        endure(Trial(cluster), faults_of(network), seconds)


def drain_during_a_cut(directory: Path, cut_seconds: float, *, from_all: bool) -> None:
    """A store is to be emptied while the leader of one of its partitions is cut off from the only store that
    the replica can move to; `from_all`: so is everybody else but the store to be emptied.
    """
    with ExitStack() as stack:
        cluster, network = spread(stack, directory, stores=FOUR)
        trial = Trial(cluster)
        print(f"seed {trial.seed}")
        cluster.wait_healthy()
        with trial.workload.running():
            trial.workload.wait_for_writes()
            tag = trial.dice.choice(trial.workload.tags)
            holders, leader = cluster.holders(tag), cluster.leader(tag)
            drained = trial.dice.choice(sorted(holders - {leader}))
            network.part(holders - {drained} if from_all else {leader}, set(FOUR) - holders)
            _order(trial, "node-drain", node=drained)
            trial.workload.wait_for_writes()
            trial.hold(cut_seconds)
            trial.workload.wait_for_writes()
            print(f"at the healing: {_shown(trial)['moves']}")
            if from_all:
                assert drained in cluster.holders(tag), "a replica has moved to a store that nobody reaches"
            network.heal()
            cluster.until(lambda: _holds_nothing(trial, drained), f"store{drained} is empty")
            cluster.wait_healthy()
            trial.workload.wait_for_writes()
        _conclude(trial, drained)


def _holds_nothing(trial: Trial, node: int) -> bool:
    """No partition, the control partition neither, and nothing is to be moved."""
    shown = _shown(trial)
    held = next(row["replicas"] for row in shown["nodes"] if row["id"] == node)
    return not held and not shown["moves"] and node not in shown["control"]


def _conclude(trial: Trial, drained: int) -> None:
    """As for every trial, but the replicas are those of the stores that are left."""
    cluster = trial.cluster
    counts = judge(trial.workload)
    applied = cluster.settled()
    cluster.stop()
    left = {node: directory for node, directory in cluster.directories.items() if node != drained}
    keys = assert_equal(left, applied)
    print(f"{dict(counts)}; {keys} keys are equal on {len(left)} stores")
    assert counts["ok"] > 0
    assert counts["ledger ok"] > 0
    assert keys > 0


def test_who_is_cut_off_in_part_stops_nobody(tmp_path: Path) -> None:
    run(tmp_path, SHORT)


def test_a_store_is_drained_although_two_others_are_parted(tmp_path: Path) -> None:
    drain_during_a_cut(tmp_path, MOVE_SECONDS, from_all=False)


@pytest.mark.long
@pytest.mark.timeout(LONG * 3 + 180)
def test_partial_partitions_for_long(tmp_path: Path) -> None:
    run(tmp_path, LONG)


@pytest.mark.long
def test_a_store_is_drained_although_its_successor_is_out_of_reach(tmp_path: Path) -> None:
    drain_during_a_cut(tmp_path, LONG_MOVE_SECONDS, from_all=True)
