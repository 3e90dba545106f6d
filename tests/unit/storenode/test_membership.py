"""storenode/replica/membership.py: what an operator's command is refused for, with the numbers in it."""

from __future__ import annotations

import pytest

from storenode.raft import ProgressState
from storenode.raft.messages import Change, Configuration, Kind, Operation, Transition
from storenode.replica import membership
from storenode.replica.membership import LAG_MAX, Done, Refused
from tests.unit.storenode.raft.harness import Cluster, configuration

ADD, REMOVE, LEARN = Operation.ADD_VOTER, Operation.REMOVE, Operation.ADD_LEARNER


def name(node: int) -> str:
    return f"store{node}"


def led(voters: int = 3, *, learner: bool = False) -> Cluster:
    """Node 1 leads and has heard all others; with `learner` the one behind the voters is one."""
    cluster = Cluster(voters)
    cluster.elect(1)
    cluster.propose(1, b"a")
    if learner:
        cluster.add(voters + 1)
        cluster.change(1, Change(Transition.AUTO, ((LEARN, voters + 1),)))
    cluster.tick(times=2)
    return cluster


def silence(cluster: Cluster, *nodes: int, ticks: int = 3) -> None:
    """Nothing is heard of these; a tick of the harness is a second."""
    cluster.drop = lambda to, message: message.sender in nodes
    cluster.tick(1, times=ticks)


def attempt(cluster: Cluster, command: str, node: int) -> object:
    raft = cluster[1]
    if command == "promote":
        return membership.promote(raft, node, name, raft.now)
    if command == "remove":
        return membership.remove(raft, node, name, raft.now)
    if command == "replace":
        return membership.replace(raft, node, 3, name, raft.now)
    if command == "transfer":
        return membership.check_transfer(raft, node, name, raft.now)
    return membership.add_learner(raft, node, name)


def refusal(cluster: Cluster, command: str, node: int) -> Refused:
    with pytest.raises(Refused) as caught:
        attempt(cluster, command, node)
    return caught.value


# -- remove


def test_a_removal_that_leaves_no_reachable_majority_is_refused_with_the_numbers() -> None:
    cluster = led()
    silence(cluster, 3)
    refused = refusal(cluster, "remove", 2)
    assert str(refused) == (
        "without store2 the group has 2 voters and needs 2 of them, but only 1 can be reached: "
        "no answer from store3"
    )
    assert not refused.passing


def test_the_silent_voter_itself_may_be_removed() -> None:
    cluster = led()
    silence(cluster, 3)
    change = membership.remove(cluster[1], 3, name, cluster[1].now)
    assert change == Change(Transition.IMPLICIT, ((REMOVE, 3),)), "by a joint configuration"
    cluster.change(1, change)
    cluster.tick(1, 2, times=2)
    assert cluster[1].configuration == configuration(1, 2)


def test_of_five_voters_two_silent_ones_allow_no_removal_of_a_third() -> None:
    cluster = led(5)
    silence(cluster, 4, 5)
    assert (
        "has 4 voters and needs 3 of them, but only 2 can be reached: no answer from store4, store5"
        in str(refusal(cluster, "remove", 2))
    )
    assert membership.remove(cluster[1], 5, name, cluster[1].now)


def test_the_only_voter_and_the_leader_are_not_removed() -> None:
    assert "is the only voter" in str(refusal(led(1), "remove", 1))
    assert "leads: transfer the leadership to another voter first" in str(refusal(led(), "remove", 1))


def test_a_learner_is_removed_in_one_step_even_when_silent() -> None:
    cluster = led(learner=True)
    silence(cluster, 4)
    change = membership.remove(cluster[1], 4, name, cluster[1].now)
    assert change == Change(Transition.AUTO, ((REMOVE, 4),))


def test_who_is_no_member_needs_no_removal() -> None:
    with pytest.raises(Done, match="store9 is no member"):
        membership.remove(led()[1], 9, name, 0.0)


# -- promote


def test_a_learner_that_is_too_far_behind_is_not_promoted_and_the_text_says_by_how_much() -> None:
    cluster = led(learner=True)
    match = cluster[1].progress[4].match
    cluster.drop = lambda to, message: to == 4 and message.kind == Kind.APPEND
    cluster.propose(1, *[b"x"] * (LAG_MAX + 1))
    cluster.tick(times=2)
    last = cluster[1].last_index
    refused = refusal(cluster, "promote", 4)
    assert str(refused) == (
        f"store4 is 1,001 entries behind, 1,000 are allowed: it has entry {match} of {last:,}"
    )
    assert last - match == LAG_MAX + 1


