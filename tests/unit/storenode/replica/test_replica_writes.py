"""Writes of storenode/replica/replica.py, by three replicas with real Raft, engines and logs, as long as one
of them leads: what becomes an entry, what is refused before, when it is answered, and what time it gets.
"""

from __future__ import annotations

import pytest

from kvclient import protocol
from kvclient.errors import Status
from storenode.engine.replica_engine import ReplicaEngine
from storenode.replica import commands
from storenode.replica.proposal import ENTRY_BYTES_MAX
from tests.unit.storenode.replicaworld import World, increment


def test_the_writes_of_a_turn_are_one_entry_and_are_answered_in_their_order(world: World) -> None:
    leader = world.lead()
    before = len(leader.entries())
    for token in range(1, 6):
        leader.propose(token, protocol.encode_put(b"k%d" % token, b"v"), token)
    world.settle()
    added = leader.entries()[before:]
    assert [len(commands.decode(entry.data).writes) for entry in added] == [5]
    assert leader.statuses() == [(token, Status.OK) for token in range(1, 6)]


def test_an_entry_has_an_end_where_it_would_become_too_large(world: World) -> None:
    leader = world.lead()
    leader.budget.limit = 8 << 20
    before = len(leader.entries())
    sizes = [600_000, 600_000, 100, ENTRY_BYTES_MAX + 5, 100]
    for token, size in enumerate(sizes):
        leader.propose(token, protocol.encode_put(b"k%d" % token, bytes(size)), token + 1)
    world.settle()
    added = leader.entries()[before:]
    assert [len(commands.decode(entry.data).writes) for entry in added] == [1, 2, 1, 1]
    assert leader.statuses() == [(token, Status.OK) for token in range(5)]


def test_a_write_is_answered_when_it_is_applied_and_no_earlier(world: World) -> None:
    leader = world.lead()
    for store in world.stores.values():
        store.writer.held = True
    leader.propose(1, protocol.encode_put(b"k", b"v"), 1)
    world.settle()
    assert leader.taken() == []
    assert leader.value(b"k") is None
    for store in world.stores.values():
        store.writer.held = False
        store.writer.write()
    world.settle()
    assert leader.taken() == [(b"router", 1, Status.OK, bytes([0x92, 0, 1]))]
    assert leader.value(b"k") == b"v"


def test_every_replica_applies_the_same(world: World) -> None:
    leader = world.lead()
    leader.propose(1, protocol.encode_put(b"k", b"v"), 1)
    leader.propose(2, increment(), 2)
    world.settle()
    world.tick()
    for store in world.stores.values():
        assert store.value(b"k") == b"v"
        assert store.replica.machine.dump() == leader.replica.machine.dump()


def test_a_barrier_goes_through_the_log_and_answers_nothing(world: World) -> None:
    leader = world.lead()
    leader.propose(1, b"", 1)
    leader.propose(2, protocol.encode_put(b"k", b"v"), 2)
    world.settle()
    assert leader.taken() == [(b"router", 1, 0, b""), (b"router", 2, 0, bytes([0x92, 0, 1]))]


def test_a_write_after_its_deadline_is_not_proposed(world: World) -> None:
    leader = world.lead()
    leader.propose(1, increment(), 1, timeout=0)
    assert leader.statuses() == [(1, Status.TIMEOUT)]
    leader.propose(2, increment(), 2, timeout=1)
    leader.propose(3, increment(), 3, timeout=3)
    world.clock.advance(1)
    world.settle()
    assert leader.statuses() == [(2, Status.TIMEOUT), (3, Status.OK)]
    leader.propose(4, increment(), 2, retry=True)
    world.settle()
    assert leader.statuses() == [(4, Status.OK)]
    assert leader.value(b"n") == b"2"


def test_the_stamp_never_goes_back(world: World) -> None:
    leader = world.lead()
    leader.propose(1, protocol.encode_put(b"k", b"v", ttl_ms=1000), 1)
    world.settle()
    world.clock.jump_wall_ms(-3_600_000)
    leader.propose(2, protocol.encode_put(b"other", b"v"), 2)
    world.settle()
    stamps = [commands.decode(entry.data).stamp_ms for entry in leader.entries() if entry.data]
    assert stamps[0] == stamps[1]
    world.tick(2)
    world.clock.jump_wall_ms(3_600_000 + 1000)
    leader.taken()
    leader.read(3, b"k")
    world.settle()
    assert protocol.decode_results(leader.taken()[0][3])[0][0] == Status.NOT_FOUND


def test_over_the_byte_budget_is_busy(world: World) -> None:
    leader = world.lead()
    large = protocol.encode_put(b"k", bytes(400_000))
    for token in (1, 2, 3):
        leader.propose(token, large, token)
    (refused,) = leader.taken()
    assert refused[1:3] == (3, Status.BUSY)
    assert protocol.decode_error(refused[3])["retry_after_ms"] > 0
    world.settle()
    leader.propose(4, large, 3)
    world.settle()
    assert leader.statuses() == [(1, 0), (2, 0), (4, 0)]


def test_a_write_larger_than_the_whole_budget_passes_alone(world: World) -> None:
    leader = world.lead()
    leader.budget.limit = 1000
    leader.propose(1, protocol.encode_put(b"k", bytes(5000)), 1)
    world.settle()
    assert leader.statuses() == [(1, Status.OK)]


def test_compaction_pressure_is_busy_before_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    leader = world.lead()
    monkeypatch.setattr(ReplicaEngine, "pressure", lambda engine: 2)
    leader.propose(1, increment(), 1)
    (answer,) = leader.taken()
    assert answer[2] == Status.BUSY
    assert protocol.decode_error(answer[3])["retry_after_ms"] > 0
    assert leader.replica.idle
