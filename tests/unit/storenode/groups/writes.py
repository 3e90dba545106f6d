"""Writes to the partitions of a world, and what they leave in the logs."""

from __future__ import annotations

from kvclient import protocol
from kvclient.errors import Status
from tests.unit.storenode.replicaworld import Store, World

PARTITIONS = [3, 7, 9]


def propose(store: Store, group: int, token: int, ops: bytes, sequence: int = 0) -> None:
    now = store.clock.monotonic()
    store.groups.replicas[group].propose((b"router", token), 5, sequence, 0, 0, ops, now + 60, now)


def large(number: int) -> bytes:
    return protocol.encode_put(b"k%d" % number, bytes(20_000))


def fill(world: World, group: int, count: int) -> None:
    leader = world.stores[1]
    for number in range(count):
        propose(leader, group, number, large(number))
        world.settle()
    assert leader.statuses() == [(number, Status.OK) for number in range(count)]


def first_index(store: Store, group: int) -> int:
    return store.log.group(group).first_index
