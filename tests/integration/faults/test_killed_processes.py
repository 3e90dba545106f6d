"""kill -9: of one store, of the leader, of a majority, of all at once, and of routers."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.faults.cluster import Cluster
from tests.integration.faults.trial import LONG, SHORT, Trial, endure


def kill_a_follower(trial: Trial) -> None:
    """Of some partition; it may lead others."""
    store = trial.store(trial.others(trial.leader())[0])
    store.crash()
    trial.workload.wait_for_writes()
    store.start()
    trial.cluster.wait_whole()


def kill_the_leader(trial: Trial) -> None:
    store = trial.store(trial.leader())
    store.crash()
    trial.resumed.append(trial.workload.wait_for_writes())
    store.start()
    trial.cluster.wait_whole()


def kill_two(trial: Trial) -> None:
    """Then nobody may acknowledge anything; and one that comes back is enough."""
    killed = [trial.store(node) for node in trial.others(trial.leader())]
    for store in killed:
        store.crash()
    trial.hold(0.5)
    killed[0].start()
    trial.workload.wait_for_writes()
    killed[1].start()
    trial.cluster.wait_whole()


def kill_all_at_once(trial: Trial) -> None:
    stores = trial.cluster.stores.values()
    for store in stores:
        store.signal(signal.SIGKILL)
    for store in stores:
        store.crash()
        store.start()
    trial.cluster.wait_whole()


def kill_routers(trial: Trial) -> None:
    """One after the other: what went through one is sent again through the other, and runs once."""
    for router in trial.cluster.routers.values():
        router.crash()
        trial.workload.wait_for_writes()
        router.start()
        trial.cluster.wait_whole()


FAULTS = [kill_a_follower, kill_the_leader, kill_two, kill_all_at_once, kill_routers]


def run(directory: Path, seconds: float) -> None:
    with ExitStack() as stack:
        endure(Trial(Cluster(stack, directory)), FAULTS, seconds)


def test_killed_processes_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    run(tmp_path, SHORT)


@pytest.mark.long
@pytest.mark.timeout(LONG * 3 + 120)
def test_killed_processes_for_long(tmp_path: Path) -> None:
    run(tmp_path, LONG)
