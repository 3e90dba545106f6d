"""storenode/groups.py: when the log is cut, how far, and who is flushed for it."""

from __future__ import annotations

import errno
import os

import pytest

from kvclient.errors import Corruption
from storenode.engine.replica_engine import ReplicaEngine
from storenode.engine.vfs import File, Vfs
from storenode.groups import MAINTAIN_S, SHORTEN_S
from storenode.raft import Role
from storenode.raft.messages import Entry, EntryKind
from storenode.raftlog import LogFailed, Record
from storenode.replica.replica import PRESSURE_STOP
from tests.unit.storenode.groups.writes import fill, first_index, large, propose
from tests.unit.storenode.replicaworld import Store, World, increment


def test_the_log_is_cut_behind_what_the_engine_has_in_tables_and_no_further(world: World) -> None:
    store = world.stores[1]
    fill(world, 3, 3)
    store.engines[3].flush()
    flushed = store.groups.replicas[3].machine.durable().index
    fill(world, 3, 12)
    world.tick()
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) == flushed + 1
    assert store.log.group(3).term(flushed) == store.groups.replicas[3].raft.term


def test_a_short_log_is_left_alone(world: World) -> None:
    store = world.stores[1]
    fill(world, 3, 2)
    store.engines[3].flush()
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) == 2


def test_who_pins_a_long_log_is_flushed_and_then_cut(world: World) -> None:
    store = world.stores[1]
    fill(world, 3, 15)
    held = store.log.bytes_held
    world.tick()
    for number in range(8):
        store.groups.maintain()
        for opened in store.engines.values():
            opened.flush()  # waits for what `maintain` has begun, beside its own
        propose(store, 7, number, increment())  # a batch must say that a segment is free
        world.settle()
    assert first_index(store, 3) > 2
    assert store.log.bytes_held < held


def test_a_store_that_lives_for_a_second_at_a_time_shortens_its_log(world: World) -> None:
    """Steps a second apart never came to the cut, and a store that a full disk ended again and again filled
    it with its log, for good."""
    store = world.stores[1]
    fill(world, 3, 2)
    assert store.groups.maintain() == MAINTAIN_S
    fill(world, 3, 13)
    assert store.log.bytes_held > world.log_bytes_max
    assert store.groups.maintain() == SHORTEN_S


def test_a_flush_under_way_is_not_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question ends a memtable: tables of a few entries would be the answer to a slow disk."""
    store = world.stores[1]
    fill(world, 3, 15)
    flushes: list[ReplicaEngine] = []
    with monkeypatch.context() as patched:
        patched.setattr(ReplicaEngine, "flush", lambda engine, wait=True: flushes.append(engine))
        for number in range(3):
            store.groups.maintain()
            propose(store, 3, number, increment())
            world.settle()
    assert flushes.count(store.engines[3]) == 1
    store.engines[3].flush()
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) > 2


def leave_behind(world: World, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Store 2, which has an entry of group 3 that it does not know to be committed, and hears no more of that
    group, as one that was removed from it, or must wait for a snapshot."""
    store = world.stores[2]
    fill(world, 3, 2)
    propose(world.stores[1], 3, 50, large(50))
    world.stores[1].turn()
    world.carry()
    store.turn()
    hear = store.groups.on_messages
    monkeypatch.setattr(
        store.groups, "on_messages", lambda sender, rows: hear(sender, [row for row in rows if row[0] != 3])
    )
    world.settle()
    world.stores[1].taken()
    return store


def shorten(world: World, store: Store) -> None:
    for number in range(12):
        store.groups.maintain()
        for opened in store.engines.values():
            opened.flush()
        propose(world.stores[1], 7, 100 + number, increment())
        world.settle()
    world.stores[1].taken()


