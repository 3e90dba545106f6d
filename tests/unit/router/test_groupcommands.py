"""The operators' command `group` in the router: to whoever leads, until there is an answer."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import Kind
from router.errands import COMMANDS_MAX, HOPS_MAX
from shared.clustermap import Node
from shared.groupmessages import GroupCommand, GroupRequest
from shared.hashing import xxh64
from shared.messagefields import DRY_RUN
from tests.unit.router.conftest import PARTITIONS, THREE_STORES, Harness, ok, put

FOUR_STORES = (*THREE_STORES, Node(id=4, name="store4", rpc="tcp://127.0.0.1:7230"))


class Group:
    """Partition 0 of a cluster of four stores; `outside` is the one that the map gives no replica of it."""

    def __init__(self) -> None:
        self.harness = Harness(replicas=3, stores=FOUR_STORES)
        self.replicas = self.harness.map.replicas[0]
        (self.outside,) = {1, 2, 3, 4} - set(self.replicas)

    def ask(self, verb: str, *arguments: Any, timeout_ms: int = 5000) -> None:
        body = protocol.encode_admin("group", verb, *arguments)
        self.harness.send(body, kind=Kind.ADMIN, sequence=0, timeout_ms=timeout_ms)

    def promote(self, timeout_ms: int = 5000) -> None:
        self.ask("promote", 0, self.outside, False, timeout_ms=timeout_ms)

    def sent(self) -> list[tuple[int, GroupRequest]]:
        found = list(self.harness.router.outbox_groups)
        self.harness.router.outbox_groups.clear()
        return found

    def one(self) -> tuple[int, GroupRequest]:
        (only,) = self.sent()
        return only

    def refuse(self, node: int, request: GroupRequest, status: Status, **details: Any) -> None:
        body = protocol.encode_error("no", **details)
        self.harness.router.on_group_reply(node, request.token, status, body)

    def wait(self, seconds: float = 1.0) -> tuple[int, GroupRequest]:
        """The next attempt."""
        for _ in range(round(seconds / 0.01)):
            self.harness.pass_time(0.01)
            if found := self.sent():
                (only,) = found
                return only
        raise AssertionError(f"nothing within {seconds} s")

    def error(self) -> tuple[Status, str]:
        response = self.harness.response()
        assert response.kind == Kind.ADMIN
        return Status(response.status), protocol.decode_error(response.body)["message"]


@pytest.fixture
def group() -> Group:
    return Group()


def test_a_command_goes_to_the_leader_and_its_answer_to_the_client_untouched(group: Group) -> None:
    group.ask("show", 0)
    node, request = group.one()
    assert node == group.replicas[0]
    assert request == GroupRequest(
        request.token,
        xxh64(group.harness.map.cluster_id.encode()),
        0,
        request.timeout_ms,
        0,
        GroupCommand.SHOW,
        0,
        0,
    )
    body = msgpack.packb({"leader": node})
    group.harness.router.on_group_reply(node, request.token, 0, body)
    response = group.harness.response()
    assert (response.kind, response.status, response.body) == (Kind.ADMIN, Status.OK, body)
    assert group.harness.idle


def test_checksums_are_asked_of_the_leader_and_change_nothing(group: Group) -> None:
    group.ask("checksum", 0, timeout_ms=500)
    node, request = group.one()
    assert (node, request.command, request.node) == (group.replicas[0], GroupCommand.CHECKSUM, 0)
    group.harness.pass_time(0.6)
    assert group.error()[0] == Status.TIMEOUT  # and not an outcome that nobody knows


def test_names_and_ids_of_nodes_mean_the_same(group: Group) -> None:
    for who in (4, "store4"):
        group.ask("add-learner", 0, who, True)
        _, request = group.one()
        assert (request.command, request.node, request.flags) == (GroupCommand.ADD_LEARNER, 4, DRY_RUN)


def test_the_store_has_less_time_than_the_router_and_the_router_less_than_the_client(group: Group) -> None:
    group.promote(timeout_ms=5000)
    _, request = group.one()
    assert 4800 <= request.timeout_ms < 4950
    group.promote(timeout_ms=80)
    _, request = group.one()
    assert 50 <= request.timeout_ms <= 62


def test_a_refusal_is_passed_on(group: Group) -> None:
    group.promote()
    group.refuse(*group.one(), Status.CONDITION_FAILED)
    assert group.error() == (Status.CONDITION_FAILED, "no")


def test_an_answer_of_a_store_that_was_not_asked_is_ignored(group: Group) -> None:
    group.promote()
    node, request = group.one()
    group.harness.router.on_group_reply(group.outside, request.token, 0, b"\x80")
    assert group.harness.responses() == []
    group.harness.router.on_group_reply(node, request.token, 0, b"\x80")
    assert group.harness.response().status == Status.OK


def test_the_leader_that_a_store_names_is_asked_at_once_also_outside_of_the_map(group: Group) -> None:
    group.promote()
    group.refuse(*group.one(), Status.NOT_LEADER, leader=group.outside)
    node, request = group.one()
    assert node == group.outside
    group.harness.router.on_group_reply(node, request.token, 0, b"\x80")
    assert group.harness.response().status == Status.OK


def test_two_that_name_each_other_do_not_spin(group: Group) -> None:
    group.promote()
    attempts = 0
    while found := group.sent():
        ((node, request),) = found
        attempts += 1
        other = group.replicas[1] if node == group.replicas[0] else group.replicas[0]
        group.refuse(node, request, Status.NOT_LEADER, leader=other)
    assert attempts == HOPS_MAX + 1
    group.wait()


def test_busy_is_asked_again_until_the_deadline_which_tells_why(group: Group) -> None:
    group.promote(timeout_ms=1000)
    group.refuse(*group.one(), Status.BUSY, retry_after_ms=50)
    assert group.sent() == []
    attempts = 0
    while group.harness.router.busy:
        group.harness.pass_time(0.01)
        for node, request in group.sent():
            attempts += 1
            group.refuse(node, request, Status.BUSY, retry_after_ms=50)
    assert 10 <= attempts <= 20
    assert group.error() == (Status.UNAVAILABLE, "no; nothing was changed")


def test_a_store_that_goes_away_with_a_command_is_followed_by_its_successor(group: Group) -> None:
    group.promote()
    first, lost = group.one()
    group.harness.router.on_backend(first, False)
    node, request = group.wait()
    assert node == group.replicas[1]
    assert request.token != lost.token
    group.harness.router.on_group_reply(first, lost.token, 0, b"\x80")
    assert group.harness.responses() == [], "that attempt was given up"
    group.harness.router.on_group_reply(node, request.token, 0, b"\x80")
    assert group.harness.response().status == Status.OK


def test_what_a_socket_did_not_take_is_sent_later_and_leaves_no_doubt(group: Group) -> None:
    group.promote(timeout_ms=500)
    attempts = 0
    while group.harness.router.busy:
        for node, request in group.sent():
            attempts += 1
            group.harness.router.on_group_unsent(node, request.token)
        group.harness.pass_time(0.01)
    assert 3 <= attempts <= 6
    status, message = group.error()
    assert status == Status.UNAVAILABLE
    assert "takes nothing; nothing was changed" in message


def test_what_was_lost_and_never_answered_again_is_unknown(group: Group) -> None:
    group.promote(timeout_ms=1000)
    group.one()
    for node in (1, 2, 3, 4):
        group.harness.router.on_backend(node, False)
    group.harness.pass_time(1.0)
    status, message = group.error()
    assert status == Status.OUTCOME_UNKNOWN
    assert "promote may have been done, or may go on" in message


def test_a_silent_store_leaves_a_change_unknown_and_a_look_timed_out(group: Group) -> None:
    group.promote(timeout_ms=500)
    group.harness.pass_time(0.5)
    status, message = group.error()
    assert status == Status.OUTCOME_UNKNOWN
    assert "did not answer; promote may have been done" in message
    for arguments in (("show", 0), ("promote", 0, 4, True)):
        group.ask(*arguments, timeout_ms=500)
        group.harness.pass_time(0.5)
        assert group.error()[0] == Status.TIMEOUT


def test_nobody_up_is_unavailable_with_nothing_changed(group: Group) -> None:
    for node in (1, 2, 3, 4):
        group.harness.router.on_backend(node, False)
    group.promote(timeout_ms=500)
    group.harness.pass_time(0.5)
    status, message = group.error()
    assert status == Status.UNAVAILABLE
    assert "partition 0 is not served" in message
    assert message.endswith("; nothing was changed")


def test_a_store_that_says_nonsense_as_a_refusal_is_asked_again(group: Group) -> None:
    group.promote()
    node, request = group.one()
    group.harness.router.on_group_reply(node, request.token, Status.NOT_LEADER, b"\xc1")
    group.wait()


def test_commands_under_way_are_bounded(group: Group) -> None:
    for _ in range(COMMANDS_MAX + 1):
        group.promote()
    assert group.error()[0] == Status.BUSY
    assert len(group.sent()) == COMMANDS_MAX


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("show",),
        ("show", -1),
        ("show", True),
        ("show", "0"),
        ("show", 0, 1),
        ("show", PARTITIONS),
        ("checksum",),
        ("checksum", -1),
        ("checksum", 0, 4, False),
        ("checksum", PARTITIONS),
        ("digest", 0),
        ("digest", 0, 4, False),
        ("promote",),
        ("promote", 0),
        ("promote", 0, 4),
        ("promote", 0, 4, 1),
        ("promote", 0, 0, False),
        ("promote", 0, -4, False),
        ("promote", 0, 1 << 16, False),
        ("promote", 0, 9, False),
        ("promote", 0, "store9", False),
        ("promote", 0, b"store4", False),
        ("promote", 0, "", False),
        ("promote", 0, 4, False, 0),
        ("promote", [0], 4, False),
        ("host", 0, 4, False),
        ("drop", 0, 4, False),
        (b"promote", 0, 4, False),
        (1, 0),
    ],
)
def test_commands_that_are_none(group: Group, arguments: tuple[Any, ...]) -> None:
    body = protocol.pack(("group", *arguments))
    group.harness.send(body, kind=Kind.ADMIN, sequence=0)
    assert group.error()[0] == Status.INVALID_REQUEST
    assert group.sent() == []
    assert group.harness.idle


def test_requests_follow_a_leader_that_the_map_gives_no_replica(group: Group) -> None:
    harness = group.harness
    key = next(key for key in (b"%d" % number for number in range(100)) if harness.partition(key) == 0)
    harness.send(put(key))
    node, item = harness.item()
    harness.refuse(node, item, Status.NOT_LEADER, leader=group.outside)
    node, item = harness.item()
    assert node == group.outside
    harness.answer(node, item, ok(1))
    assert harness.results() == [[0, 1]]
    harness.send(put(key))
    assert harness.item()[0] == group.outside, "and it is remembered"


def test_when_a_leader_outside_of_the_map_goes_away_the_replicas_of_the_map_are_asked_in_turn(
    group: Group,
) -> None:
    topology = group.harness.router.topology
    topology.leaders[0] = group.outside
    group.harness.router.on_backend(group.outside, False)
    asked = []
    for _ in range(3):
        asked.append(topology.reachable_leader(0))
        topology.not_leading(0, asked[-1])
    assert asked == list(group.replicas)


def test_a_new_map_keeps_a_leader_outside_of_it_but_not_a_node_that_has_gone(group: Group) -> None:
    from tests.unit.router.conftest import changed

    harness = group.harness
    harness.router.topology.leaders[0] = group.outside
    harness.router.on_map(changed(harness.map))
    assert harness.router.topology.leaders[0] == group.outside
    others = tuple(node for node in FOUR_STORES if node.id != group.outside)
    table = (tuple(node.id for node in others),) * PARTITIONS
    newer = changed(
        type(harness.map).decode(harness.router.topology.encoded_map), nodes=others, replicas=table
    )
    harness.router.on_map(newer)
    assert harness.router.topology.leaders[0] == others[0].id


def test_the_table_names_the_members_that_the_leader_has(group: Group) -> None:
    """Not those of the map; without a leader there is only the map."""
    from shared import groups

    first = group.replicas[0]
    voters = [first, group.replicas[1], group.outside]

    def said(role: str, **more: Any) -> Any:
        figures = {"role": role, "term": 2, "leader": first, "commit": 9, "applied": 9, "last": 9} | more
        return groups.read({"groups": {"0": figures}})

    views = {node: said("follower") for node in (1, 2, 3, 4) if node != first}
    views[first] = said("leader", voters=voters, learners=[77], match={})
    row = groups.row(group.harness.map, 0, views)
    assert groups.members(row) == voters, "in the order of the map; a node that it does not know is left out"
    assert row["replicas"][2]["up"]
    assert groups.members(groups.row(group.harness.map, 0, {})) == list(group.replicas)
