"""The controller keeps its promises whatever happens to it, to its orders and to the stores."""

from __future__ import annotations

import attrs
import pytest

from storenode.control.placement import rebalanced
from storenode.control.state import CONTROL
from tests.property.controller_model import Model

MOST_S = 400
"""Of healed time: 8 partitions, 2 transfers a node, each of a few seconds, and a replacement's delay."""


def _run(model: Model, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        model.tick()
        down = [store.node for store in model.stores.values() if not store.alive and not store.gone]
        dead = [store.node for store in model.stores.values() if store.gone]
        if len(down) + len(dead) <= 1:
            for group in model.groups.values():
                broken = any(
                    (replica := model.stores[node].replicas.get(group.partition)) is None or replica.failed
                    for node in group.voters
                )
                if not broken and len(group.voters) >= 3:
                    assert model.quorum(group), f"{down} {dead} are down: {group}"


def _rebalance(model: Model) -> None:
    _, planned = rebalanced(model.state)
    queued = {move.partition for move in model.state.moves}
    model.write(model.state.queue((*move, "rebalance") for move in planned if move[0] not in queued))


def _event(model: Model) -> None:
    """Something happens that operators or machines do."""
    random = model.random
    up = [store.node for store in model.stores.values() if store.alive]
    members = {node.id: node for node in model.state.map.nodes}
    able = [node for node in up if node in members and members[node].state != "draining"]
    what = random.choice(("drain", "undrain", "add", "stop", "kill", "fail", "rebalance", "pause", "none"))
    if what == "drain" and len(able) > 3:
        model.mark(random.choice(able), "draining")
    elif what == "undrain":
        for node in members.values():
            if node.state == "draining":
                model.mark(node.id, "up")
                return
    elif what == "add" and len(members) < 8:
        model.add_node()
    elif what in ("stop", "kill") and len(up) == len(model.stores) and len(able) > 4:
        victim = random.choice(up)
        if what == "stop" or model.spares(victim):
            model.stop(victim)
            model.stores[victim].gone = what == "kill"
    elif what == "fail":
        _fail(model)
    elif what == "rebalance" and all(node.state in ("up", "draining") for node in members.values()):
        _rebalance(model)
    elif what == "pause":
        model.write(attrs.evolve(model.state, paused=not model.state.paused))


def _fail(model: Model) -> None:
    group = model.groups[model.random.randrange(8)]
    replicas = [model.stores[node].replicas.get(group.partition) for node in group.voters]
    if group.outgoing or len(group.voters) < 3 or not all(store.alive for store in model.stores.values()):
        return
    if any(replica is None or replica.failed for replica in replicas):
        return
    node = model.random.choice(sorted(group.voters))
    model.stores[node].replicas[group.partition].failed = True
    if group.leader == node:
        group.leader = 0


def _heal(model: Model) -> None:
    model.chaos = False
    for store in model.stores.values():
        if not store.alive and not store.gone:
            model.start(store.node)
    model.write(attrs.evolve(model.state, paused=False))
    for _ in range(MOST_S):
        _run(model, 1.0)
        if not model.unrest():
            return
    raise AssertionError("\n".join(model.unrest()))


@pytest.mark.parametrize("seed", range(24))
def test_every_move_ends_and_nothing_is_lost_on_the_way(seed: int) -> None:
    """Drains, failures, replacements and rebalancing; controllers that die at every step; orders and reports
    that are lost, late and repeated.
    """
    model = Model(seed, nodes=4 + seed % 3, zones=(0, 3)[seed % 2])
    _run(model, 5.0)
    for _ in range(12):
        _event(model)
        _run(model, model.random.uniform(0.5, 15.0))
        for store in model.stores.values():
            if not store.alive and not store.gone and model.random.random() < 0.7:
                model.start(store.node)
    _heal(model)


def test_a_control_node_that_lives_is_not_taken_out_before_one_that_is_lost() -> None:
    model = Model(1, nodes=5)
    model.write(model.state.remap(control=(1, 2, 3)))
    group = model.groups[CONTROL]
    for node in (4, 5):
        model.stores[node].replicas.pop(CONTROL)
    group.voters = {1, 2, 3}
    model.chaos = False
    _run(model, 5.0)
    model.stop(2)
    model.stores[2].gone = True
    model.mark(3, "draining")
    for _ in range(600):
        model.tick()
        assert model.quorum(group)
    assert not group.voters & {2, 3}
