"""The operators' command `control` in the router: to the controller, wherever it is."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import Kind
from router.errands import COMMANDS_MAX, HOPS_MAX
from shared.clustermap import Node
from shared.controlmessages import ControlCommand, ControlRequest
from shared.hashing import xxh64
from shared.messagefields import DRY_RUN
from tests.unit.router.conftest import PARTITIONS, THREE_STORES, Harness, changed

FIVE_STORES = (
    *THREE_STORES,
    *(
        Node(id=number, name=f"store{number}", rpc=f"tcp://127.0.0.1:{7190 + 10 * number}")
        for number in (4, 5)
    ),
)
ARGUMENTS = msgpack.packb({"node": "store3"})


class Control:
    """Three stores, all of them nodes of the control partition; two more may follow."""

    def __init__(self) -> None:
        self.harness = Harness(replicas=3, stores=THREE_STORES)

    def ask(self, name: str = "node-drain", *, dry_run: bool = False, timeout_ms: int = 5000) -> None:
        body = protocol.encode_admin("control", name, ARGUMENTS, dry_run)
        self.harness.send(body, kind=Kind.ADMIN, sequence=0, timeout_ms=timeout_ms)

    def one(self) -> tuple[int, ControlRequest]:
        (only,) = self.harness.commands()
        return only

    def answer(self, node: int, request: ControlRequest, body: bytes = b"\x80", status: int = 0) -> None:
        self.harness.router.on_control_reply(node, request.token, status, body)

    def refuse(self, node: int, request: ControlRequest, status: Status, **details: Any) -> None:
        self.answer(node, request, protocol.encode_error("no", **details), status)

    def wait(self, seconds: float = 1.0) -> tuple[int, ControlRequest]:
        """The next attempt."""
        for _ in range(round(seconds / 0.01)):
            self.harness.pass_time(0.01)
            if found := self.harness.commands():
                (only,) = found
                return only
        raise AssertionError(f"nothing within {seconds} s")

    def error(self) -> tuple[Status, str]:
        response = self.harness.response()
        assert response.kind == Kind.ADMIN
        assert self.harness.idle
        return Status(response.status), protocol.decode_error(response.body)["message"]


@pytest.fixture
def control() -> Control:
    return Control()


def test_command_and_answer_pass_untouched(control: Control) -> None:
    control.ask(dry_run=True)
    node, request = control.one()
    cluster = xxh64(control.harness.map.cluster_id.encode())
    assert node in control.harness.map.control
    assert request == ControlRequest(
        request.token, cluster, request.timeout_ms, DRY_RUN, ControlCommand.NODE_DRAIN, ARGUMENTS
    )
    assert 4800 <= request.timeout_ms < 4950
    control.answer(node, request, b"\x81\xa1a\x01")
    response = control.harness.response()
    assert (response.kind, response.status, response.body) == (Kind.ADMIN, Status.OK, b"\x81\xa1a\x01")
    assert control.harness.idle


def test_who_names_the_controller_is_followed_at_once_and_who_answered_is_asked_first(
    control: Control,
) -> None:
    for _ in range(3):
        control.ask()
        node, request = control.one()
        if node != 3:
            control.refuse(node, request, Status.NOT_LEADER, leader=3)
            node, request = control.one()
        assert node == 3
        control.answer(node, request)
        assert control.harness.response().status == Status.OK
    control.ask()
    assert control.one()[0] == 3


@pytest.mark.parametrize("status", [Status.CONDITION_FAILED, Status.OUTCOME_UNKNOWN, Status.INVALID_REQUEST])
def test_what_a_controller_says_is_passed_on(control: Control, status: Status) -> None:
    control.ask()
    control.refuse(*control.one(), status)
    assert control.error() == (status, "no")


def test_without_hints_all_nodes_of_the_control_partition_are_asked(control: Control) -> None:
    control.ask()
    asked = set()
    node, request = control.one()
    for _ in range(3):
        asked.add(node)
        control.refuse(node, request, Status.NOT_LEADER)
        node, request = control.wait()
    assert asked == {1, 2, 3}


def test_two_that_name_each_other_do_not_hide_the_third(control: Control) -> None:
    control.ask()
    node, request = control.one()
    at_once = 0
    for _ in range(20):
        if node == 3:
            break
        control.refuse(node, request, Status.NOT_LEADER, leader=3 - node)
        if found := control.harness.commands():
            ((node, request),) = found
            at_once += 1
        else:
            assert at_once <= HOPS_MAX
            at_once = 0
            node, request = control.wait()
    assert node == 3


def test_busy_is_asked_again_after_the_pause(control: Control) -> None:
    control.ask()
    node, request = control.one()
    control.refuse(node, request, Status.BUSY, retry_after_ms=500)
    control.harness.pass_time(0.45)
    assert control.harness.commands() == []
    again, request = control.wait(0.2)
    control.answer(again, request)
    assert control.harness.response().status == Status.OK


def test_a_controller_that_went_away_is_succeeded(control: Control) -> None:
    control.ask()
    node, _ = control.one()
    control.harness.router.on_backend(node, False)
    again, request = control.wait()
    assert again != node
    control.answer(again, request)
    assert control.harness.response().status == Status.OK


def test_a_refusal_after_a_lost_attempt_leaves_it_open_what_that_did(control: Control) -> None:
    """`node-remove` may have removed the node: its successor knows no such node."""
    control.ask("node-remove")
    control.harness.router.on_backend(control.one()[0], False)
    control.refuse(*control.wait(), Status.CONDITION_FAILED)
    status, text = control.error()
    assert status == Status.OUTCOME_UNKNOWN
    assert text.endswith("no")
    control.ask("node-remove", dry_run=True)
    control.harness.router.on_backend(control.one()[0], False)
    control.refuse(*control.wait(), Status.CONDITION_FAILED)
    assert control.error() == (Status.CONDITION_FAILED, "no")


@pytest.mark.parametrize(("name", "status"), [("show", Status.TIMEOUT), ("set", Status.OUTCOME_UNKNOWN)])
def test_no_answer_in_time(control: Control, name: str, status: Status) -> None:
    control.ask(name, timeout_ms=1000)
    control.one()
    control.harness.pass_time(1.0)
    assert control.error()[0] == status


def test_nobody_is_there(control: Control) -> None:
    for node in (1, 2, 3):
        control.harness.router.on_backend(node, False)
    control.ask(timeout_ms=1000)
    assert control.harness.commands() == []
    control.harness.pass_time(1.0)
    status, text = control.error()
    assert status == Status.UNAVAILABLE
    assert "store3 (tcp://127.0.0.1:7220)" in text
    assert "nothing was changed" in text


def test_a_controller_that_the_map_does_not_have_yet(control: Control) -> None:
    harness = control.harness
    control.ask()
    node, request = control.one()
    control.refuse(node, request, Status.NOT_LEADER, leader=5)
    assert harness.router.should_ask_map()
    assert harness.router.topology.take_informant() == node
    harness.router.on_map(changed(harness.map, nodes=FIVE_STORES, replicas=((1, 2, 3),) * PARTITIONS))
    harness.router.on_backend(5, True)
    node, request = control.wait()
    control.refuse(node, request, Status.NOT_LEADER, leader=5)
    assert control.one()[0] == 5


def test_what_could_not_be_sent_is_tried_again(control: Control) -> None:
    control.ask()
    node, request = control.one()
    control.harness.router.on_control_unsent(node, request.token)
    control.answer(*control.wait())
    assert control.harness.response().status == Status.OK


def test_commands_are_bounded(control: Control) -> None:
    for _ in range(COMMANDS_MAX + 1):
        control.ask()
    assert control.harness.response().status == Status.BUSY


def test_a_node_that_leaves_the_map_may_answer(control: Control) -> None:
    harness = control.harness
    control.ask()
    node, request = control.one()
    left = tuple(one for one in THREE_STORES if one.id != node)
    harness.router.on_map(changed(harness.map, nodes=left, replicas=((left[0].id,),) * PARTITIONS))
    assert harness.router.is_with(node)
    control.answer(node, request)
    assert harness.response().status == Status.OK
    assert not harness.router.is_with(node)
