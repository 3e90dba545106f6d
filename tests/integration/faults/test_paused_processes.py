"""SIGSTOP and SIGCONT: processes that stand still for longer than elections and leases last, and go on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.faults.cluster import Cluster
from tests.integration.faults.trial import LONG, SHORT, Trial, endure

PAUSE_SECONDS = 2.2
"""Longer than election timeout (1 to 2 s) and lease; shorter than a client's calls, so that what lay in a
paused process meets those who still wait for it."""


def pause_a_follower(trial: Trial) -> None:
    """Of some partition; it may lead others."""
    store = trial.store(trial.others(trial.leader())[0])
    store.pause()
    trial.workload.wait_for_writes()
    trial.hold(PAUSE_SECONDS)
    store.resume()


def pause_the_leader(trial: Trial) -> None:
    """It wakes up in the belief to lead, with requests that have waited: reads must not be answered from what
    it has, by lease or otherwise.
    """
    tag = trial.dice.choice(trial.workload.tags)
    node = trial.cluster.leader(tag)
    trial.store(node).pause()
    trial.resumed["paused"].append(trial.workload.wait_for_writes([tag]))
    assert trial.cluster.leader(tag) != node
    trial.hold(PAUSE_SECONDS / 2)
    trial.store(node).resume()


def pause_the_leader_for_a_moment(trial: Trial) -> None:
    """About as long as a lease and an election timeout: whoever is first."""
    store = trial.store(trial.leader())
    store.pause()
    trial.hold(trial.dice.uniform(0.7, 1.3))
    store.resume()


def pause_routers(trial: Trial) -> None:
    """One after the other: each client meets one. What lay in it was sent again through the other one."""
    for router in trial.cluster.routers.values():
        router.pause()
        trial.workload.wait_for_writes()
        trial.hold(PAUSE_SECONDS / 2)
        router.resume()
        trial.workload.wait_for_writes()


FAULTS = [pause_a_follower, pause_the_leader, pause_the_leader_for_a_moment, pause_routers]


def run(directory: Path, seconds: float) -> None:
    with ExitStack() as stack:
        endure(Trial(Cluster(stack, directory)), FAULTS, seconds)


def test_paused_processes_serve_nothing_stale_and_repeat_nothing(tmp_path: Path) -> None:
    run(tmp_path, SHORT)


@pytest.mark.long
@pytest.mark.timeout(LONG * 3 + 120)
def test_paused_processes_for_long(tmp_path: Path) -> None:
    run(tmp_path, LONG)