def test_a_learner_at_the_limit_is_promoted_through_a_joint_configuration() -> None:
    cluster = led(learner=True)
    cluster.drop = lambda to, message: to == 4 and message.kind == Kind.APPEND
    cluster.propose(1, *[b"x"] * LAG_MAX)
    cluster.tick(times=2)
    change = membership.promote(cluster[1], 4, name, cluster[1].now)
    assert change == Change(Transition.IMPLICIT, ((ADD, 4),))
    cluster.drop = lambda to, message: False
    cluster.change(1, change)
    cluster.tick(times=3)
    assert cluster[1].configuration == configuration(1, 2, 3, 4)
    joint = [entry for _, entry in cluster.nodes[1].machine.applied if entry.kind == 1]
    assert len(joint) == 3, "added, joint, left"


def test_a_silent_learner_is_not_promoted_and_the_text_says_since_when() -> None:
    cluster = led(learner=True)
    silence(cluster, 4, ticks=7)
    assert str(refusal(cluster, "promote", 4)) == "store4 has not answered for 7.0 s, 1 s are allowed"


def test_a_learner_that_waits_for_its_snapshot_is_not_promoted() -> None:
    cluster = led()
    cluster.add(4)
    cluster.drop = lambda to, message: to == 4 and message.kind == Kind.SNAPSHOT
    cluster.change(1, Change(Transition.AUTO, ((LEARN, 4),)))
    cluster.tick(times=2)
    assert cluster[1].progress[4].state is ProgressState.SNAPSHOT
    assert str(refusal(cluster, "promote", 4)) == (
        "store4 waits for a snapshot: it has entry 0, the log begins with 2"
    )


def test_a_promotion_that_would_leave_no_reachable_majority_is_refused() -> None:
    """Three of five are enough for the group as it is, not for one of six."""
    cluster = led(5, learner=True)
    silence(cluster, 4, 5)
    assert membership.promote(cluster[1], 6, name, cluster[1].now)
    silence(cluster, 3, 4, 5)
    assert (
        "has 6 voters and needs 4 of them, but only 3 can be reached: no answer from store3, store4, store5"
        in (str(refusal(cluster, "promote", 6)))
    )


def test_only_learners_are_promoted() -> None:
    assert str(refusal(led(), "promote", 4)) == "store4 is no member: add it as a learner first"
    with pytest.raises(Done, match="store2 is a voter already"):
        membership.promote(led()[1], 2, name, 0.0)


# -- replace


def test_a_learner_takes_the_place_of_a_voter_in_one_joint_change() -> None:
    cluster = led(learner=True)
    change = membership.replace(cluster[1], 4, 3, name, cluster[1].now)
    assert change == Change(Transition.IMPLICIT, ((ADD, 4), (REMOVE, 3)))
    assert membership.after(cluster[1].configuration, change) == configuration(1, 2, 4)
    cluster.change(1, change)
    cluster.tick(times=2)
    assert cluster[1].configuration == configuration(1, 2, 4)
    with pytest.raises(Done, match="store4 is a voter already, and store3 is no member"):
        membership.replace(cluster[1], 4, 3, name, cluster[1].now)


def test_a_silent_voter_may_be_replaced() -> None:
    cluster = led(learner=True)
    silence(cluster, 3)
    assert membership.replace(cluster[1], 4, 3, name, cluster[1].now)


@pytest.mark.parametrize(
    ("node", "source", "reason"),
    [
        (4, 4, "store4 cannot take its own place"),
        (4, 1, "store1 leads: transfer the leadership to another voter first"),
        (4, 9, "store9 is no voter whose place store4 could take"),
        (9, 3, "store9 is no member: add it as a learner first"),
        (2, 3, "store2 is a voter already"),
    ],
)
def test_only_a_learner_takes_the_place_of_a_voter_that_does_not_lead(
    node: int, source: int, reason: str
) -> None:
    cluster = led(learner=True)
    with pytest.raises(Refused) as caught:
        membership.replace(cluster[1], node, source, name, cluster[1].now)
    assert (str(caught.value), caught.value.passing) == (reason, False)


def test_who_takes_a_place_has_caught_up_and_a_majority_is_there_afterwards() -> None:
    cluster = led(learner=True)
    silence(cluster, 4)
    assert "store4 has not answered for" in str(refusal(cluster, "replace", 4))
    cluster = led(5, learner=True)
    silence(cluster, 4, 5, ticks=4)
    cluster.drop = lambda to, message: message.sender in (2, 4, 5)
    cluster.tick(1, times=2)
    assert str(refusal(cluster, "replace", 6)) == (
        "with store6 in the place of store3 the group has 5 voters and needs 3 of them, but only 2 can be "
        "reached: no answer from store2, store4, store5"
    )


def test_a_leader_that_has_only_begun_asks_to_be_asked_again() -> None:
    cluster = led(learner=True)
    cluster.elect(2)
    raft = cluster[2]
    raft.progress[4].heard_at = None
    raft.progress[4].since = raft.now
    with pytest.raises(Refused) as caught:
        membership.promote(raft, 4, name, raft.now + 0.5)
    assert caught.value.passing
    with pytest.raises(Refused) as caught:
        membership.promote(raft, 4, name, raft.now + 1.5)
    assert not caught.value.passing


