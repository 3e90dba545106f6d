"""storenode/groupcommands.py, hosting.py, founding.py on real logs and engines: a group changes members."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvclient import protocol
from kvclient.errors import Status
from shared.groupmessages import GroupCommand
from storenode.groupcommands import ASKERS_MAX
from storenode.groups import HAND_BACK_TICKS, TICK_S
from storenode.raft import Role
from storenode.replica.statemachine import JOINING
from tests.unit.storenode.grouphouse import ASKER, House, founded

SHOW, TRANSFER = GroupCommand.SHOW, GroupCommand.TRANSFER_LEADER
ADD, PROMOTE, REMOVE, REPLACE, HOST = (
    GroupCommand.ADD_LEARNER,
    GroupCommand.PROMOTE,
    GroupCommand.REMOVE,
    GroupCommand.REPLACE,
    GroupCommand.HOST,
)
SECOND = round(1 / TICK_S)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Nodes 1 to 3 founded partition 0, node 1 leads it; node 4 has nothing."""
    yield from founded(tmp_path)


def text(reply: tuple[Status, dict[str, Any]], status: Status) -> str:
    assert reply[0] == status
    return str(reply[1]["message"])


def members(house: House, number: int) -> tuple[list[int], list[int]]:
    configuration = house.replica(number).raft.configuration
    return sorted(configuration.voters), sorted(configuration.learners)


def stale_read(house: House, number: int) -> Status:
    """Of data that may be ten seconds old."""
    now = house.clock.monotonic()
    house.replica(number).read((ASKER, 0), protocol.encode_get(b"k"), 10_000, now + 5, now)
    house.settle()
    return house.nodes[number].answers.pop(0)[0]


# -- a member comes and goes


def test_a_partition_moves_with_its_data_from_one_node_to_another(house: House) -> None:
    for number in range(20):
        house.put(1, b"k%d" % number, b"v%d" % number)
    status, answer = house.run(1, ADD, 4)
    assert (status, answer["learners"], answer["changed"]) == (Status.OK, [4], True)
    house.tick(3)
    assert house.installed == 1, "the group was born with its log cut, so data comes as a snapshot"
    assert house.get(4, b"k7")[1] == b"v7"
    status, answer = house.run(1, PROMOTE, 4)
    assert (status, answer["voters"], answer["learners"]) == (Status.OK, [1, 2, 3, 4], [])
    status, answer = house.run(1, REMOVE, 3)
    assert (status, answer["voters"]) == (Status.OK, [1, 2, 4])
    house.put(1, b"after", b"x")
    house.tick(2)
    assert house.get(4, b"after")[1] == b"x"
    assert members(house, 1) == members(house, 4) == ([1, 2, 4], [])


def test_the_new_member_counts_for_commits_and_can_lead(house: House) -> None:
    for command, node in ((ADD, 4), (PROMOTE, 4), (REMOVE, 3)):
        assert house.run(1, command, node)[0] == Status.OK
        house.tick(2)
    house.cut_off = {2, 3}
    house.put(1, b"k", b"1 and 4 are a majority")
    house.cut_off = set()
    assert house.run(1, TRANSFER, 4)[0] == Status.NOT_LEADER
    house.tick(2)
    assert house.leader() == 4
    house.put(4, b"k", b"written by the new one")
    house.tick(2)
    assert house.get(2, b"k")[1] == b"written by the new one"


def test_a_learner_takes_a_voters_place_in_one_command(house: House) -> None:
    assert house.run(1, ADD, 4)[0] == Status.OK
    house.tick(1)
    status, answer = house.run(1, REPLACE, 4, other=3, dry=True)
    assert (status, answer["voters"], answer["learners"]) == (Status.OK, [1, 2, 4], [])
    status, answer = house.run(1, REPLACE, 4, other=3)
    assert (status, answer["voters"], answer["learners"]) == (Status.OK, [1, 2, 4], [])
    status, answer = house.run(1, REPLACE, 4, other=3)
    assert (status, answer["changed"]) == (Status.OK, False)


def test_a_learner_that_has_its_snapshot_may_take_a_place_with_the_next_tick(house: House) -> None:
    house.snapshots_stopped = True
    house.run(1, ADD, 4)
    house.tick(2 * SECOND)
    assert "store4 (node 4) waits for a snapshot" in text(
        house.run(1, REPLACE, 4, other=3), Status.CONDITION_FAILED
    )
    house.snapshots_stopped = False
    house.tick(SECOND)
    assert house.installed == 1
    token = house.tell(1, REPLACE, 4, other=3)
    house.settle()
    assert house.reply(1, token)[0] == Status.OK


