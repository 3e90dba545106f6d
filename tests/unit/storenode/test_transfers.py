"""Leadership handed over by command, on real logs and engines; what `show` tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient.errors import Status
from shared.groupmessages import GroupCommand
from storenode.groups import HAND_BACK_TICKS
from tests.unit.storenode.grouphouse import House, founded

SHOW, TRANSFER = GroupCommand.SHOW, GroupCommand.TRANSFER_LEADER
ADD, PROMOTE = GroupCommand.ADD_LEARNER, GroupCommand.PROMOTE


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Nodes 1 to 3 founded partition 0, node 1 leads it; node 4 has nothing."""
    yield from founded(tmp_path)


def test_a_transfer_ends_at_the_new_leader_who_keeps_it_against_the_preferred_one(house: House) -> None:
    assert house.nodes[1].groups.preferred(0) == 1
    status, answer = house.run(1, TRANSFER, 2)
    assert (status, answer["leader"]) == (Status.NOT_LEADER, 2)
    status, answer = house.run(2, TRANSFER, 2)
    assert (status, answer["leader"]) == (Status.OK, 2)
    house.tick(2)
    for _ in range(3):
        house.tick(HAND_BACK_TICKS)
        house.nodes[2].groups.maintain()
    assert house.leader() == 2


def test_without_an_order_the_leadership_goes_back_to_the_preferred_one(house: House) -> None:
    house.transfer(1, 2)
    house.tick(HAND_BACK_TICKS + 2)
    assert house.leader() == 2
    house.nodes[2].groups.maintain()
    house.tick(3)
    assert house.leader() == 1


def test_an_order_holds_for_one_term_only(house: House) -> None:
    house.run(1, TRANSFER, 2)
    house.run(2, TRANSFER, 2)
    house.elect(3)
    house.elect(2)
    house.tick(HAND_BACK_TICKS + 2)
    house.nodes[2].groups.maintain()
    house.tick(3)
    assert house.leader() == 1


def test_a_transfer_that_nobody_follows_is_given_up(house: House) -> None:
    house.cut_off = {2}
    status, answer = house.run(1, TRANSFER, 2)
    assert status == Status.CONDITION_FAILED
    assert answer["message"] == "store2 (node 2) did not take over in time; store1 (node 1) leads on"
    house.put(1, b"k", b"and takes writes again")


def test_what_was_applied_is_acted_on_in_the_next_turn_not_at_the_next_tick(house: House) -> None:
    """A joint configuration is left, and a new member is spoken to, without time passing."""
    began = house.clock.monotonic()
    for command in (ADD, PROMOTE):
        token = house.tell(1, command, 4)
        house.settle()
        assert house.reply(1, token)[0] == Status.OK
    assert house.clock.monotonic() == began
    assert house.replica(1).raft.progress[4].match == house.replica(1).raft.last_index


def test_show_tells_the_place_of_each_member(house: House) -> None:
    house.run(1, ADD, 4)
    house.tick(2)
    status, answer = house.run(1, SHOW, 0)
    assert (status, answer["partition"], answer["leader"]) == (Status.OK, 0, 1)
    assert [(one["id"], one["role"], one["lag"]) for one in answer["members"]] == [
        (1, "leader", 0),
        (2, "voter", 0),
        (3, "voter", 0),
        (4, "learner", 0),
    ]