def test_entries_that_cannot_be_applied_do_not_hold_up_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the other groups wrote piled up behind one entry until the disk was full."""
    store = leave_behind(world, monkeypatch)
    group = store.log.group(3)
    last = group.last_index
    unapplied = group.entries(last, last + 1, 1 << 20)
    assert store.groups.replicas[3].machine.position.index == last - 1
    fill(world, 7, 15)
    held = store.log.bytes_held
    assert held > world.log_bytes_max
    shorten(world, store)
    assert store.log.bytes_held < held / 2
    assert (group.first_index, group.last_index) == (last, last)
    assert group.entries(last, last + 1, 1 << 20) == unapplied
    monkeypatch.undo()
    assert world.restart(2).log.group(3).entries(last, last + 1, 1 << 20) == unapplied


def test_what_is_carried_is_what_is_in_the_log_when_it_is_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer leader may have replaced the entries by then, and this node have promised to keep those."""
    store = leave_behind(world, monkeypatch)
    group = store.log.group(3)
    last = group.last_index
    fill(world, 7, 15)
    for opened in store.engines.values():
        opened.flush()
    while group.first_index < last:
        store.groups.maintain()
        world.settle()
    store.writer.held = True
    propose(world.stores[1], 7, 60, increment())
    world.settle()
    assert store.writer.busy
    store.groups.maintain()
    store.writer.write()
    newer = Entry(9, EntryKind.NORMAL, b"")
    store.log.installed(store.log.write([Record(3, None, None, last, [newer])]))
    store.writer.held = False
    written = store.log.stats()["batches"]
    world.settle()
    assert store.log.stats()["batches"] > written
    assert group.entries(last, last + 1, 1 << 20) == [newer]


def test_entries_that_cannot_be_read_cost_their_replica_and_not_the_batch_of_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others had to say was taken from them by then, and nobody wrote it."""
    store = leave_behind(world, monkeypatch)
    fill(world, 7, 15)

    def damaged(first: int, stop: int, bytes_max: int) -> list[Entry]:
        raise Corruption("00000001.log: offset 160: batch 1 is damaged")

    monkeypatch.setattr(store.log.group(3), "entries", damaged)
    shorten(world, store)
    world.tick()
    assert "batch 1 is damaged" in str(store.groups.replicas[3].failure)
    assert store.groups.replicas[7].machine.position == world.stores[1].groups.replicas[7].machine.position


def test_the_log_stays_from_a_snapshot_on_that_is_being_pulled(world: World) -> None:
    store = world.stores[1]
    fill(world, 3, 15)
    store.engines[3].flush()
    world.tick()
    store.groups.pinned = lambda group: 6 if group == 3 else None
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) == 7
    store.groups.pinned = lambda group: 5
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) == 7


def test_the_log_stays_for_a_follower_that_is_away_as_long_as_there_is_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart of a node cost a snapshot of each of its partitions. And whoever waited for it was flushed
    every second, for nothing."""
    store = world.stores[1]
    fill(world, 3, 2)
    world.tick()
    match = store.groups.replicas[3].raft.progress[2].match
    world.cut = {2}
    fill(world, 3, 8)
    world.tick(12, nodes=[1, 3])
    store.engines[3].flush()
    flushes: list[ReplicaEngine] = []
    with monkeypatch.context() as patched:
        patched.setattr(ReplicaEngine, "flush", lambda engine, wait=True: flushes.append(engine))
        for _ in range(3):
            store.groups.maintain()
            world.settle()
    assert store.groups.replicas[3].raft.role is Role.LEADER
    assert first_index(store, 3) == match + 1
    assert store.engines[3] not in flushes
    fill(world, 3, 16)
    store.engines[3].flush()
    assert store.log.bytes_held > 2 * world.log_bytes_max
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) > match + 1


def test_a_log_that_cannot_be_collected_is_fatal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.stores[1]

    def refuse() -> int:
        raise LogFailed("00000001.log: no permission")

    monkeypatch.setattr(store.log, "collect", refuse)
    store.groups.maintain()
    assert [str(error) for error in store.fatal] == ["00000001.log: no permission"]


def test_a_disk_without_room_for_tables_ends_the_node_when_writes_would_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader on a full disk whose log still had room refused all writes with BUSY, for good."""
    create = Vfs.create

    def no_tables(vfs: Vfs, path: str) -> File:
        if path.endswith(".sst"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return create(vfs, path)

    monkeypatch.setattr(Vfs, "create", no_tables)
    store = world.stores[1]
    engine = store.engines[3]
    while engine.pressure() < PRESSURE_STOP:
        store.groups.maintain()
        assert not store.fatal
        propose(store, 3, 1, increment())
        world.settle()
        engine.flush(wait=False)
    store.shared.wait_for(lambda: engine.out_of_room is not None)
    store.groups.maintain()
    assert [type(error) for error in store.fatal] == [OSError]
