"""Terms of storenode/office.py, and the commands that are answered in them."""

from __future__ import annotations

import io

import pytest

from kvclient.errors import Status
from shared import logs
from shared.controlmessages import ControlCommand, ControlRequest
from storenode.control.state import ControlState
from storenode.office import AGAIN_S, BROKEN_S, WAITING_MAX
from storenode.raft import Role
from storenode.raft.messages import Configuration
from tests.unit.storenode.officehouse import CLUSTER, MAP, PEER, FakeReplica, House


@pytest.fixture
def house() -> House:
    return House()


# -- a term of office


def test_the_first_controller_of_all_writes_the_first_state_and_reads_it(house: House) -> None:
    house.turn()
    assert house.group.version == 0
    house.turn()
    assert house.state() == ControlState.first(MAP)
    assert not house.office.sits
    house.sit()
    assert house.in_force == [ControlState.first(MAP)]


def test_a_state_that_is_there_is_taken_with_its_map(house: House) -> None:
    newer = ControlState.first(MAP).remap(paused=True)
    house.group.value, house.group.version = newer.encode(), 42
    house.turn()
    assert house.office.sits
    assert house.in_force == [newer]
    assert house.group.version == 42


def test_who_does_not_lead_does_nothing(house: House) -> None:
    house.group.raft.role, house.group.raft.leader = Role.FOLLOWER, 2
    house.turn()
    assert not house.group.calls
    assert house.office.controller == 2
    house.ask("show")
    assert [(status, body["leader"]) for _, status, body in house.told()] == [(Status.NOT_LEADER, 2)]


def test_a_store_without_a_member_names_those_that_have_one_in_turn() -> None:
    house = House(node=1)
    house.replica = None
    named = set()
    for _ in range(8):
        house.ask("show")
        ((_, status, body),) = house.told()
        assert status == Status.NOT_LEADER
        named.add(body["leader"])
    assert named == set(MAP.control) - {1}
    house.replica = FakeReplica(1)
    house.replica.raft.role, house.replica.raft.leader = Role.FOLLOWER, 0
    house.replica.raft.configuration = Configuration(frozenset())
    house.ask("show")
    assert house.told()[0][2]["leader"] in named


def test_until_the_state_is_read_commands_are_to_come_again(house: House) -> None:
    house.office.tick()
    house.ask("show")
    ((_, status, body),) = house.told()
    assert status == Status.BUSY
    assert body["retry_after_ms"] > 0


def test_a_read_that_fails_is_tried_again(house: House) -> None:
    house.office.tick()
    house.group.refuse(Status.TIMEOUT)
    house.office.end_turn()
    house.turn()
    assert not house.office.sits
    house.turn(AGAIN_S)
    house.sit()


@pytest.mark.parametrize("value", [b"\xc1", ControlState.first(MAP).encode()[:-1], b"\x98" + b"\x63" * 8])
def test_a_state_that_is_none_is_told_loudly_and_no_controller_begins(house: House, value: bytes) -> None:
    out = io.StringIO()
    logs.configure("info", "json", stream=out)
    house.group.value, house.group.version = value, 9
    house.turn()
    assert not house.office.sits
    assert "control_state_not_read" in out.getvalue()
    house.ask("show")
    ((_, status, body),) = house.told()
    assert status == Status.UNAVAILABLE
    assert "control state" in body["message"]
    assert (house.group.value, house.group.version) == (value, 9)
    house.group.value = ControlState.first(MAP).encode()
    house.turn(BROKEN_S)
    assert house.office.sits


def test_an_office_ends_with_its_term(house: House) -> None:
    house.sit()
    house.group.raft.term += 1
    house.office.tick()
    assert not house.office.sits
    house.sit()
    house.group.raft.role = Role.FOLLOWER
    house.office.tick()
    assert not house.office.sits


def test_a_replica_that_failed_has_no_office(house: House) -> None:
    house.sit()
    house.group.failure = "broken"
    house.office.tick()
    assert not house.office.sits
    assert house.office.controller == 0


# -- commands


def test_show_is_answered_at_once_also_to_who_does_not_know_the_cluster(house: House) -> None:
    house.sit()
    house.ask("show")
    house.ask("show", cluster=0)
    first, second = house.told()
    assert first[1] == second[1] == Status.OK
    assert first[2]["controller"] == 1
    assert not house.group.calls


def test_another_cluster_is_refused_and_so_are_wrong_arguments(house: House) -> None:
    house.sit()
    house.ask("show", cluster=7)
    house.ask("show", more=1)
    house.office.on_request(PEER, ControlRequest(9, CLUSTER, 1000, 0, ControlCommand.SHOW, b"\xc1"))
    house.office.on_request(PEER, ControlRequest(10, CLUSTER, 1000, 0, ControlCommand.SHOW, b"\x07"))
    assert {status for _, status in house.statuses()} == {Status.INVALID_REQUEST}


