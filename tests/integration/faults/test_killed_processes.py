"""kill -9: of one store, of the leader, of a majority, of all at once, and of routers."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.faults.cluster import PARTITIONS, STORES, Cluster
from tests.integration.faults.trial import KILLED, LONG, PRESS_SECONDS, SHORT, Trial, endure


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
    trial.resumed[KILLED].append(trial.workload.wait_for_writes())
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


def kill_a_follower_until_the_logs_are_cut(trial: Trial) -> None:
    """When it comes back, the others have no entry left that follows its last one: it needs snapshots."""
    node, *others = trial.dice.sample(STORES, len(STORES))
    trial.store(node).crash()
    trial.workload.wait_for_writes()
    missed = {other: _log(trial, other)["bytes_written"] for other in others}
    deadline = time.monotonic() + PRESS_SECONDS
    with trial.workload.connect() as client:
        while any(_freed(trial, other) <= missed[other] for other in others):
            assert time.monotonic() < deadline, "the logs are not cut"
            trial.press(client)
    trial.store(node).start()
    trial.cluster.wait_whole()
    trial.cluster.until(
        lambda: trial.cluster.figures()[node]["snapshots"]["installed"] >= PARTITIONS,
        "snapshots of all partitions",
    )


def _log(trial: Trial, node: int) -> dict[str, int]:
    log: dict[str, int] = trial.cluster.figures()[node]["log"]
    return log


def _freed(trial: Trial, node: int) -> int:
    """Bytes of the log, counted from the start of the process, that are gone."""
    log = _log(trial, node)
    return log["bytes_written"] - log["bytes_held"]


FAULTS = [kill_a_follower, kill_the_leader, kill_two, kill_all_at_once, kill_routers]
LONG_FAULTS = [*FAULTS, kill_a_follower_until_the_logs_are_cut]


def run(directory: Path, seconds: float) -> None:
    with ExitStack() as stack:
        endure(Trial(Cluster(stack, directory)), FAULTS if seconds == SHORT else LONG_FAULTS, seconds)


def test_killed_processes_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    run(tmp_path, SHORT)


@pytest.mark.long
@pytest.mark.timeout(LONG * 3 + 120)
def test_killed_processes_for_long(tmp_path: Path) -> None:
    run(tmp_path, LONG)
