"""storenode/erasing.py with the commands before it: what may be erased, what stays of it, and that it may
come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient.errors import Status
from shared.groupmessages import GroupCommand
from storenode.engine.tools.places import find_site
from storenode.engine.vfs import Vfs
from storenode.engines import CONTROL_ENGINE
from storenode.groups import TICK_S
from storenode.offline import ReplicatedLog
from storenode.raft.messages import HardState, Kind, Message
from storenode.raftframes import CONTROL
from storenode.replica.statemachine import JOINING
from tests.unit.storenode.grouphouse import House
from tests.unit.storenode.test_groupcommands import text

ADD, REMOVE, REPLACE, HOST, ERASE = (
    GroupCommand.ADD_LEARNER,
    GroupCommand.REMOVE,
    GroupCommand.REPLACE,
    GroupCommand.HOST,
    GroupCommand.ERASE,
)
SECOND = round(1 / TICK_S)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Nodes 1 to 3 founded partition 0, node 1 leads it; node 4 has nothing."""
    made = House(tmp_path)
    made.elect(1)
    made.put(1, b"k", b"v")
    made.tick(2)
    yield made
    made.close()


def remove(house: House, node: int) -> int:
    """The index with which the node has left."""
    assert house.run(1, REMOVE, node)[0] == Status.OK
    house.tick(2)
    return house.replica(1).machine.configured_at


def promised(house: House, node: int) -> HardState:
    return house.nodes[node].log.group(0).hard_state


def engine_path(house: House, node: int) -> Path:
    return Path(house.nodes[node].engines.path(0))


def test_a_replica_that_has_left_is_erased_and_its_promises_stay(house: House) -> None:
    index = remove(house, 3)
    before = promised(house, 3)
    assert before.term > 0
    status, answer = house.run(3, ERASE, 3, other=index)
    assert (status, answer["changed"]) == (Status.OK, True)
    node = house.nodes[3]
    assert node.groups.replicas == {}
    assert list(engine_path(house, 3).parent.iterdir()) == []
    assert node.shared.manifest.engines() == []
    log = node.log.group(0)
    assert (log.first_index, log.last_index) == (1, 0)
    assert promised(house, 3) == HardState(before.term, before.vote, 0)
    house.put(1, b"k", b"the others go on")


def test_what_is_erased_stays_erased_after_a_restart_and_the_log_still_has_its_promises(house: House) -> None:
    index = remove(house, 3)
    house.run(3, ERASE, 3, other=index)
    before = promised(house, 3)
    house.stop(3)
    house.start(3)
    assert house.nodes[3].groups.replicas == {}, "it was a founder, but that is over"
    assert not engine_path(house, 3).exists()
    assert promised(house, 3) == before


def test_messages_that_come_late_bring_nothing_back(house: House) -> None:
    index = remove(house, 3)
    house.run(3, ERASE, 3, other=index)
    before = promised(house, 3)
    late = Message(3, 1, Kind.VOTE, before.term + 5, 1000, before.term)
    house.nodes[3].groups.on_messages(1, [(0, late)])
    house.tick(2 * SECOND)
    assert house.nodes[3].groups.replicas == {}
    assert promised(house, 3) == before


def test_a_second_order_finds_nothing_to_do(house: House) -> None:
    index = remove(house, 3)
    house.run(3, ERASE, 3, other=index)
    status, answer = house.run(3, ERASE, 3, other=index)
    assert (status, answer["changed"]) == (Status.OK, False)


def test_orders_that_come_while_it_is_under_way_are_answered_with_it(house: House) -> None:
    index = remove(house, 3)
    tokens = [house.tell(3, ERASE, 3, other=index) for _ in range(3)]
    assert "is being erased" in text(house.run(3, HOST, 3), Status.BUSY)
    house.settle()
    assert [house.reply(3, token)[1]["changed"] for token in tokens] == [True] * 3


def test_the_node_may_host_the_partition_again_under_the_same_id_and_remembers_its_vote(house: House) -> None:
    index = remove(house, 3)
    house.run(3, ERASE, 3, other=index)
    before = promised(house, 3)
    assert house.run(3, HOST, 3)[0] == Status.OK
    replica = house.replica(3)
    assert replica.machine.position == JOINING
    assert (replica.raft.term, replica.raft.vote) == (before.term, before.vote)
    house.stop(3)
    house.start(3)
    assert (house.replica(3).raft.term, house.replica(3).raft.vote) == (before.term, before.vote)
    assert house.run(1, ADD, 3)[0] == Status.OK
    house.tick(SECOND)
    assert house.run(1, GroupCommand.PROMOTE, 3)[0] == Status.OK
    house.tick(2)
    assert house.get(3, b"k")[1] == b"v"
    assert sorted(house.replica(3).raft.configuration.voters) == [1, 2, 3]


def test_one_that_never_heard_of_its_removal_is_erased_all_the_same(house: House) -> None:
    house.cut_off = {3}
    house.tick(SECOND + 1)
    index = remove(house, 3)
    assert 3 in house.replica(3).raft.configuration.voters
    assert house.replica(3).raft.last_index < index
    assert house.run(3, ERASE, 3, other=index)[0] == Status.OK
    assert house.nodes[3].groups.replicas == {}


