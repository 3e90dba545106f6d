"""storenode/office.py with the real controller, on a replica that the test holds in its hands."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import ProtocolError, Status
from shared.clock import ManualClock
from shared.clustermap import ClusterMap, Node
from shared.controlmessages import ControlCommand, ControlRequest
from shared.hashing import xxh64
from storenode.control.controller import Controller, Order, Step
from storenode.control.reports import Report, encode_report
from storenode.control.state import ControlState
from storenode.maps import Maps
from storenode.office import AGAIN_S, BROKEN_S, NEWS_S, STEP_S, WAITING_MAX, Office
from storenode.raft import Role
from storenode.raft.messages import Configuration
from storenode.statekey import KEY

PEER = b"router1"
MAP = ClusterMap.bootstrap(
    "test",
    4,
    3,
    [
        Node(
            number,
            f"store{number}",
            f"tcp://10.0.0.{number}:7200",
            f"tcp://10.0.0.{number}:7201",
            f"tcp://10.0.0.{number}:7202",
            f"zone{number}",
        )
        for number in range(1, 6)
    ],
)
CLUSTER = xxh64(MAP.cluster_id.encode())

Answer = tuple[int, int, dict[str, Any]]


class FakeReplica:
    """The control partition as this node's replica has it. Calls wait until `answer`."""

    def __init__(self, node: int) -> None:
        self.failure: str | None = None
        self.raft = SimpleNamespace(
            role=Role.LEADER, term=3, leader=node, configuration=Configuration(frozenset(MAP.control))
        )
        self.value, self.version = b"", 0
        self.calls: list[tuple[int, list[Any]]] = []
        self.on_answer: Callable[[bytes, int, int, bytes], None] = lambda *_: None

    def read(self, route: tuple[bytes, int], ops: bytes, mode: int, deadline: float, now: float) -> None:
        assert mode == protocol.LINEARIZABLE
        self.calls.append((route[1], msgpack.unpackb(ops)))

    def propose(
        self,
        route: tuple[bytes, int],
        client: int,
        sequence: int,
        acked: int,
        flags: int,
        ops: bytes,
        *_: float,
    ) -> None:
        assert (client, sequence, acked, flags) == (0, 0, 0, 0)
        self.calls.append((route[1], msgpack.unpackb(ops)))

    def refuse(self, status: int) -> None:
        """All that waits."""
        calls, self.calls = self.calls, []
        for token, _ in calls:
            self.on_answer(b"", token, status, protocol.encode_error("refused"))

    def answer(self) -> None:
        """All that waits, as an engine would."""
        calls, self.calls = self.calls, []
        for token, op in calls:
            assert op[1] == KEY
            self.on_answer(b"", token, Status.OK, msgpack.packb(self._execute(op)))

    def _execute(self, op: list[Any]) -> list[Any]:
        if op[0] == protocol.Op.GET:
            return [0, self.value, self.version] if self.version else [1]
        _, _, value, _, condition = op
        if condition != ([protocol.Condition.VERSION, self.version] if self.version else [1]):
            return [2, self.version]
        self.value, self.version = value, self.version + 7
        return [0, self.version]