def test_a_replacement_names_nodes_of_the_cluster(house: House) -> None:
    house.run(1, ADD, 4)
    house.tick(1)
    assert "there is no node 9" in text(house.run(1, REPLACE, 4, other=9), Status.INVALID_REQUEST)
    assert "there is no node 0" in text(house.run(1, REPLACE, 4), Status.INVALID_REQUEST)


def test_a_change_of_members_is_soon_in_the_tables_of_all_that_apply_it(house: House) -> None:
    house.run(1, ADD, 4)
    house.tick(2)
    index = house.run(1, REPLACE, 4, other=3)[1]["index"]
    house.tick(2)
    for number in (1, 2, 4):
        node = house.nodes[number]
        tree = node.engines.open_ones[0].tree
        node.shared.wait_for(lambda tree=tree: not tree.retired)  # type: ignore[misc]
        assert house.replica(number).machine.durable().index > index, "beyond the joint configuration"


def test_leadership_is_not_handed_back_while_members_change(house: House) -> None:
    house.run(1, ADD, 4)
    house.tick(2)
    house.transfer(1, 2)
    house.tick(2)
    for _ in range(3):
        house.tick(HAND_BACK_TICKS)
        house.nodes[2].groups.maintain()
    house.tick(3)
    assert house.leader() == 2, "a learner is on its way in"
    assert house.run(2, REMOVE, 4)[0] == Status.OK
    house.nodes[2].groups.maintain()
    house.tick(3)
    assert house.leader() == 1


def test_a_restart_of_the_new_member_opens_its_replica_again(house: House) -> None:
    for command in (ADD, PROMOTE):
        assert house.run(1, command, 4)[0] == Status.OK
        house.tick(2)
    house.stop(4)
    house.put(1, b"k", b"while it was away")
    house.start(4)
    assert 4 in house.replica(4).raft.configuration.members, "from its own disk"
    house.tick(3)
    assert members(house, 4) == ([1, 2, 3, 4], [])
    assert house.get(4, b"k")[1] == b"while it was away"
    assert house.installed == 1, "the log had what it missed"


def test_a_restart_before_the_snapshot_came_leaves_a_member_that_still_waits_for_it(house: House) -> None:
    house.snapshots_stopped = True
    assert house.run(1, ADD, 4)[0] == Status.OK
    house.tick(2)
    house.stop(4)
    house.start(4)
    assert house.replica(4).machine.position == JOINING
    house.snapshots_stopped = False
    house.tick(2 * SECOND)
    assert house.get(4, b"k")[1] == b"v"


def test_a_hosted_partition_is_durable_before_the_host_says_so(house: House) -> None:
    token = house.tell(4, HOST, 4)
    assert token not in house.nodes[4].group_replies
    house.settle()
    assert house.reply(4, token) == (Status.OK, {"partition": 0})
    house.stop(4)
    house.start(4)
    replica = house.replica(4)
    assert (replica.machine.position, replica.raft.configuration.members) == (JOINING, frozenset())


def test_an_empty_replica_neither_stands_nor_serves_what_it_does_not_have(house: House) -> None:
    house.snapshots_stopped = True
    house.run(1, ADD, 4)
    house.tick(2)
    assert stale_read(house, 4) == Status.NOT_LEADER, "it hears the leader, and has nothing of what it tells"
    term = house.replica(1).raft.term
    house.cut_off = {4}
    house.tick(5 * SECOND)
    assert house.replica(4).raft.role is Role.FOLLOWER
    house.cut_off = set()
    house.snapshots_stopped = False
    house.tick(2 * SECOND)
    assert house.replica(1).raft.term == term
    assert stale_read(house, 4) == Status.OK


def test_a_removed_member_disturbs_nobody_not_even_after_a_restart(house: House) -> None:
    house.cut_off = {3}
    house.tick(SECOND + 1)
    assert house.run(1, REMOVE, 3)[0] == Status.OK, "it never hears of this"
    term = house.replica(1).raft.term
    house.cut_off = set()
    house.stop(3)
    house.start(3)
    assert members(house, 3) == ([1, 2, 3], [])
    house.tick(5 * SECOND)
    assert (house.leader(), house.replica(1).raft.term) == (1, term)
    house.put(1, b"k", b"as before")