# -- add-learner


def test_a_voter_is_made_no_learner_and_a_learner_is_one_already() -> None:
    cluster = led(learner=True)
    assert str(refusal(cluster, "add-learner", 2)) == "store2 is a voter already; a learner has no vote"
    with pytest.raises(Done, match="store4 is a learner already"):
        membership.add_learner(cluster[1], 4, name)


def test_a_change_under_way_is_named_with_its_entry() -> None:
    cluster = led()
    raft = cluster[1]
    raft.propose_change(Change(Transition.AUTO, ((LEARN, 4),)))
    index = raft.last_index
    for refused in (refusal(cluster, "add-learner", 5), refusal(cluster, "remove", 3)):
        assert str(refused) == (
            f"another change is under way at entry {index}, applied is {raft.applied_index}"
        )
        assert refused.passing


def test_a_joint_configuration_is_named() -> None:
    cluster = led()
    cluster.change(1, Change(Transition.EXPLICIT, ((REMOVE, 3),)))
    refused = refusal(cluster, "add-learner", 4)
    assert "another change is under way, in the configuration voters=(1 2)&&(1 2 3)" in str(refused)


def test_nothing_is_changed_before_the_leader_has_committed_in_its_term() -> None:
    cluster = Cluster(3)
    cluster.drop = lambda to, message: message.kind == Kind.APPEND
    cluster.elect(1)
    refused = refusal(cluster, "add-learner", 4)
    assert "has not committed an entry of its term" in str(refused)
    assert refused.passing


# -- transfer


def test_leadership_goes_to_reachable_voters_that_have_caught_up_only() -> None:
    cluster = led(learner=True)
    assert str(refusal(cluster, "transfer", 4)) == "store4 is a learner: promote it first"
    assert str(refusal(cluster, "transfer", 9)) == "store9 is no voter"
    with pytest.raises(Done, match="store1 leads already"):
        membership.check_transfer(cluster[1], 1, name, 0.0)
    membership.check_transfer(cluster[1], 2, name, cluster[1].now)
    silence(cluster, 2, ticks=4)
    assert str(refusal(cluster, "transfer", 2)) == "store2 has not answered for 4.0 s, 1 s are allowed"


def test_leadership_goes_to_no_voter_that_is_far_behind() -> None:
    cluster = led()
    cluster.drop = lambda to, message: to == 3 and message.kind == Kind.APPEND
    cluster.propose(1, *[b"x"] * 1500)
    cluster.tick(times=2)
    assert "store3 is 1,500 entries behind, 1,000 are allowed" in str(refusal(cluster, "transfer", 3))


def test_a_second_transfer_waits_for_the_first() -> None:
    cluster = led()
    cluster.drop = lambda to, message: message.kind == Kind.TIMEOUT_NOW
    cluster[1].transfer(2)
    assert "the leadership is being handed to store2" in str(refusal(cluster, "transfer", 3))
    assert "the leadership is being handed to node 2" in str(refusal(cluster, "add-learner", 4))


# -- the picture


def test_the_picture_has_every_member_with_its_place() -> None:
    cluster = led(learner=True)
    silence(cluster, 3, ticks=2)
    cluster.propose(1, b"b")
    picture = membership.picture(cluster[1], cluster[1].now)
    assert (picture["leader"], picture["voters"], picture["learners"]) == (1, [1, 2, 3], [4])
    assert (picture["first"], picture["commit"]) == (2, cluster[1].commit)
    rows = {member["id"]: member for member in picture["members"]}
    assert [rows[node]["role"] for node in (1, 2, 3, 4)] == ["leader", "voter", "voter", "learner"]
    assert (rows[3]["lag"], rows[3]["heard_ms"]) == (1, 2000)
    assert (rows[1]["lag"], rows[1]["heard_ms"], rows[4]["lag"]) == (0, 0, 0)


def test_the_picture_of_a_joint_group_names_both_halves() -> None:
    cluster = led()
    cluster.change(1, Change(Transition.EXPLICIT, ((REMOVE, 3),)))
    picture = membership.picture(cluster[1], cluster[1].now)
    assert (picture["voters"], picture["outgoing"]) == ([1, 2], [1, 2, 3])
    assert {member["id"]: member["role"] for member in picture["members"]}[3] == "outgoing"


@pytest.mark.parametrize(
    ("change", "planned"),
    [
        (Change(Transition.AUTO, ((LEARN, 4),)), configuration(1, 2, 3, learners=[4])),
        (Change(Transition.IMPLICIT, ((ADD, 4),)), configuration(1, 2, 3, 4)),
        (Change(Transition.IMPLICIT, ((REMOVE, 3),)), configuration(1, 2)),
    ],
)
def test_what_a_change_leads_to(change: Change, planned: Configuration) -> None:
    assert membership.after(configuration(1, 2, 3), change) == planned