class House:
    """The office of node 1, and all that it is connected to."""

    def __init__(self, node: int = 1) -> None:
        self.clock = ManualClock(1000.0)
        self.maps = Maps(MAP)
        self.replica: FakeReplica | None = FakeReplica(node)
        self.answers: list[tuple[int, int, bytes]] = []
        self.orders: list[Order] = []
        self.in_force: list[ControlState] = []
        self.tokens = 0
        self.office = Office(
            node,
            CLUSTER,
            self.clock,
            self.maps,
            lambda: self.replica,  # type: ignore[arg-type,return-value]
            self.orders.append,
            self._answer,
            self.in_force.append,
        )
        self.replica.on_answer = self.office.key.on_answer

    @property
    def group(self) -> FakeReplica:
        assert self.replica is not None
        return self.replica

    def _answer(self, peer: bytes, token: int, status: int, body: bytes) -> None:
        assert peer == PEER
        self.answers.append((token, status, body))

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.office.tick()
        self.group.answer()
        self.office.end_turn()

    def sit(self) -> House:
        for _ in range(3):
            self.turn()
        assert self.office.sits
        return self

    def ask(
        self,
        command: str,
        *,
        dry_run: bool = False,
        cluster: int = CLUSTER,
        timeout_ms: int = 5000,
        **given: Any,
    ) -> int:
        self.tokens += 1
        self.office.on_request(
            PEER,
            ControlRequest(
                self.tokens, cluster, timeout_ms, int(dry_run), ControlCommand(command), msgpack.packb(given)
            ),
        )
        return self.tokens

    def told(self) -> list[Answer]:
        answers, self.answers = self.answers, []
        return [(token, status, msgpack.unpackb(body)) for token, status, body in answers]

    def statuses(self) -> list[tuple[int, int]]:
        return [(token, status) for token, status, _ in self.told()]

    def state(self) -> ControlState:
        return ControlState.decode(self.group.value)

    def report(self, node: int, sequence: int = 1) -> Report:
        incarnation = f"{node:032x}"
        return Report(CLUSTER, node, incarnation, MAP.epoch, "1.0", 5, sequence, 1 << 30)


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
def test_a_state_that_is_none_is_told_loudly_and_no_controller_begins(
    house: House, value: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    house.group.value, house.group.version = value, 9
    house.turn()
    assert not house.office.sits
    assert "control_state_not_read" in capsys.readouterr().out
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


# -- steps


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a step was taken."""
    taken: list[float] = []
    step = Controller.step

    def counted(self: Controller, now: float) -> Step:
        taken.append(now)
        return step(self, now)

    monkeypatch.setattr(Controller, "step", counted)
    return taken


def test_a_step_a_second_and_soon_after_news(house: House, steps: list[float]) -> None:
    house.sit()
    steps.clear()
    for _ in range(30):
        house.turn(0.1)
    assert 2 <= len(steps) <= 3
    house.turn(STEP_S)
    steps.clear()
    house.office.hear(encode_report(house.report(2)))
    house.turn(NEWS_S / 2)
    assert not steps
    house.turn(NEWS_S)
    assert len(steps) == 1


def test_a_long_step_leaves_the_loop_its_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []

    def slow(self: Controller, now: float) -> Step:
        taken.append(now)
        house.clock.advance(0.3)
        return Step(None, [])

    monkeypatch.setattr(Controller, "step", slow)
    house.sit()
    for _ in range(100):
        house.turn(0.1)
    assert 2 <= len(taken) <= 4


def test_incarnations_that_are_heard_get_into_the_state(house: House) -> None:
    house.sit()
    for node in range(1, 6):
        house.office.hear(encode_report(house.report(node)))
    for _ in range(4):
        house.turn(STEP_S)
    assert [member.incarnation for member in house.state().members] == [
        f"{node:032x}" for node in range(1, 6)
    ]


def test_orders_leave_with_the_step_that_gave_them(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(2, 1, "add-learner", 5, 0)
    monkeypatch.setattr(Controller, "step", lambda self, now: Step(None, [order]))
    house.sit()
    house.turn(STEP_S)
    assert order in house.orders


def test_what_is_no_report_is_told_to_who_brought_it(house: House) -> None:
    house.office.hear(b"\xc1")
    house.sit()
    with pytest.raises(ProtocolError):
        house.office.hear(b"\xc1")


@pytest.mark.parametrize("method", ["step", "hear", "view", "adopt"])
def test_a_defect_of_the_controller_ends_it_and_another_one_begins(
    house: House, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    house.sit()
    whole = getattr(Controller, method)
    monkeypatch.setattr(Controller, method, broken)
    house.office.hear(encode_report(house.report(2)))
    token = house.ask("set", transfers_per_node=3)
    house.turn(STEP_S)
    house.turn()
    assert not house.office.sits
    assert house.office.counters.snapshot()["failures"] == 1
    ((answered, _),) = house.statuses()
    assert answered == token
    monkeypatch.setattr(Controller, method, whole)
    house.turn(BROKEN_S)
    assert house.office.sits


def test_a_state_of_another_map_is_read_as_it_is(house: House) -> None:
    """Whatever this store's own map says."""
    smaller = attrs.evolve(MAP, epoch=9, nodes=MAP.nodes[:3], replicas=((1, 2, 3),) * 4, control=(1, 2, 3))
    house.group.value, house.group.version = ControlState.first(smaller).encode(), 1
    house.turn()
    assert house.in_force[-1].map == smaller
