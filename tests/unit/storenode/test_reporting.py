"""storenode/reporting.py: what a store says of its replicas, of real groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient import protocol
from storenode.control.reports import NEVER, GroupReport, Report, decode_report, encode_report
from storenode.raft.messages import Change, Operation, Transition
from storenode.reporting import SIZE_EVERY, Identity, Reporter
from tests.unit.storenode.replicaworld import PARTITION, Store, World, increment

INCARNATION = "0123456789abcdef" * 2


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def reporter(store: Store) -> Reporter:
    identity = Identity(0xC1, store.node, INCARNATION, "1.0", 1234)
    return Reporter(identity, store.groups.replicas, lambda: 1 << 30)


def tell(world: World, made: Reporter, epoch: int = 1) -> Report:
    report = made.report(epoch, world.clock.monotonic())
    assert decode_report(encode_report(report)) == report, "what travels"
    return report


def only(report: Report) -> GroupReport:
    (group,) = report.groups
    return group


def test_a_leader_tells_of_everybody_and_a_follower_of_itself(world: World) -> None:
    leader = world.lead()
    leader.propose(1, increment())
    world.settle()
    world.tick()
    made = reporter(leader)
    report = tell(world, made, 7)
    assert report[:-1] == (0xC1, leader.node, INCARNATION, 7, "1.0", 1234, 1, 1 << 30)
    group, last = only(report), leader.replica.raft.last_index
    assert (group.partition, group.role, group.leader, group.config_index) == (PARTITION, 2, leader.node, 1)
    assert (group.voters, group.outgoing, group.learners, group.failed) == ((1, 2, 3), (), (), False)
    assert (group.commit, group.durable) == (last, 1)
    others = [store.node for store in world.others(leader)]
    assert [(one.node, one.match, one.state) for one in group.progress] == [
        (node, last, 1) for node in others
    ]
    assert all(one.heard_ms < 1000 for one in group.progress)
    assert tell(world, made).sequence == 2
    follower = only(tell(world, reporter(world.others(leader)[0])))
    assert (follower.role, follower.leader, follower.progress) == (0, leader.node, ())


def test_silence_of_a_member_is_told(world: World) -> None:
    leader = world.elected()
    heard = {one.heard_ms for one in only(tell(world, reporter(leader))).progress}
    assert heard == {NEVER}
    world.lead()
    lost = world.others(leader)[0]
    world.cut = {lost.node}
    world.tick(20)
    silent = {one.node: one.heard_ms for one in only(tell(world, reporter(leader))).progress}
    assert silent[lost.node] > 1500


def test_the_index_of_the_configuration_follows_its_changes_and_is_no_earlier_after_a_start(
    world: World,
) -> None:
    leader = world.lead()
    index = leader.replica.raft.propose_change(Change(Transition.AUTO, ((Operation.REMOVE, 3),)))
    leader.groups.dirty(leader.replica)
    world.settle()
    group = only(tell(world, reporter(leader)))
    assert (group.config_index, group.voters) == (index, (1, 2))
    leader.propose(1, increment())
    world.settle()
    again = world.restart(leader.node, flush=True)
    assert only(tell(world, reporter(again))).config_index >= index


def test_what_the_tables_take_and_hold_is_told_in_time(world: World) -> None:
    leader = world.lead()
    made = reporter(leader)
    assert only(tell(world, made)).bytes == 0
    leader.propose(1, protocol.encode_put(b"k", bytes(100_000)))
    world.settle()
    leader.replica.machine.engine.flush()
    reports = [only(tell(world, made)) for _ in range(SIZE_EVERY)]
    assert reports[0].durable == leader.replica.machine.position.index
    assert reports[-1].bytes > 0


def test_who_waits_to_become_a_member_is_not_told(world: World) -> None:
    leader = world.lead()
    leader.replica.raft.configuration = leader.replica.raft.configuration._replace(voters=frozenset())
    assert tell(world, reporter(leader)).groups == ()


def test_a_replica_that_failed_is_told(world: World) -> None:
    leader = world.lead()
    made = reporter(leader)
    tell(world, made)
    leader.replica.fail(ValueError("broken"))
    assert made.changed()
    assert only(tell(world, made)).failed


def test_a_store_is_heard_though_its_disk_and_an_engine_do_not_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> int:
        raise OSError(5, "Input/output error")

    leader = world.lead()
    monkeypatch.setattr(leader.replica.machine.engine, "stats", broken)
    made = Reporter(Identity(0xC1, 1, INCARNATION, "1.0", 0), leader.groups.replicas, broken)
    report = tell(world, made)
    assert (report.disk_free, only(report).bytes) == (0, 0)


def test_nothing_changes_by_writes_and_time(world: World) -> None:
    made = [reporter(store) for store in world.stores.values()]
    leader = world.lead()
    for one in made:
        assert one.changed()
        tell(world, one)
    for token in range(5):
        leader.propose(token, increment())
        world.tick()
    assert not any(one.changed() for one in made)


def test_leadership_members_and_a_learner_that_has_caught_up_are_news(world: World) -> None:
    leader = world.lead()
    made = reporter(leader)
    tell(world, made)
    change = Change(Transition.AUTO, ((Operation.REMOVE, 3),))
    leader.replica.raft.propose_change(change)
    leader.groups.dirty(leader.replica)
    assert not made.changed(), "not in force"
    world.settle()
    assert made.changed()
    tell(world, made)
    world.cut = {3}
    leader.replica.raft.propose_change(Change(Transition.AUTO, ((Operation.ADD_LEARNER, 3),)))
    leader.groups.dirty(leader.replica)
    world.settle()
    world.tick()
    tell(world, made)
    world.cut = set()
    world.tick(3)
    assert made.changed(), "the learner is no longer looked for, it is sent entries"
    tell(world, made)
    (other,) = leader.replica.raft.configuration.voters - {leader.node}
    leader.replica.raft.transfer(other)
    leader.groups.dirty(leader.replica)
    world.tick(3)
    assert world.stores[other].leads
    assert made.changed()