def test_a_member_is_not_erased(house: House) -> None:
    house.tick(2)
    index = house.replica(2).raft.applied_index
    reason = text(house.run(2, ERASE, 2, other=index), Status.CONDITION_FAILED)
    assert reason.startswith(
        "store2 (node 2) is a member in the configuration voters=(1 2 3), and has applied"
    )
    assert "leads" in text(house.run(1, ERASE, 1, other=index + 100), Status.BUSY)
    assert sorted(house.nodes[2].groups.replicas) == [0]


def test_an_order_that_comes_late_does_not_erase_who_has_come_back(house: House) -> None:
    index = remove(house, 3)
    assert house.run(1, ADD, 3)[0] == Status.OK
    house.tick(2)
    assert "is a member in the configuration" in text(
        house.run(3, ERASE, 3, other=index), Status.CONDITION_FAILED
    )


def test_who_has_the_entry_that_brings_it_back_is_not_erased_even_if_it_is_not_applied(house: House) -> None:
    """What it acknowledges from there on may be what commits an entry."""
    index = remove(house, 3)
    applied = house.replica(3).raft.applied_index
    house.replica(3).machine.engine.flush()
    house.cut_off = {3}
    leader = house.replica(1).raft
    assert house.run(1, ADD, 3)[0] == Status.OK
    entries = leader.log.entries(applied + 1, leader.last_index + 1, 1 << 20)
    house.stop(3)
    house.start(3)
    raft = house.replica(3).raft
    assert (raft.applied_index, raft.last_index) == (applied, applied)
    raft.step(Message(3, 1, Kind.APPEND, leader.term, applied, raft.log.term(applied), 0, 0, 0, entries))
    assert raft.applied_index == applied
    back = raft.last_index
    reason = text(house.run(3, ERASE, 3, other=index, dry=True), Status.BUSY)
    assert reason == f"store3 (node 3) comes back with entry {back:,}, applied is {applied:,}"


def test_a_replica_that_waits_to_become_a_member_is_not_erased(house: House) -> None:
    assert house.run(4, HOST, 4)[0] == Status.OK
    assert "waits to become a member" in text(house.run(4, ERASE, 4, other=9), Status.CONDITION_FAILED)


def test_an_order_for_another_node_is_refused(house: House) -> None:
    assert text(house.run(3, ERASE, 2, other=9), Status.INVALID_REQUEST) == "this is node 3, not node 2"


@pytest.mark.parametrize("step", ["set_aside", "remove"])
def test_a_disk_that_refuses_is_told_and_the_next_order_goes_on_from_there(house: House, step: str) -> None:
    index = remove(house, 3)
    before = promised(house, 3)
    house.nodes[3].engines.refused = step
    reason = text(house.run(3, ERASE, 3, other=index), Status.UNAVAILABLE)
    assert reason == "its data cannot be removed: [Errno 28] No space left on device"
    assert "is being erased" in text(house.run(3, HOST, 3), Status.BUSY)
    house.nodes[3].engines.refused = ""
    assert house.run(3, ERASE, 3, other=index)[0] == Status.OK
    assert list(engine_path(house, 3).parent.iterdir()) == []
    assert promised(house, 3) == HardState(before.term, before.vote, 0)


@pytest.mark.parametrize("step", ["set_aside", "remove"])
def test_a_process_that_ends_in_the_middle_leaves_the_whole_replica_or_none(house: House, step: str) -> None:
    index = remove(house, 3)
    before = promised(house, 3)
    house.nodes[3].engines.refused = step
    house.run(3, ERASE, 3, other=index)
    house.stop(3)
    house.start(3)
    node = house.nodes[3]
    assert (promised(house, 3).term, promised(house, 3).vote) == (before.term, before.vote)
    if step == "set_aside":
        house.tick(2)
        assert house.get(3, b"k")[1] == b"v"
        assert house.run(3, ERASE, 3, other=index)[0] == Status.OK
    assert node.groups.replicas == {}
    assert list(engine_path(house, 3).parent.iterdir()) == []


def test_a_set_aside_engine_comes_back_if_the_log_still_has_the_group(house: House) -> None:
    remove(house, 3)
    house.replica(3).machine.engine.flush()
    house.stop(3)
    path = house.path / "store3" / "partitions"
    (path / "0000").rename(path / "0000.erased")
    house.start(3)
    house.tick(2)  # what it had not flushed is applied again when it hears the commit index
    assert house.get(3, b"k")[1] == b"v"
    assert [each.name for each in path.iterdir()] == ["0000"]


def test_the_control_partition_is_hosted_and_tools_know_it_and_what_was_erased(house: House) -> None:
    index = remove(house, 3)
    house.run(3, ERASE, 3, other=index)
    assert house.run(3, HOST, 3, partition=CONTROL)[0] == Status.OK
    house.stop(3)
    house.start(3)
    assert list(house.nodes[3].groups.replicas) == [CONTROL]
    house.stop(3)
    path = house.path / "store3"
    assert [place.engine_id for place in find_site(Vfs(), str(path)).places] == [CONTROL_ENGINE]
    log = ReplicatedLog(Vfs(), str(path / "raft"), 3)
    assert log.check({CONTROL_ENGINE: None}).problems == []
