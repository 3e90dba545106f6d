"""Disks that are full, and disks that cannot say that data is safe: that store stops, the others go on."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.faults.cluster import PARTITIONS, STOP_SECONDS, STORES, Cluster, Process
from tests.integration.faults.disk import FailingSync, SmallDisk
from tests.integration.faults.trial import LONG, PRESS_SECONDS, SHORT, Fault, Trial, endure

DISK_MEGABYTES = 64
"""What a store of this room needs for minutes, and little enough to be filled at once."""

SILENCE_SECONDS = 1.0
"""How long it is watched that nothing is acknowledged."""

NODE = 2
"""Whose disk is small."""


def ended(trial: Trial, node: int) -> str:
    """Waits until the store has ended as one whose disk fails must; what it said of it."""
    store = trial.store(node)
    assert store.wait(STOP_SECONDS) == 1, store.tail()
    said = store.said("log_failed")
    assert said, store.tail()
    return str(said[-1]["error"])


def fill_the_disk(trial: Trial, disk: SmallDisk) -> None:
    press_until_it_ends(trial, disk)
    trial.workload.wait_for_writes()
    start_again(trial)
    press_until_it_ends(trial, disk)
    disk.make_room()
    start_again(trial)
    trial.cluster.wait_whole()


def start_again(trial: Trial) -> None:
    if not trial.store(NODE).running:
        trial.store(NODE).start()


def press_until_it_ends(trial: Trial, disk: SmallDisk) -> None:
    """Or, after a start, until it has nothing to write, for it waits for snapshots of all partitions, and its
    disk refuses them.

    The segment at hand still has room; large values use it up. Others take what room the store gives back
    when it cuts its log and merges tables: it could live on that for ever.
    """
    store = trial.store(NODE)
    deadline = time.monotonic() + PRESS_SECONDS
    with trial.workload.connect() as client:
        while store.running and not waits_for_room(store):
            assert time.monotonic() < deadline, f"the store goes on without room\n{store.tail()}"
            disk.fill()
            trial.press(client)
    assert "No space left on device" in store.output(), store.tail()
    assert store.running or store.wait(STOP_SECONDS) == 1, store.tail()


def waits_for_room(store: Process) -> bool:
    refused = {one["partition"] for one in store.said("snapshot_failed") if "No space left" in one["reason"]}
    return len(refused) == PARTITIONS


def fail_to_sync(trial: Trial, disks: dict[int, FailingSync], node: int) -> None:
    disks[node].begin()
    assert "Input/output error" in ended(trial, node)
    trial.workload.wait_for_writes()
    disks[node].end()
    trial.store(node).start()
    trial.cluster.wait_whole()


def fail_to_sync_where_it_counts(trial: Trial, disks: dict[int, FailingSync]) -> None:
    """One store is paused and another one cannot sync: the third is no majority, so that whoever acknowledges
    has counted a disk that failed.
    """
    paused, failing = trial.others(trial.leader())
    if trial.dice.random() < 0.5:
        failing = next(node for node in STORES if node not in (paused, failing))
    trial.store(paused).pause()
    with trial.workload.at_rest():  # so that the first write that meets the disk begins after this
        disks[failing].begin()
        began = time.monotonic_ns()
    ended(trial, failing)
    trial.hold(SILENCE_SECONDS)
    late = trial.workload.last_acknowledged - began
    assert late <= 0, (
        f"a write was acknowledged that began {late / 1e6:.1f} ms after two of three disks were gone"
    )
    trial.store(paused).resume()
    trial.workload.wait_for_writes()
    disks[failing].end()
    trial.store(failing).start()
    trial.cluster.wait_whole()


def fail_to_sync_everywhere(trial: Trial, disks: dict[int, FailingSync]) -> None:
    """The last of them has nothing to write and lives on: it cannot even win the promise of a vote."""
    for disk in disks.values():
        disk.begin()
    began = time.monotonic_ns()
    majority = len(STORES) // 2 + 1
    trial.cluster.until(
        lambda: sum(not store.running for store in trial.cluster.stores.values()) >= majority,
        "stores that end",
    )
    trial.hold(SILENCE_SECONDS)
    late = trial.workload.last_acknowledged - began
    assert late <= 0, f"a write was acknowledged that began {late / 1e6:.1f} ms after all disks were gone"
    for node in STORES:
        if not trial.store(node).running:
            ended(trial, node)
    for node in STORES:
        disks[node].end()
        if not trial.store(node).running:
            trial.store(node).start()
    trial.cluster.wait_whole()


def run_full(directory: Path, seconds: float) -> None:
    with ExitStack() as stack:
        disk = SmallDisk(stack, directory / "small", DISK_MEGABYTES)
        data = disk.path / "data"
        cluster = Cluster(stack, directory, places={NODE: data}, prefixes={NODE: disk.prefix})
        cluster.directories[NODE] = disk.outside / "data"

        def full_disk(trial: Trial) -> None:
            fill_the_disk(trial, disk)

        endure(Trial(cluster), [full_disk], seconds)


def run_failing(directory: Path, seconds: float) -> None:
    with ExitStack() as stack:
        disks = {node: FailingSync(directory, f"store{node}") for node in STORES}
        cluster = Cluster(stack, directory, prefixes={node: disk.prefix for node, disk in disks.items()})
        endure(Trial(cluster), sync_faults(disks), seconds)


def sync_faults(disks: dict[int, FailingSync]) -> list[Fault]:
    def sync_fails_at_the_leader(trial: Trial) -> None:
        fail_to_sync(trial, disks, trial.leader())

    def sync_fails_at_a_follower(trial: Trial) -> None:
        fail_to_sync(trial, disks, trial.others(trial.leader())[0])

    def sync_fails_where_it_counts(trial: Trial) -> None:
        fail_to_sync_where_it_counts(trial, disks)

    def sync_fails_everywhere(trial: Trial) -> None:
        fail_to_sync_everywhere(trial, disks)

    return [
        sync_fails_at_the_leader,
        sync_fails_at_a_follower,
        sync_fails_where_it_counts,
        sync_fails_everywhere,
    ]


def test_a_store_with_a_full_disk_stops_and_catches_up_when_there_is_room(tmp_path: Path) -> None:
    run_full(tmp_path, SHORT)


@pytest.mark.long
@pytest.mark.timeout(LONG * 3 + 120)
def test_a_full_disk_for_long(tmp_path: Path) -> None:
    run_full(tmp_path, LONG)


def test_a_store_whose_sync_fails_stops_and_acknowledges_nothing(tmp_path: Path) -> None:
    run_failing(tmp_path, SHORT)


@pytest.mark.long
@pytest.mark.timeout(LONG * 3 + 120)
def test_failing_syncs_for_long(tmp_path: Path) -> None:
    run_failing(tmp_path, LONG)
