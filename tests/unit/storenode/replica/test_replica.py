"""storenode/replica/replica.py: writes of three replicas with real Raft, engines and logs. What is answered,
when, and what can never happen twice. Reads: test_replica_reads.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient import protocol
from kvclient.errors import Corruption, Status
from storenode.engine.replica_engine import ReplicaEngine
from storenode.raft import Role
from storenode.raft.messages import Entry, EntryKind, Kind, Message
from storenode.replica import commands
from storenode.replica.proposal import Proposal
from storenode.replica.replica import ENTRY_BYTES_MAX, ROUTES_MAX
from tests.unit.storenode.replicaworld import PARTITION, Store, World, increment, reason

OTHER = b"router2"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.cut.clear()
    made.tick(30)  # whoever waits for a leader or a quorum has an answer by then
    for store in made.stores.values():
        assert store.budget.used == 0, "every write gives its bytes back, whatever becomes of it"
        assert store.groups.idle
    made.close()


def entries_of(store: Store) -> list[Entry]:
    log = store.log.group(PARTITION)
    return log.entries(log.first_index, log.last_index + 1, 1 << 30)


def depose(world: World, leader: Store) -> Store:
    """Another store leads; the old one was cut off, and does not know yet."""
    world.cut = {leader.node}
    others = [one.node for one in world.others(leader)]
    for _ in range(60):
        world.tick(nodes=others)
        for other in world.others(leader):
            if other.leads:
                world.settle()
                return other
    raise AssertionError("nobody else leads")


def test_the_writes_of_a_turn_are_one_entry_and_are_answered_in_their_order(world: World) -> None:
    leader = world.lead()
    before = len(entries_of(leader))
    for token in range(1, 6):
        leader.propose(token, protocol.encode_put(b"k%d" % token, b"v"), token)
    world.settle()
    added = entries_of(leader)[before:]
    assert [len(commands.decode(entry.data).writes) for entry in added] == [5]
    assert leader.statuses() == [(token, Status.OK) for token in range(1, 6)]


def test_an_entry_has_an_end_where_it_would_become_too_large(world: World) -> None:
    leader = world.lead()
    leader.budget.limit = 8 << 20
    before = len(entries_of(leader))
    sizes = [600_000, 600_000, 100, ENTRY_BYTES_MAX + 5, 100]
    for token, size in enumerate(sizes):
        leader.propose(token, protocol.encode_put(b"k%d" % token, bytes(size)), token + 1)
    world.settle()
    added = entries_of(leader)[before:]
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


def test_who_does_not_lead_says_who_does(world: World) -> None:
    leader = world.lead()
    world.tick()
    follower = world.others(leader)[0]
    follower.propose(1, increment(), 1)
    ((_, token, status, body),) = follower.taken()
    assert (token, status) == (1, Status.NOT_LEADER)
    assert protocol.decode_error(body)["leader"] == leader.node
    assert follower.budget.used == 0


def test_a_write_that_waits_when_leadership_is_lost_goes_to_the_next_leader(world: World) -> None:
    """Nothing of it is in a log: the answer says so, and who leads."""
    leader = world.lead()
    follower = world.others(leader)[0]
    leader.propose(1, increment(), 1)
    term = leader.replica.raft.term + 1
    heartbeat = Message(leader.node, follower.node, Kind.HEARTBEAT, term)
    leader.groups.on_messages(follower.node, [(PARTITION, heartbeat)])
    leader.turn()
    ((_, token, status, body),) = leader.taken()
    assert (token, status) == (1, Status.NOT_LEADER)
    assert protocol.decode_error(body)["leader"] == follower.node


def elected(world: World) -> Store:
    """Store 1, which has just won; nothing of its term is committed."""
    leader = world.stores[1]
    for _ in range(20):
        if leader.leads:
            return leader
        world.turn()
    raise AssertionError("nobody leads")


def test_a_new_leader_holds_writes_until_it_has_applied_what_was_before(world: World) -> None:
    """Nobody knows the partition's time before."""
    leader = elected(world)
    leader.propose(1, increment(), 1)
    leader.turn()
    assert leader.taken() == []
    assert not leader.replica.idle
    world.settle()
    assert leader.statuses() == [(1, Status.OK)]