def test_a_removal_for_other_members_than_those_in_force_is_refused(house: House) -> None:
    """Whoever sees a learner, and orders it to be removed, must not remove the voter that it has become."""
    seen = house.replica(1).machine.configured_at
    house.run(1, GroupCommand.ADD_LEARNER, 4)
    status, body = house.run(1, REMOVE, 4, other=seen)
    assert status == Status.CONDITION_FAILED
    assert "meant for the members of entry" in body["message"]
    assert members(house, 1) == ([1, 2, 3], [4])
    assert house.run(1, REMOVE, 4, other=house.replica(1).machine.configured_at)[0] == Status.OK
    assert members(house, 1) == ([1, 2, 3], [])


def test_a_removed_member_that_comes_back_goes_on_with_what_it_has(house: House) -> None:
    assert house.run(1, REMOVE, 3)[0] == Status.OK
    house.put(1, b"k", b"meanwhile")
    assert house.run(1, ADD, 3)[0] == Status.OK
    house.tick(3)
    assert house.installed == 0
    assert house.get(3, b"k")[1] == b"meanwhile"
    assert house.run(1, PROMOTE, 3)[0] == Status.OK


# -- the host is asked first


def test_a_learner_is_added_only_when_its_store_hosts_the_partition(house: House) -> None:
    house.nodes[4].engines.refused = "open"
    last = house.replica(1).raft.last_index
    reason = text(house.run(1, ADD, 4), Status.UNAVAILABLE)
    assert reason == (
        "store4 (node 4) cannot host partition 0: its engine cannot be opened: "
        "OSError: [Errno 28] No space left on device; nothing was changed"
    )
    assert house.replica(1).raft.last_index == last
    house.nodes[4].engines.refused = ""
    assert house.run(1, ADD, 4)[0] == Status.OK


def test_a_host_that_does_not_answer_ends_the_command_with_nothing_done(house: House) -> None:
    house.stop(4)
    last = house.replica(1).raft.last_index
    reason = text(house.run(1, ADD, 4, timeout_ms=2000), Status.UNAVAILABLE)
    assert "cannot host partition 0: it did not answer in time; nothing was changed" in reason
    assert house.replica(1).raft.last_index == last


def test_a_host_that_answers_after_the_leadership_went_changes_nothing(house: House) -> None:
    house.host_hook = lambda node: False
    token = house.tell(1, ADD, 4, timeout_ms=4000)
    house.transfer(1, 2)
    house.tick(2)
    assert house.reply(1, token)[0] == Status.NOT_LEADER
    house.tick(5 * SECOND)
    assert members(house, 2) == ([1, 2, 3], [])


def test_two_requests_to_host_make_one_replica(house: House) -> None:
    tokens = [house.tell(4, HOST, 4) for _ in range(2)]
    house.settle()
    assert [house.reply(4, token)[0] for token in tokens] == [Status.OK, Status.OK]
    assert list(house.nodes[4].engines.open_ones) == [0]


def test_a_request_to_host_that_was_meant_for_another_node_is_refused(house: House) -> None:
    assert text(house.run(4, HOST, 3), Status.INVALID_REQUEST) == "this is node 4, not node 3"
    assert 0 not in house.nodes[4].groups.replicas


# -- refusals


