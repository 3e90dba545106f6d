"""storenode/maps.py: which map is taken, who is told, and what is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from shared.clustermap import ClusterMap, Node
from storenode.maps import Maps, MapWriter


def cluster_map(name: str = "test", partitions: int = 8) -> ClusterMap:
    nodes = [Node(number, f"store{number}", f"tcp://127.0.0.1:{7000 + number}") for number in (1, 2, 3)]
    return ClusterMap.bootstrap(name, partitions, 3, nodes)


FIRST = cluster_map()


def later(epoch: int) -> ClusterMap:
    return attrs.evolve(FIRST, epoch=epoch, nodes=(*FIRST.nodes, Node(4, "store4", "tcp://127.0.0.1:7004")))


def test_a_newer_map_is_taken_and_whoever_follows_is_told_once() -> None:
    maps = Maps(FIRST)
    told: list[int] = []
    maps.follow(lambda newest: told.append(newest.epoch))
    assert (maps.map, maps.encoded, maps.node(4)) == (FIRST, FIRST.encode(), None)
    assert maps.take(later(5))
    assert (maps.map, maps.encoded) == (later(5), later(5).encode())
    assert maps.names[4] == "store4"
    node = maps.node(4)
    assert node is not None
    assert node.name == "store4"
    assert not maps.take(later(5)), "it is there"
    assert not maps.take(later(4)), "an older one, from a store that was asleep"
    assert told == [5]


@pytest.mark.parametrize("foreign", [cluster_map("other"), cluster_map(partitions=16)])
def test_a_map_of_another_cluster_is_never_taken(foreign: ClusterMap) -> None:
    maps = Maps(FIRST)
    assert not maps.take(attrs.evolve(foreign, epoch=9))
    assert maps.map == FIRST


def test_who_fails_to_follow_costs_the_others_nothing() -> None:
    maps = Maps(FIRST)
    told: list[int] = []

    def fails(newest: ClusterMap) -> None:
        raise ValueError(newest.epoch)

    maps.follow(fails)
    maps.follow(lambda newest: told.append(newest.epoch))
    assert maps.take(later(2))
    assert maps.take(later(3))
    assert told == [2, 3]


class Disk:
    """What was begun beside the loop, and is done when the test says so."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.fails = False
        self.under_way: list[tuple[Callable[[], object], Callable[[Any], None]]] = []
        self.writer = MapWriter(self._write, lambda work, done: self.under_way.append((work, done)))

    def _write(self, written: ClusterMap) -> None:
        if self.fails:
            raise OSError(28, "No space left on device")
        self.written.append(written.epoch)

    def finish(self) -> None:
        work, done = self.under_way.pop(0)
        try:
            result: object = work()
        except OSError as error:
            result = error
        done(result)


def test_maps_are_written_one_at_a_time_and_of_those_that_wait_the_last() -> None:
    disk = Disk()
    for epoch in (2, 3, 4):
        disk.writer.keep(later(epoch))
    assert len(disk.under_way) == 1
    disk.finish()
    disk.finish()
    assert (disk.written, disk.under_way) == ([2, 4], [])
    disk.writer.keep(later(5))
    disk.finish()
    assert disk.written == [2, 4, 5]


def test_a_disk_that_refuses_gets_the_next_map() -> None:
    disk = Disk()
    disk.fails = True
    disk.writer.keep(later(2))
    disk.finish()
    disk.fails = False
    disk.writer.keep(later(3))
    disk.finish()
    assert disk.written == [3]