def test_a_change_is_answered_when_it_is_in_force(house: House) -> None:
    house.sit()
    token = house.ask("set", bytes_per_second=1 << 20)
    assert not house.told()
    house.group.answer()
    assert not house.told(), "the replica is at work"
    house.office.end_turn()
    ((answered, status, body),) = house.told()
    assert (answered, status) == (token, Status.OK)
    assert body["settings"]["bytes_per_second"] == 1 << 20
    assert house.state().map.bytes_per_second == 1 << 20
    assert house.in_force[-1] == house.state()


def test_a_dry_run_writes_nothing(house: House) -> None:
    house.sit()
    house.ask("set", dry_run=True, bytes_per_second=1 << 20)
    ((_, status, _),) = house.told()
    assert status == Status.OK
    assert not house.group.calls
    assert house.state() == ControlState.first(MAP)


def test_a_refusal_says_why(house: House) -> None:
    house.sit()
    house.ask("node-remove", node=4)
    ((_, status, body),) = house.told()
    assert status in (Status.CONDITION_FAILED, Status.BUSY)
    assert body["message"]
    assert not house.group.calls


def test_one_write_at_a_time_and_the_rest_waits_in_order(house: House) -> None:
    house.sit()
    tokens = [house.ask("set", transfers_per_node=number) for number in (3, 4, 5)]
    assert len(house.group.calls) == 1
    for _ in range(3):
        house.turn()
    assert [answer[:2] for answer in house.told()] == [(token, Status.OK) for token in tokens]
    assert house.state().settings.transfers_per_node == 5


def test_what_waits_is_bounded_and_in_time(house: House) -> None:
    house.sit()
    house.ask("set", transfers_per_node=3)
    late = house.ask("set", transfers_per_node=4, timeout_ms=10)
    for _ in range(WAITING_MAX):
        last = house.ask("show")
    assert house.statuses() == [(last, Status.BUSY)]
    house.clock.advance(0.5)
    house.group.answer()
    house.office.end_turn()
    house.office.tick()
    statuses = dict(house.statuses())
    assert statuses.pop(late) == Status.TIMEOUT
    assert set(statuses.values()) == {Status.OK}
    assert len(statuses) == WAITING_MAX


def test_a_change_that_came_between_is_read_before_anything_else(house: House) -> None:
    house.sit()
    other = house.state().remap(paused=True)
    house.group.value, house.group.version = other.encode(), house.group.version + 1
    house.ask("set", transfers_per_node=3)
    house.turn()
    assert [status for _, status, _ in house.told()] == [Status.BUSY]
    house.turn()
    assert house.in_force[-1] == other
    house.ask("set", transfers_per_node=3)
    house.turn()
    assert house.state().paused
    assert house.state().settings.transfers_per_node == 3


def test_leadership_that_is_lost_leaves_a_command_unknown_and_what_waits_undone(house: House) -> None:
    house.sit()
    known = house.ask("set", transfers_per_node=3)
    waits = house.ask("show")
    house.group.raft.role, house.group.raft.leader = Role.FOLLOWER, 2
    house.office.tick()
    assert house.statuses() == [(waits, Status.NOT_LEADER)]
    house.group.refuse(Status.OUTCOME_UNKNOWN)
    house.office.end_turn()
    assert house.statuses() == [(known, Status.OUTCOME_UNKNOWN)]


def test_what_was_written_is_ok_though_the_office_has_ended(house: House) -> None:
    house.sit()
    token = house.ask("set", transfers_per_node=3)
    house.group.raft.term += 1
    house.office.tick()
    assert len(house.group.calls) == 1, "nothing is read while a write is under way"
    house.group.answer()
    house.office.end_turn()
    assert house.statuses() == [(token, Status.OK)]
    assert not house.office.sits
    house.sit()
    assert house.in_force[-1].settings.transfers_per_node == 3


@pytest.mark.parametrize("status", [Status.BUSY, Status.TIMEOUT, Status.NOT_LEADER])
def test_a_write_that_was_not_taken_changes_nothing(house: House, status: Status) -> None:
    house.sit()
    token = house.ask("set", transfers_per_node=3)
    house.group.refuse(status)
    house.office.end_turn()
    assert house.statuses() == [(token, status)]
    assert house.office.sits
    house.ask("set", transfers_per_node=4)
    house.turn()
    assert house.state().settings.transfers_per_node == 4
