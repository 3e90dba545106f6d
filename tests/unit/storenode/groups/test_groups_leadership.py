"""storenode/groups.py: leadership is given away by a node that stops, and returns to whom the map prefers."""

from __future__ import annotations

from kvclient.errors import Status
from storenode.groups import HAND_BACK_TICKS
from storenode.raft import Role
from tests.unit.storenode.groups.writes import PARTITIONS, propose
from tests.unit.storenode.replicaworld import World, increment


def leaders(world: World) -> dict[int, int]:
    return {
        group: store.node
        for group in PARTITIONS
        for store in world.stores.values()
        if store.groups.replicas[group].raft.role is Role.LEADER
    }


def test_a_node_that_stops_gives_all_its_groups_away_and_loses_no_write(world: World) -> None:
    leader = world.stores[1]
    assert leader.groups.leading
    for group in PARTITIONS:
        propose(leader, group, group, increment())
    leader.turn()
    leader.groups.hand_over()
    world.settle()
    world.tick()
    assert not leader.groups.leading
    assert leader.groups.idle
    assert set(leaders(world).values()) <= {2, 3}
    assert leaders(world).keys() == set(PARTITIONS)
    assert sorted(leader.statuses()) == [(group, Status.OK) for group in PARTITIONS]
    for store in world.stores.values():
        assert [store.engines[group].get(b"n") for group in PARTITIONS] == [b"1"] * len(PARTITIONS)


def test_a_node_that_stops_stays_until_it_knows_who_leads_after_it(world: World) -> None:
    """It left in the middle of the election: writes that came to it were told nothing, while their router
    waited longer and longer before it asked again.
    """
    leader = world.stores[1]
    leader.groups.hand_over()
    while all(replica.raft.role is Role.LEADER for replica in leader.groups.replicas.values()):
        world.turn()
    assert not any(replica.raft.leader for replica in leader.groups.replicas.values())
    assert leader.groups.leading
    world.settle()
    assert not leader.groups.leading


def test_what_could_not_be_given_away_at_once_is_given_with_a_later_tick(world: World) -> None:
    """Right after a check of the quorum nobody counts as active, and nothing was ever tried again."""
    leader = world.stores[1]
    for replica in leader.groups.replicas.values():
        for progress in replica.raft.progress.values():
            progress.recent_active = False
    leader.groups.hand_over()
    world.settle()
    assert leader.groups.leading
    world.tick(2)
    assert not leader.groups.leading


def test_leadership_goes_back_to_whom_the_map_prefers_once_that_one_has_everything(world: World) -> None:
    first = world.stores[1]
    first.groups.hand_over()
    world.settle()
    first.groups._handing_over = False
    assert 1 not in leaders(world).values()
    world.tick(HAND_BACK_TICKS)
    for store in world.stores.values():
        store.groups.maintain()
    world.settle()
    assert leaders(world) == dict.fromkeys(PARTITIONS, 1)


def test_a_node_that_stops_is_not_given_back_what_it_has_just_given_away(world: World) -> None:
    """The new leader preferred it, and it was gone with the election: an outage of a whole timeout."""
    first = world.stores[1]
    first.groups.hand_over()
    world.settle()
    world.tick(2)
    for store in world.stores.values():
        store.groups.maintain()
    world.settle()
    assert 1 not in leaders(world).values()


def test_a_node_that_stops_while_leadership_is_on_its_way_to_it_stays_until_another_has_it(
    world: World,
) -> None:
    first = world.stores[1]
    first.groups.hand_over()
    world.settle()
    first.groups._handing_over = False
    first.groups._handed_over.clear()
    group, leader = next(iter(leaders(world).items()))
    replica = world.stores[leader].groups.replicas[group]
    replica.raft.transfer(1)
    world.stores[leader].groups.dirty(replica)
    while not (ordered := first.groups.replicas[group].raft).standing:
        world.turn()
    first.groups.hand_over()
    assert ordered.role is not Role.LEADER
    assert first.groups.leading
    world.settle()
    world.tick(2)
    assert not first.groups.leading
    assert leaders(world)[group] in (2, 3)


def test_leadership_does_not_go_back_to_who_has_just_died(world: World) -> None:
    """It counted as active until the next check of the quorum, and writes waited for it."""
    world.stores[1].groups.hand_over()
    world.settle()
    world.tick(HAND_BACK_TICKS)
    assert 1 not in leaders(world).values()
    world.cut.add(1)
    world.tick(4)
    given = []
    for store in (world.stores[2], world.stores[3]):
        store.groups.maintain()
        for replica in store.groups.replicas.values():
            if (leadership := replica.raft.leadership) is not None:
                assert leadership.replication.progress[1].recent_active
                given.append(leadership.transferee)
    assert given
    assert not any(given)


def test_a_node_that_hands_over_does_not_hand_back(world: World) -> None:
    first, second = world.stores[1], world.stores[2]
    first.groups.hand_over()
    world.settle()
    for store in (second, world.stores[3]):
        store.groups._handing_over = True
        store.groups.maintain()
    world.settle()
    assert 1 not in leaders(world).values()
