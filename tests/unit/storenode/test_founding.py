"""storenode/founding.py: what a start finds in engine and log, and what it makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvclient import protocol
from kvclient.errors import Corruption, Status
from storenode.founding import SETTINGS
from storenode.groups import TICK_S, Arrived
from storenode.raft.messages import Configuration, HardState
from storenode.raftlog import Record
from storenode.replica.statemachine import Position
from tests.unit.storenode.replicaworld import PARTITION, World, increment


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def write(world: World, count: int) -> None:
    leader = world.lead()
    for token in range(count):
        leader.propose(token, increment())
        world.settle()
    assert leader.statuses() == [(token, Status.OK) for token in range(count)]


def test_everybody_begins_a_group_in_the_same_way(world: World) -> None:
    for store in world.stores.values():
        log, replica = store.log.group(PARTITION), store.replica
        assert (log.first_index, log.last_index, log.term(1)) == (2, 1, 0)
        assert replica.machine.position == Position(1, 0)
        assert replica.raft.configuration == Configuration(frozenset({1, 2, 3}))


def test_the_preferred_node_leads_a_new_cluster_before_any_time_has_passed(world: World) -> None:
    now = world.clock.monotonic()
    world.settle()
    assert world.stores[1].leads
    assert world.clock.monotonic() == now


def test_a_start_begins_with_a_log_that_is_cut_behind_what_the_engines_have(tmp_path: Path) -> None:
    """A store that a full disk ended half a second after each start had a longer log each time, until no
    start had room to go on."""
    world = World(tmp_path, segment_bytes=1 << 16, log_bytes_max=1 << 17)
    leader = world.lead()
    for token in range(20):
        leader.propose(token, protocol.encode_put(b"k", bytes(20_000)))
        world.settle()
    last = leader.log.group(PARTITION).last_index
    held = leader.log.bytes_held
    assert held > world.log_bytes_max
    store = world.restart(1, flush=True)
    log = store.log.group(PARTITION)
    assert (log.first_index, log.last_index) == (last + 1, last)
    assert store.log.bytes_held < held / 2
    assert len(list((store.path / "raft").glob("*.log"))) == 1
    world.close()


def test_a_start_leaves_a_short_log_to_who_may_need_it(world: World) -> None:
    write(world, 3)
    assert world.restart(1, flush=True).log.group(PARTITION).first_index == 2


def test_how_a_group_begins_is_durable_before_it_says_anything(world: World) -> None:
    store = world.stores[2]
    assert store.sent == []
    store = world.restart(2)
    assert store.log.group(PARTITION).first_index == 2


def test_a_restart_goes_on_from_what_was_flushed_and_applies_the_rest_of_the_log(world: World) -> None:
    write(world, 3)
    world.tick()
    for node in world.nodes:
        world.restart(node, flush=node != 3)
    assert world.stores[3].replica.machine.position == Position(1, 0)
    assert world.stores[1].replica.machine.position.index > 3
    world.lead()
    world.tick(2)
    assert [store.value(b"n") for store in world.stores.values()] == [b"3"] * 3


def test_a_restarted_node_votes_for_nobody_else_in_the_same_term(world: World) -> None:
    write(world, 1)
    before = world.stores[2].replica.raft
    term, vote = before.term, before.vote
    raft = world.restart(2).replica.raft
    assert (raft.term, raft.vote) == (term, vote)


def cut_off_the_log(world: World) -> Any:
    """Store 3 was away; a snapshot of store 1, which store 3 has looked at."""
    write(world, 2)
    world.tick()
    world.cut = {3}
    write(world, 5)
    leader, behind = world.stores[1], world.stores[3]
    directory = str(behind.path / "snapshot")
    leader.replica.machine.engine.flush()
    leader.engines[PARTITION].checkpoint(directory)
    return behind.engines[PARTITION].examine(directory)


def test_an_install_that_was_interrupted_before_the_log_was_cut_is_finished(world: World) -> None:
    """The engine is ahead of the log: what the log has ends before, or is of another leader."""
    examined = cut_off_the_log(world)
    behind = world.stores[3]
    behind.writer.held = True
    behind.groups.install(Arrived(behind.replica, examined, lambda error: None))
    behind.turn()
    index = behind.replica.machine.position.index
    assert behind.log.group(PARTITION).last_index < index
    term = behind.log.group(PARTITION).hard_state.term
    behind = world.restart(3)
    log = behind.log.group(PARTITION)
    assert (log.first_index, log.last_index) == (index + 1, index)
    assert log.hard_state.term == term, "what it promised, it still has"
    world.cut = set()
    write(world, 1)
    world.tick(2)
    assert behind.value(b"n") == b"8"


def test_an_engine_behind_the_logs_cut_is_refused_with_advice(world: World) -> None:
    write(world, 5)
    store = world.stores[3]
    shutil.copytree(store.path / str(PARTITION), store.path / "old")
    index = store.log.group(PARTITION).last_index
    term = store.log.group(PARTITION).term(index)
    store.log.installed(store.log.write([Record(PARTITION, None, (index, term), index + 1, [])]))
    store.close()
    with pytest.raises(Corruption, match=r"entries between them are lost.*new node id"):
        world.start(3)
    del world.stores[3]


def test_a_store_that_lost_its_log_does_not_go_on_under_its_old_id(world: World) -> None:
    """It would vote a second time in a term, and with that lose what was acknowledged."""
    write(world, 3)
    store = world.stores[3]
    world.tick()
    store.engines[PARTITION].flush()
    store.close()
    shutil.rmtree(store.path / "raft")
    with pytest.raises(Corruption, match=r"the log knows nothing.*new node id"):
        world.start(3)
    del world.stores[3]


def test_a_refused_start_has_written_nothing(world: World) -> None:
    write(world, 3)
    store = world.stores[3]
    world.tick()
    store.engines[PARTITION].flush()
    store.close()
    shutil.move(store.path / "raft", store.path / "aside")
    with pytest.raises(Corruption):
        world.start(3)
    shutil.rmtree(store.path / "raft")
    shutil.move(store.path / "aside", store.path / "raft")
    del world.stores[3]


def test_a_lease_ends_before_any_other_node_may_stand() -> None:
    """Also if its clock runs faster by as much as is allowed, and its first tick follows at once."""
    shortest = (SETTINGS.election_ticks - 1) * TICK_S
    assert 0 < SETTINGS.lease_seconds < shortest * 0.96


def test_hard_state_of_a_new_group_is_none(world: World) -> None:
    assert world.stores[2].log.group(PARTITION).hard_state == HardState(0, 0, 0)
    assert protocol.decode_results(
        world.stores[2].replica.machine.engine.read(protocol.encode_get(b"k"), 0)
    ) == [[Status.NOT_FOUND]]
