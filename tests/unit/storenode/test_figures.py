"""storenode/figures.py: what STATUS answers, of a real cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from shared.clustermap import ClusterMap, Node
from shared.opstream import Limits
from shared.reactor import Reactor
from storenode.figures import Figures
from storenode.maps import Maps
from storenode.service import Service
from tests.unit.storenode.replicaworld import PARTITION, Store, World, increment


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def snapshot(store: Store) -> dict[str, object]:
    nodes = [Node(number, f"store{number}", f"tcp://127.0.0.1:{7000 + number}") for number in (1, 2, 3)]
    cluster_map = ClusterMap.bootstrap("test", 16, 3, nodes)
    maps = Maps(cluster_map)
    reactor = Reactor()
    service = Service(reactor, maps, store.node, Limits(1 << 20), store.clock)
    figures = Figures(store.node, f"store{store.node}", maps, service)
    figures.replicas = store.groups.replicas
    found = figures.snapshot()
    reactor.close()
    msgpack.packb(found)  # what travels
    return found


def group(store: Store) -> dict[str, object]:
    groups = snapshot(store)["groups"]
    assert isinstance(groups, dict)
    found = groups[str(PARTITION)]
    assert isinstance(found, dict)
    return found


def test_leader_and_followers_tell_their_place(world: World) -> None:
    leader = world.lead()
    leader.propose(1, increment())
    world.settle()
    world.tick()
    last = leader.replica.raft.last_index
    mine = group(leader)
    assert (mine["role"], mine["leader"], mine["commit"], mine["applied"]) == (
        "leader",
        leader.node,
        last,
        last,
    )
    assert mine["match"] == {"1": last, "2": last, "3": last}
    for store in world.others(leader):
        other = group(store)
        assert (other["role"], other["leader"], other["applied"]) == ("follower", leader.node, last)
        assert other["match"] == {}


def test_who_asks_for_votes_is_a_candidate(world: World) -> None:
    leader = world.lead()
    store = world.others(leader)[0]
    world.cut = {store.node}
    world.tick(25, nodes=[store.node])
    assert group(store)["role"] == "candidate"


def test_a_replica_that_has_failed_leads_nothing_and_says_why(world: World) -> None:
    """Routers believed in it: it said that it led."""
    leader = world.lead()
    leader.replica.fail(RuntimeError("damage"))
    assert group(leader)["role"] == "failed"
    failed = snapshot(leader)["failed"]
    assert isinstance(failed, dict)
    assert "damage" in failed[str(PARTITION)]