def test_the_partitions_time_never_goes_back_while_a_new_leader_still_applies(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on from the entry that it has come to, and later ones are in the log already."""
    leader = world.lead()
    world.deaf = {leader.node}
    for number in range(8):
        leader.propose(number, increment(), number + 1)
        world.tick()
    world.cut, world.deaf = {leader.node}, set()
    monkeypatch.setattr("storenode.groups.APPLY_BYTES_MAX", 1)
    others = world.others(leader)
    for number in range(600):
        if number % 10 == 0:
            world.clock.advance(0.1)
            for store in others:
                store.groups.tick()
        for store in others:
            if store.leads:
                store.propose(number, increment())
        world.turn()
    logged = [commands.decode(entry.data) for entry in entries_of(world.lead()) if entry.data]
    assert len(logged) > 20
    assert [one.stamp_ms for one in logged] == sorted(one.stamp_ms for one in logged)
    assert [one.session_ms for one in logged] == sorted(one.session_ms for one in logged)


def test_what_a_lost_leader_had_proposed_has_an_unknown_outcome_and_is_asked_for_again(world: World) -> None:
    leader = world.lead()
    world.cut = {leader.node}
    leader.propose(1, increment(), 1)
    world.settle()
    world.tick(25)
    ((_, token, status, body),) = leader.taken()
    assert (token, status) == (1, Status.OUTCOME_UNKNOWN)
    assert protocol.decode_error(body)["retry_after_ms"] > 0
    assert leader.replica.raft.role is not Role.LEADER
    world.cut.clear()
    again = world.lead()
    again.propose(2, increment(), 1, retry=True)
    world.settle()
    assert again.statuses() == [(2, Status.OK)]
    assert again.value(b"n") == b"1"


def test_a_write_of_unknown_outcome_that_did_run_is_answered_by_the_next_leader(world: World) -> None:
    leader = world.lead()
    leader.propose(1, increment(), 1)
    leader.turn()
    world.carry()
    new = depose(world, leader)
    assert leader.statuses() == []
    new.propose(2, increment(), 1, retry=True)
    world.settle()
    assert new.statuses() == [(2, Status.OK)]
    assert new.value(b"n") == b"1"
    world.cut.clear()
    world.tick(3)
    assert leader.statuses() in ([(1, Status.OUTCOME_UNKNOWN)], [(1, Status.OK)])
    assert leader.value(b"n") == b"1"


def test_another_leaders_entry_in_the_place_says_that_nothing_was_applied(world: World) -> None:
    """A turn may bring all at once: the other's entry, its commit, and the end of the log write."""
    leader = world.lead()
    follower = world.others(leader)[0]
    raft = leader.replica.raft
    world.cut = {leader.node}
    last, last_term = raft.last_index, raft.log.last_term
    leader.propose(1, increment(), 1)
    leader.turn()
    leader.taken()
    term = raft.term + 1
    entry = Entry(term, EntryKind.NORMAL, b"")
    replica, now = leader.replica, world.clock.monotonic()
    replica.step(
        Message(leader.node, follower.node, Kind.APPEND, term, last, last_term, last + 1, entries=[entry]),
        now,
    )
    unstable = raft.take_unstable()
    assert unstable is not None
    leader.writer.submit(
        [leader.writer.batches[-1][0]._replace(hard=unstable.hard, first_index=last + 1, entries=[entry])],
        lambda written: leader.log.installed(written),  # type: ignore[arg-type]
    )
    leader.writer.write()
    raft.persisted(unstable)
    replica.apply(now, 1 << 20)
    assert leader.statuses() == [(1, Status.NOT_LEADER)]
    # The others know nothing of that term: this one is brought in line by their next leader.
    world.restart(leader.node)
    assert follower.value(b"n") is None


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


def test_a_write_that_waits_for_a_leaders_first_entry_has_a_deadline_too(world: World) -> None:
    leader = elected(world)
    world.cut = {leader.node}
    leader.propose(1, increment(), 1, timeout=0.15)
    leader.turn()
    assert leader.taken() == []
    world.tick(2, nodes=[leader.node])
    assert leader.statuses() == [(1, Status.TIMEOUT)]


def test_a_finished_write_is_answered_again_without_running_again(world: World) -> None:
    leader = world.lead()
    leader.propose(1, increment(), 1)
    world.settle()
    first = leader.taken()[0][3]
    leader.propose(2, increment(), 1, router=OTHER, retry=True)
    assert leader.taken() == [(OTHER, 2, Status.OK, first)]
    world.tick()
    follower = world.others(leader)[0]
    follower.propose(3, increment(), 1, retry=True)
    assert follower.taken() == [(b"router", 3, Status.OK, first)]
    leader.propose(4, increment(), 1, retry=True, timeout=0)
    assert leader.statuses() == [(4, Status.OK)]
    assert leader.value(b"n") == b"1"


@pytest.mark.parametrize("logged", [False, True])
def test_a_retry_of_a_write_under_way_waits_for_it(world: World, logged: bool) -> None:
    leader = world.lead()
    leader.propose(1, increment(), 1)
    if logged:
        leader.turn()
    leader.propose(2, increment(), 1, router=OTHER, retry=True)
    assert leader.taken() == []
    world.settle()
    assert [answer[:3] for answer in leader.taken()] == [(b"router", 1, 0), (OTHER, 2, 0)]
    assert leader.value(b"n") == b"1"


def test_only_so_many_attempts_wait_for_one_write(world: World) -> None:
    leader = world.lead()
    for token in range(ROUTES_MAX + 1):
        leader.propose(token, increment(), 1, retry=token > 0)
    assert leader.statuses() == [(ROUTES_MAX, Status.BUSY)]
    world.settle()
    assert leader.statuses() == [(token, Status.OK) for token in range(ROUTES_MAX)]


def test_a_retry_with_time_left_keeps_an_expiring_write_alive(world: World) -> None:
    leader = world.lead()
    leader.propose(1, increment(), 1, timeout=1)
    leader.propose(2, increment(), 1, retry=True, timeout=5)
    world.clock.advance(2)
    world.settle()
    assert leader.statuses() == [(1, Status.OK), (2, Status.OK)]


def test_a_write_that_was_sent_twice_to_two_leaders_runs_once(world: World) -> None:
    """Both attempts are in the log; the second one is answered from the session table when it is applied."""
    leader = world.lead()
    replica = leader.replica
    attempts = [
        Proposal((b"router", token), 9, 1, 0, flags, increment(), 1e9) for token, flags in ((1, 0), (2, 1))
    ]
    for attempt in attempts:
        assert leader.budget.take(len(attempt.ops))
        replica._pending = [attempt]
        replica.log_pending(world.clock.monotonic())
    leader.groups.dirty(replica)
    world.settle()
    first, second = leader.taken()
    assert first[2:] == second[2:] == (Status.OK, bytes([0x93, 0, 1, 1]))
    assert leader.value(b"n") == b"1"


def test_an_acknowledged_write_is_not_run_again(world: World) -> None:
    leader = world.lead()
    for sequence in (1, 2):
        leader.propose(sequence, increment(), sequence)
    leader.propose(3, increment(), 3, acked_below=3)
    world.settle()
    leader.taken()
    leader.propose(4, increment(), 1)
    world.settle()
    (answer,) = leader.taken()
    assert answer[2] == Status.OUTCOME_UNKNOWN
    assert "acknowledged" in reason(answer[3])
    assert leader.value(b"n") == b"3"


@pytest.mark.parametrize(("client", "sequence"), [(5, 0), (0, 5)])
def test_without_a_session_a_write_runs_each_time_and_a_retry_never(
    world: World, client: int, sequence: int
) -> None:
    leader = world.lead()
    for token in (1, 2):
        leader.propose(token, increment(), sequence, client=client)
    leader.propose(3, increment(), sequence, client=client, retry=True)
    world.settle()
    assert sorted(leader.statuses()) == [(1, 0), (2, 0), (3, Status.OUTCOME_UNKNOWN)]
    assert leader.value(b"n") == b"2"


def test_a_barrier_goes_through_the_log_and_answers_nothing(world: World) -> None:
    leader = world.lead()
    leader.propose(1, b"", 1)
    leader.propose(2, protocol.encode_put(b"k", b"v"), 2)
    world.settle()
    assert leader.taken() == [(b"router", 1, 0, b""), (b"router", 2, 0, bytes([0x92, 0, 1]))]


def test_the_stamp_never_goes_back(world: World) -> None:
    leader = world.lead()
    leader.propose(1, protocol.encode_put(b"k", b"v", ttl_ms=1000), 1)
    world.settle()
    world.clock.jump_wall_ms(-3_600_000)
    leader.propose(2, protocol.encode_put(b"other", b"v"), 2)
    world.settle()
    stamps = [commands.decode(entry.data).stamp_ms for entry in entries_of(leader) if entry.data]
    assert stamps[0] == stamps[1]
    world.tick(2)
    world.clock.jump_wall_ms(3_600_000 + 1000)
    leader.taken()
    leader.read(3, b"k")
    world.settle()
    assert protocol.decode_results(leader.taken()[0][3])[0][0] == Status.NOT_FOUND


def test_the_next_leaders_stamps_and_session_time_go_on_from_the_last_ones(world: World) -> None:
    leader = world.lead()
    world.tick(20)
    world.clock.jump_wall_ms(+3_600_000)
    leader.propose(1, increment(), 1)
    world.settle()
    world.clock.jump_wall_ms(-3_600_000)
    before = leader.replica.machine
    new = depose(world, leader)
    new.propose(2, increment(), 2)
    world.settle()
    after = new.replica.machine
    assert after.stamp_ms == before.stamp_ms
    assert 1900 <= before.session_ms <= 2200
    assert before.session_ms <= after.session_ms <= before.session_ms + 100


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


def test_a_write_during_a_transfer_is_busy_and_nothing_of_it_is_in_the_log(world: World) -> None:
    leader = world.lead()
    behind = world.others(leader)[0]
    world.cut = {behind.node}
    leader.propose(1, increment(), 1)
    world.settle()
    leader.taken()
    leader.replica.raft.transfer(behind.node)
    leader.propose(2, increment(), 2)
    world.settle()
    ((_, token, status, body),) = leader.taken()
    assert (token, status) == (2, Status.BUSY)
    assert protocol.decode_error(body)["retry_after_ms"] > 0
    world.tick(12)
    leader.propose(3, increment(), 2, retry=True)
    world.settle()
    assert leader.statuses() == [(3, Status.OK)]
    assert leader.value(b"n") == b"2"


class Damaged:
    """An engine of which a block that a write needs is damaged."""

    def __init__(self, inner: ReplicaEngine, fail_at: int) -> None:
        self._inner = inner
        self._fail_at = fail_at

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def apply(self, writes: list[bytes], first_sequence: int, now_ms: int) -> list[bytes]:
        if first_sequence + len(writes) > self._fail_at:
            raise Corruption("000007.sst: block at 4096: checksum")
        return self._inner.apply(writes, first_sequence, now_ms)


def test_damage_stops_the_replica_and_everybody_who_waits_is_answered_once(world: World) -> None:
    leader = world.lead()
    leader.replica.machine.engine = Damaged(leader.replica.machine.engine, 2)  # type: ignore[assignment,arg-type]
    for token in (1, 2, 3):
        leader.propose(token, increment(), token)
    leader.turn()
    leader.propose(4, increment(), 4)
    leader.read(5, b"n")
    leader.read(6, b"n")
    world.carry()
    for store in world.others(leader):
        store.turn(2)
    world.carry()
    leader.propose(7, increment(), 7)
    leader.replica.read((b"router", 8), protocol.encode_get(b"n"), 0, 1e9, world.clock.monotonic())
    leader.turn(3)
    found = dict(leader.statuses())
    assert found.keys() == set(range(1, 9))
    assert {found[token] for token in (1, 2, 3, 4, 7)} == {Status.OUTCOME_UNKNOWN}
    assert {found[token] for token in (5, 6, 8)} == {Status.NOT_LEADER}
    assert leader.replica.failure is not None
    assert "checksum" in leader.replica.failure
    assert leader.replica.idle
    leader.propose(9, increment(), 9)
    leader.read(10, b"n")
    refused = leader.taken()
    assert [answer[1:3] for answer in refused] == [(9, Status.NOT_LEADER), (10, Status.NOT_LEADER)]
    assert "out of service" in reason(refused[0][3])


def test_a_replica_that_has_failed_says_nothing_more_and_the_others_go_on(world: World) -> None:
    leader = world.lead()
    leader.replica.machine.engine = Damaged(leader.replica.machine.engine, 1)  # type: ignore[assignment,arg-type]
    leader.propose(1, increment(), 1)
    world.settle()
    leader.turn()
    assert leader.replica.failure
    leader.sent.clear()
    leader.groups.tick()
    leader.turn()
    assert leader.sent == []
    for _ in range(40):
        world.tick()
    new = world.lead()
    assert new is not leader
    assert not leader.groups.leading
    new.propose(2, increment(), 1, retry=True)
    world.settle()
    assert new.statuses() == [(2, Status.OK)]
    assert new.value(b"n") == b"1"


@pytest.mark.parametrize("method", ["step", "tick", "flush", "take_committed"])
def test_whatever_cannot_happen_in_raft_ends_this_replica_alone(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came out of the turn: others lost theirs, and log writes that were taken were never done."""
    world = World(tmp_path, partitions=[3, 7])
    world.lead()
    store = world.stores[1]

    def contradiction(*arguments: object) -> None:
        raise RuntimeError("entry 5 conflicts with the leader's, but 7 is committed")

    monkeypatch.setattr(store.groups.replicas[3].raft, method, contradiction)
    failed, sound = store.groups.replicas[3], store.groups.replicas[7]
    now = world.clock.monotonic()
    failed.read((b"router", 1), protocol.encode_get(b"n"), 0, now + 5, now)
    failed.propose((b"router", 2), 5, 1, 0, 0, increment(), now + 5, now)
    world.tick(2)
    assert failed.failure is not None
    assert "conflicts" in failed.failure
    assert {token for token, _ in store.statuses()} == {1, 2}
    sound.propose((b"router", 3), 5, 1, 0, 0, increment(), now + 5, now)
    world.settle()
    assert store.statuses() == [(3, Status.OK)]
    assert store.budget.used == 0
    world.close()


def test_an_answer_that_fails_leaves_no_write_without_answer(world: World) -> None:
    """Writes of the same entry were never answered, and their bytes stayed taken."""
    leader = world.lead()
    answer = leader.replica._answer

    def failing(router: bytes, token: int, status: int, body: bytes) -> None:
        answer(router, token, status, body)
        if token == 1:
            raise OSError("the outbox is broken")

    leader.replica._answer = failing
    for token in (1, 2, 3):
        leader.propose(token, increment(), token)
    world.settle()
    assert leader.statuses() == [(1, 0), (2, Status.OUTCOME_UNKNOWN), (3, Status.OUTCOME_UNKNOWN)]
    assert leader.budget.used == 0