@pytest.mark.parametrize(
    ("command", "member", "reason"),
    [
        (ADD, 2, "store2 (node 2) is a voter already; a learner has no vote"),
        (PROMOTE, 4, "store4 (node 4) is no member: add it as a learner first"),
        (REMOVE, 1, "store1 (node 1) leads: transfer the leadership to another voter first"),
        (TRANSFER, 4, "store4 (node 4) is no voter"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_refusals_change_nothing(
    house: House, command: GroupCommand, member: int, reason: str, dry: bool
) -> None:
    last = house.replica(1).raft.last_index
    assert text(house.run(1, command, member, dry=dry), Status.CONDITION_FAILED) == reason
    assert (house.replica(1).raft.last_index, house.host_asked) == (last, [])


def test_a_removal_without_a_majority_left_is_refused_and_allowed_when_the_voter_is_back(
    house: House,
) -> None:
    house.cut_off = {3}
    house.tick(SECOND + 1)
    reason = text(house.run(1, REMOVE, 2), Status.CONDITION_FAILED)
    assert "needs 2 of them, but only 1 can be reached: no answer from store3 (node 3)" in reason
    house.cut_off = set()
    house.tick(2)
    assert house.run(1, REMOVE, 2)[0] == Status.OK


def test_unknown_nodes_partitions_and_clusters_are_refused(house: House) -> None:
    assert text(house.run(1, ADD, 9), Status.INVALID_REQUEST) == (
        "there is no node 9 in this cluster; known: store1 (1), store2 (2), store3 (3), store4 (4)"
    )
    assert "no partition 8: the last one is 7" in text(
        house.run(1, SHOW, 0, partition=8), Status.INVALID_REQUEST
    )
    assert (
        text(house.run(1, SHOW, 0, cluster=1), Status.INVALID_REQUEST) == "this store is of another cluster"
    )
    assert (
        text(house.run(1, SHOW, 0, partition=7), Status.WRONG_REPLICA) == "partition 7 is not on this store"
    )
    assert text(house.run(4, HOST, 4, partition=8), Status.INVALID_REQUEST)


def test_who_does_not_lead_names_the_leader(house: House) -> None:
    for command in (SHOW, ADD, TRANSFER):
        status, answer = house.run(2, command, 4)
        assert (status, answer["leader"]) == (Status.NOT_LEADER, 1)


def test_a_dry_run_says_what_would_be_and_does_nothing(house: House) -> None:
    last = house.replica(1).raft.last_index
    status, answer = house.run(1, ADD, 4, dry=True)
    assert (status, answer["learners"], answer["dry_run"], answer["changed"]) == (Status.OK, [4], True, False)
    assert house.run(1, REMOVE, 3, dry=True)[1]["voters"] == [1, 2]
    assert house.run(1, TRANSFER, 2, dry=True)[1]["leader"] == 2
    house.tick(2)
    assert (house.replica(1).raft.last_index, house.host_asked, house.leader()) == (last, [], 1)


# -- one at a time, and answers


def test_a_change_is_answered_when_its_last_configuration_is_in_force(house: House) -> None:
    house.run(1, ADD, 4)
    house.tick(2)
    token = house.tell(1, PROMOTE, 4)
    seen = []
    while token not in house.nodes[1].group_replies:
        seen.append(house.replica(1).raft.configuration.joint)
        house.nodes[1].turn()
        queue, house.queue = house.queue, []
        for group, message in queue:
            for number, node in house.nodes.items():
                if message.to in (number, 0xFFFF) and number != message.sender:
                    node.groups.on_messages(message.sender, [(group, message)])
        for number in (2, 3, 4):
            house.nodes[number].turn()
        assert len(seen) < 100
    assert any(seen), "it went through a joint configuration, unanswered"
    assert not house.replica(1).raft.configuration.joint


def test_the_same_command_twice_is_proposed_once_and_answered_twice(house: House) -> None:
    last = house.replica(1).raft.last_index
    tokens = [house.tell(1, REMOVE, 3) for _ in range(ASKERS_MAX + 1)]
    assert text(house.reply(1, tokens[-1]), Status.BUSY)
    house.settle()
    assert [house.reply(1, token)[0] for token in tokens[:-1]] == [Status.OK] * ASKERS_MAX
    assert house.replica(1).raft.last_index == last + 2, "into the joint configuration and out of it"


def test_what_is_the_case_already_is_no_failure(house: House) -> None:
    house.run(1, REMOVE, 3)
    status, answer = house.run(1, REMOVE, 3)
    assert (status, answer["changed"], answer["text"]) == (Status.OK, False, "store3 (node 3) is no member")


def test_another_command_meanwhile_is_refused_and_told_which_one_is_under_way(house: House) -> None:
    house.cut_off = {2, 3}
    token = house.tell(1, REMOVE, 3)
    house.settle()
    house.clock.advance(0.3)
    index = house.replica(1).raft.last_index
    reason = text(house.run(1, ADD, 4), Status.CONDITION_FAILED)
    assert reason == (f"another command is under way: remove store3 (node 3), entry {index}, begun 0.3 s ago")
    assert token not in house.nodes[1].group_replies


def test_at_the_deadline_the_text_says_that_it_goes_on_and_it_does(house: House) -> None:
    house.cut_off = {2, 3}
    token = house.tell(1, REMOVE, 3, timeout_ms=500)
    house.tick(4)
    assert token not in house.nodes[1].group_replies
    house.tick(2)
    reason = text(house.reply(1, token), Status.OUTCOME_UNKNOWN)
    assert "not done in time, and it goes on: remove store3 (node 3), entry" in reason
    house.cut_off = set()
    house.tick(SECOND)
    assert members(house, 1) == ([1, 2], [])


def test_a_leader_that_is_deposed_says_who_leads(house: House) -> None:
    house.cut_off = {1}
    token = house.tell(1, REMOVE, 3)
    house.tick(4 * SECOND)
    assert house.reply(1, token)[0] == Status.NOT_LEADER
    leader = house.leader()
    assert leader in (2, 3)
    house.cut_off = set()
    house.tick(SECOND)
    assert members(house, leader) == ([1, 2, 3], []), "what it had proposed is gone"
