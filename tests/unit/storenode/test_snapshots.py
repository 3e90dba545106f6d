"""storenode/snapshots.py: one snapshot at a time for a replica, and nothing of it stays behind.

The replicas, engines and logs are real; bytes are copied by the test, as `BulkClient` would pull them
(test_bulk.py has the real one).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvclient import protocol
from kvclient.errors import Status, Unavailable
from shared.clustermap import ClusterMap, Node
from storenode.engine.errors import EngineFailed
from storenode.engine.replica_engine import ReplicaEngine
from storenode.raft.messages import Kind, Message
from storenode.snapshotpull import Done, Failed
from storenode.snapshots import Snapshots
from storenode.snapshotsource import Made
from tests.unit.storenode.replicaworld import PARTITION, Store, World

MAP = ClusterMap.bootstrap(
    "test",
    16,
    3,
    [
        Node(
            number,
            f"store{number}",
            f"tcp://127.0.0.1:{7000 + number}",
            f"tcp://127.0.0.1:{8000 + number}",
            "",
            f"z{number}",
            1,
        )
        for number in (1, 2, 3)
    ],
)
Pulled = tuple[int, str, int, str, Callable[[Any], None]]


class Side:
    """A store's snapshots; what would happen on other threads waits until the test does it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.directory = store.path / "incoming"
        self.pulls: list[Pulled] = []
        self.cancelled: list[int] = []
        self.silent = 0.0
        self.endpoints = {node.id: node.rpc for node in MAP.nodes}
        self.beside: list[tuple[Callable[[], object], Callable[[Any], None]]] = []
        self.snapshots = Snapshots(
            store.groups,
            self,
            lambda node: self.endpoints.get(node),
            str(self.directory),
            lambda work, done: self.beside.append((work, done)),
            lambda path: shutil.rmtree(path, ignore_errors=True),
        )

    def pull(
        self, group: int, endpoint: str, at_least: int, target: str, on_done: Callable[[Any], None]
    ) -> None:
        assert not os.path.exists(target), "nobody pulls over what is there"
        self.pulls.append((group, endpoint, at_least, target, on_done))

    def cancel(self, group: int) -> None:
        self.cancelled.append(group)

    def silent_s(self, group: int) -> float:
        return self.silent

    def run_beside(self) -> None:
        beside, self.beside = self.beside, []
        for work, done in beside:
            try:
                result: Any = work()
            except Exception as error:  # noqa: BLE001 - as `beside` does
                result = error
            done(result)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Store 3 was away, and the leader has cut what it needs."""
    made = World(tmp_path, segment_bytes=1 << 16, log_bytes_max=1 << 16)
    leader = made.lead()
    assert leader.node == 1
    made.tick()
    made.cut = {3}
    for number in range(30):
        leader.propose(number, protocol.encode_put(b"k%d" % number, bytes(20_000)))
        made.settle()
    assert {status for _, status in leader.statuses()} == {Status.OK}
    leader.engines[PARTITION].flush()
    leader.groups.maintain()
    made.settle()
    assert leader.log.group(PARTITION).first_index > 10
    made.cut = set()
    yield made
    made.close()


@pytest.fixture
def behind(world: World) -> Side:
    side = Side(world.stores[3])
    for _ in range(40):
        world.tick()
        if side.beside:
            side.run_beside()
            return side
    raise AssertionError("nobody told the follower")


@pytest.fixture
def source(world: World) -> Side:
    return Side(world.stores[1])


def deliver(side: Side, source: Side) -> Made:
    """The pull that was asked for ends well."""
    _, _, _, target, on_done = side.pulls[-1]
    made = source.snapshots.make(PARTITION, target)
    on_done(Done(target, made.state))
    return made


def test_a_snapshot_is_pulled_from_who_told_of_it(world: World, behind: Side) -> None:
    ((group, endpoint, at_least, target, _),) = behind.pulls
    assert (group, endpoint) == (PARTITION, MAP.node(1).rpc)
    assert at_least == world.stores[1].replica.machine.position.index
    assert os.path.dirname(target) == str(behind.directory)


def test_a_leader_that_the_map_does_not_have_yet_is_asked_when_it_has(world: World) -> None:
    side = Side(world.stores[3])
    endpoints, side.endpoints = side.endpoints, {}
    for _ in range(40):
        world.tick()
        side.run_beside()
    assert side.snapshots.failed > 0
    assert side.pulls == []
    side.endpoints = endpoints
    for _ in range(100):
        world.tick()
        side.run_beside()
    assert [endpoint for _, endpoint, *_ in side.pulls] == [endpoints[1]]


def test_what_was_pulled_is_examined_installed_and_removed(world: World, behind: Side, source: Side) -> None:
    made = deliver(behind, source)
    assert made.applied == source.store.replica.machine.position.index
    assert behind.snapshots.installed == 0
    behind.run_beside()  # examined
    world.settle()  # installed
    behind.run_beside()  # removed
    assert (behind.snapshots.installed, behind.snapshots.failed) == (1, 0)
    assert list(behind.directory.iterdir()) == []
    world.tick(2)
    assert behind.store.replica.machine.dump() == source.store.replica.machine.dump()
    assert behind.store.replica.raft.snapshot_wanted is None
    assert len(behind.pulls) == 1


def test_while_one_is_on_its_way_no_other_begins(world: World, behind: Side, source: Side) -> None:
    """After the pull had ended, another one began into the directory that was being looked at."""
    world.tick(12)
    deliver(behind, source)
    world.tick(12)
    behind.store.groups.dirty(behind.store.replica)
    world.settle()
    assert len(behind.pulls) == 1
    (examine,) = behind.beside
    behind.beside.clear()
    examine[1](examine[0]())
    world.tick(12)
    behind.run_beside()
    world.tick(12)
    assert len(behind.pulls) == 1
    assert behind.snapshots.installed == 1


def test_a_pull_that_failed_is_begun_again_when_the_leader_says_so_again(world: World, behind: Side) -> None:
    behind.pulls[0][4](Failed("the source has not answered for 60 s"))
    assert behind.snapshots.failed == 1
    assert behind.store.replica.raft.snapshot_wanted is None
    behind.store.groups.dirty(behind.store.replica)
    world.settle()
    assert len(behind.pulls) == 1
    world.tick(15)
    behind.run_beside()
    assert len(behind.pulls) == 2


def test_a_disk_that_stays_full_does_not_make_the_source_flush_twice_a_second(
    world: World, behind: Side
) -> None:
    """Each attempt costs the source a flush and a summing of its tables."""
    for _ in range(400):
        world.tick()
        behind.run_beside()
        if len(behind.pulls) > behind.snapshots.failed:
            behind.pulls[-1][4](Failed("the disk refused the snapshot: No space left on device"))
    assert 5 <= len(behind.pulls) <= 8


def test_a_silent_source_gives_way_to_the_leader_of_now(behind: Side) -> None:
    """For a minute the replica asked a leader that was dead, and the new one had no majority without it."""
    replica = behind.store.replica
    wanted = replica.raft.snapshot_wanted
    assert wanted is not None
    leader, index, term = wanted
    assert leader == 1
    behind.silent = 5.0
    behind.snapshots.want(replica)
    assert behind.cancelled == [], "it is the leader of now"
    replica.raft.snapshot_wanted = 2, index, term
    behind.silent = 4.9
    behind.snapshots.want(replica)
    assert behind.cancelled == [], "it may still come to its end"
    behind.silent = 5.0
    behind.snapshots.want(replica)
    assert behind.cancelled == [PARTITION]
    behind.run_beside()
    assert [endpoint for _, endpoint, *_ in behind.pulls] == [MAP.node(1).rpc, MAP.node(2).rpc]
    behind.snapshots.want(replica)
    assert behind.cancelled == [PARTITION]
    assert len(behind.pulls) == 2


def test_a_damaged_snapshot_is_removed_and_pulled_anew(world: World, behind: Side, source: Side) -> None:
    target = Path(behind.pulls[0][3])
    made = source.snapshots.make(PARTITION, str(target))
    table = next(target.glob("*.sst"))
    content = bytearray(table.read_bytes())
    content[100] ^= 1
    table.unlink()  # not the source's own file: they share it
    table.write_bytes(content)
    before = behind.store.replica.machine.dump()
    behind.pulls[0][4](Done(str(target), made.state))
    behind.run_beside()
    behind.run_beside()
    assert (behind.snapshots.installed, behind.snapshots.failed) == (0, 1)
    assert not target.exists()
    assert behind.store.replica.machine.dump() == before
    world.tick(15)
    behind.run_beside()
    deliver(behind, source)
    behind.run_beside()
    world.settle()
    assert behind.snapshots.installed == 1


def test_a_snapshot_that_came_too_late_is_removed_and_does_no_harm(
    world: World, behind: Side, source: Side
) -> None:
    deliver(behind, source)
    replica = behind.store.replica
    ahead = replica.machine.position.__class__(10_000, 99)
    replica.machine.position, before = ahead, replica.machine.position
    behind.run_beside()
    behind.store.turn()
    behind.run_beside()
    assert (behind.snapshots.installed, behind.snapshots.failed) == (0, 1)
    assert list(behind.directory.iterdir()) == []
    replica.machine.position = before


def test_a_whole_snapshot_that_an_earlier_process_left_does_not_stop_the_next_pull(
    world: World, behind: Side, source: Side
) -> None:
    """No pull could begin over it, however often the leader said so: the replica stayed behind for good."""
    deliver(behind, source)
    target = behind.pulls[0][3]
    world.restart(3)
    assert os.path.exists(target)
    again = Side(world.stores[3])
    for _ in range(40):
        world.tick()
        again.run_beside()
        if again.pulls:
            break
    assert again.pulls[0][3] == target
    deliver(again, source)
    again.run_beside()
    world.settle()
    assert again.snapshots.installed == 1


def test_a_checkpoint_says_what_is_in_it(source: Side, tmp_path: Path) -> None:
    replica = source.store.replica
    made = source.snapshots.make(PARTITION, str(tmp_path / "out"))
    names = [name for name, _ in made.files]
    assert made == Made(replica.machine.position.index, replica.machine.dump(), made.files)
    assert names[-1] == "manifest/data.mdb"
    examined = replica.machine.engine.examine(str(tmp_path / "out"))
    assert examined.replica == made.state


def test_there_is_no_checkpoint_of_what_is_not_here_or_not_sound(
    source: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match="no sound replica"):
        source.snapshots.make(999, str(tmp_path / "out"))

    def fail(engine: ReplicaEngine, directory: str) -> None:
        raise EngineFailed("sync failed")

    with monkeypatch.context() as patched:
        patched.setattr(ReplicaEngine, "checkpoint", fail)
        with pytest.raises(Unavailable, match="sync failed"):
            source.snapshots.make(PARTITION, str(tmp_path / "out"))
    source.store.replica.fail(RuntimeError("damage"))
    with pytest.raises(Unavailable, match="no sound replica"):
        source.snapshots.make(PARTITION, str(tmp_path / "out"))


def test_another_leader_is_asked_when_the_pull_from_the_first_one_has_ended(
    world: World, behind: Side
) -> None:
    replica = behind.store.replica
    raft = replica.raft
    wanted = Message(3, 2, Kind.SNAPSHOT, raft.term + 1, 999, raft.term)
    behind.store.groups.on_messages(2, [(PARTITION, wanted)])
    behind.store.turn()
    behind.run_beside()
    assert len(behind.pulls) == 1, "the pull that is under way ends first, or gives up"
    behind.pulls[0][4](Failed("cancelled"))
    behind.store.groups.on_messages(2, [(PARTITION, wanted)])
    behind.store.turn()
    behind.run_beside()
    assert [pull[1:3] for pull in behind.pulls[1:]] == [(MAP.node(2).rpc, 999)]
