"""storenode/service.py on real sockets, in front of a real replica: everything that comes in is answered, and
a store that stops leaves nobody without an answer."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import zmq

from kvclient import protocol
from kvclient.errors import ProtocolError, Status
from shared import logs, messages, sockets
from shared.clustermap import ClusterMap, Node
from shared.controlmessages import ControlCommand, ControlReply, ControlRequest, encode_control_request
from shared.messages import Answer, BatchReply, Fault, Item, MapReply, Pong, StatusReply
from shared.opstream import Limits
from shared.reactor import Reactor
from shared.versions import SPOKEN
from storenode import service as service_module
from storenode.maps import Maps
from storenode.raftframes import CONTROL
from storenode.service import BATCHES, DEFECTS, DROPPED_GONE, FAULTS_RECEIVED, FAULTS_SENT, Service
from tests.unit.storenode.replicaworld import PARTITION, World, increment

DEADLINE_S = 20.0
VALUE_BYTES_MAX = 1 << 16


class Shell:
    """A service in front of store 1 of a world of three, and a router that asks it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.lead()
        assert self.store.node == 1
        self.reactor = Reactor()
        self.context = sockets.context()
        nodes = [
            Node(number, f"store{number}", f"tcp://127.0.0.1:{7000 + number}", zone=f"z{number}")
            for number in (1, 2, 3)
        ]
        self.map = ClusterMap.bootstrap("test", 16, 3, nodes)
        self.maps = Maps(self.map)
        self.service = Service(self.reactor, self.maps, 1, Limits(VALUE_BYTES_MAX), world.clock)
        self.socket = sockets.store_router(self.context, "tcp://127.0.0.1:0", batch_bytes_max=1 << 24)
        self.store.replica._answer = self.service.outbox.add
        self.service.driver = self.store.groups
        self.frozen = False
        self.service.start(self.socket, {PARTITION: self.store.replica}, lambda: {"node_id": 1})
        self.reactor.on_turn_end(self._end_turn)
        self.reactor.on_turn_end(self.service.end_turn)
        self.router = self.dealer()

    def dealer(self, name: bytes = b"") -> zmq.Socket[bytes]:
        made = self.context.socket(zmq.DEALER)
        if name:
            made.set(zmq.IDENTITY, name)
        made.connect(sockets.bound_endpoint(self.socket))
        return made

    def _end_turn(self) -> None:
        if not self.frozen:
            self.world.settle()

    def turn(self) -> None:
        self.reactor.call_later(0.002, lambda: None)
        self.reactor._turn()
        assert not self.reactor.failures

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    def receive(self) -> messages.ToRouter:
        self.until(lambda: self.router.poll(0))
        return messages.decode_to_router(self.router.recv())

    def ask(self, frame: bytes) -> messages.ToRouter:
        self.router.send(frame)
        return self.receive()

    def batch(self, *items: Item) -> list[Answer]:
        self.router.send(messages.encode_batch(1, items))
        return self.answers(len(items))

    def answers(self, count: int) -> list[Answer]:
        found: list[Answer] = []
        while len(found) < count:
            reply = self.receive()
            assert isinstance(reply, BatchReply)
            found += reply.answers
        assert len(found) == count
        return found

    def answers_now(self) -> list[Answer]:
        """What the service has sent; its loop is at an end."""
        found: list[Answer] = []
        while self.router.poll(200 if not found else 20):
            reply = messages.decode_to_router(self.router.recv())
            assert isinstance(reply, BatchReply)
            found += reply.answers
        return found

    def status(self, one: Item) -> int:
        (answer,) = self.batch(one)
        return answer.status

    def close(self) -> None:
        self.router.close(0)
        self.socket.close(0)
        self.reactor.close()
        self.context.destroy(0)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    world = World(tmp_path)
    made = Shell(world)
    yield made
    made.close()
    world.close()


def item(ops: bytes, token: int = 1, **fields: int) -> Item:
    values = {
        "partition": PARTITION, "timeout_ms": 10_000, "read_mode": 0, "flags": 0, "client_id": 0,
        "sequence": 0, "acked_below": 0,
    } | fields  # fmt: skip
    return Item(token=token, ops=ops, **values)


GET = protocol.encode_get(b"k")
PUT = protocol.encode_put(b"k", b"v")


def test_writes_and_reads_of_a_batch_are_all_answered(shell: Shell) -> None:
    answers = shell.batch(item(PUT, 1), item(GET, 2), item(b"", 3, flags=protocol.FLAG_BARRIER))
    assert {answer.token: answer.status for answer in answers} == {1: 0, 2: 0, 3: 0}
    assert shell.status(item(GET)) == Status.OK
    assert shell.service.counters.values[BATCHES] == 2


def test_map_status_and_ping_are_answered(shell: Shell) -> None:
    assert shell.ask(messages.encode_map_request(5)) == MapReply(5, shell.map.encode())
    assert shell.ask(messages.encode_status_request(6)) == StatusReply(6, {"node_id": 1})
    assert shell.ask(messages.encode_ping(7)) == Pong(7, 1, shell.map.epoch)
    assert shell.ask(messages.encode_ping(8, SPOKEN)) == Pong(8, 1, shell.map.epoch, SPOKEN)
    fault = shell.ask(messages.encode_ping(9, {"map": (7, 8)}))
    assert isinstance(fault, Fault)
    assert "the other side speaks versions 7 to 8, this side versions 2 to 3" in fault.message


def test_routers_are_told_of_the_newest_map(shell: Shell) -> None:
    newest = attrs.evolve(shell.map, epoch=9)
    assert shell.maps.take(newest)
    assert shell.ask(messages.encode_map_request(5)) == MapReply(5, newest.encode())
    assert shell.ask(messages.encode_ping(7)) == Pong(7, 1, 9)
    shell.router.send(messages.encode_batch(1, [item(PUT, partition=3)]))
    reply = shell.receive()
    assert isinstance(reply, BatchReply)
    assert reply.epoch == 9
    text = protocol.decode_error(reply.answers[0].body)["message"]
    assert text == "partition 3 is not on this store; its map has epoch 9"


def test_what_is_no_partition_is_out_of_reach_for_routers_even_if_it_is_here(shell: Shell) -> None:
    shell.service._partitions = {PARTITION: shell.store.replica, CONTROL: shell.store.replica}
    assert shell.status(item(PUT, partition=CONTROL)) == Status.WRONG_REPLICA
    assert shell.status(item(PUT)) == Status.OK


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (item(PUT, partition=3), Status.WRONG_REPLICA),
        (item(b""), Status.INVALID_REQUEST),
        (item(PUT[:-1]), Status.INVALID_REQUEST),
        (item(b"\xc1"), Status.INVALID_REQUEST),
        (item(protocol.encode_put(b"k", bytes(VALUE_BYTES_MAX + 1))), Status.VALUE_TOO_LARGE),
        (item(protocol.encode_get(b"k" * 5000)), Status.KEY_TOO_LONG),
        (item(GET, timeout_ms=0), Status.TIMEOUT),
        (item(PUT, timeout_ms=0), Status.TIMEOUT),
        (item(b"\x92\x63\xc4\x01k"), Status.UNSUPPORTED),
    ],
)
def test_an_item_that_is_wrong_is_refused_and_its_neighbours_are_served(
    shell: Shell, wrong: Item, status: Status
) -> None:
    answers = shell.batch(item(PUT, 10), wrong, item(GET, 11))
    assert {answer.token: answer.status for answer in answers} == {10: 0, 1: status, 11: 0}


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", b"\x91\x01", b"\x93\x02\x01\x05", b"\x92\x01\x63", bytes(1000)]
)
def test_a_frame_that_is_not_understood_gets_a_fault_and_the_next_one_its_answer(
    shell: Shell, frame: bytes
) -> None:
    assert isinstance(shell.ask(frame), Fault)
    assert shell.service.counters.values[FAULTS_SENT] == 1
    assert shell.status(item(GET)) == Status.OK


def test_a_command_for_a_control_partition_that_is_not_there_is_refused(shell: Shell) -> None:
    """It was counted as a fault of the other side, and whoever asked waited in vain."""
    request = ControlRequest(9, 0, 1000, 0, ControlCommand.SHOW, b"\x80")
    reply = shell.ask(encode_control_request(request))
    assert isinstance(reply, ControlReply)
    assert (reply.token, reply.status) == (9, Status.UNSUPPORTED)
    assert shell.service.counters.values[FAULTS_RECEIVED] == 0


def test_a_message_of_several_frames_gets_a_fault(shell: Shell) -> None:
    shell.router.send_multipart([messages.encode_ping(1), b"more"])
    assert isinstance(shell.receive(), Fault)


def test_a_fault_is_counted_and_not_answered(shell: Shell) -> None:
    shell.router.send(messages.encode_fault("I do not understand you"))
    assert isinstance(shell.ask(messages.encode_ping(1)), Pong)
    assert shell.service.counters.values[FAULTS_RECEIVED] == 1


def test_a_defect_costs_one_item_and_is_named_by_a_reference(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    logs.configure("info", "json", stream=out)
    inspect = service_module.inspect

    def defective(ops: bytes, limits: Limits) -> object:
        if ops == protocol.encode_get(b"boom"):
            raise ZeroDivisionError
        return inspect(ops, limits)

    monkeypatch.setattr(service_module, "inspect", defective)
    boom = protocol.encode_get(b"boom")
    answers = {
        one.token: one for one in shell.batch(item(boom, 1), item(GET, 2), item(boom, 3), item(PUT, 4))
    }
    assert {token: one.status for token, one in answers.items()} == {
        1: Status.INTERNAL,
        2: 0,
        3: Status.INTERNAL,
        4: 0,
    }
    assert answers[1].body == answers[3].body, "within a second, one line of the log"
    reference = shell.service._defect_reference
    assert reference in str(protocol.decode_error(answers[1].body)["message"])
    assert out.getvalue().count(reference) == 1
    assert shell.service.counters.values[DEFECTS] == 2


def test_a_router_that_is_gone_costs_nothing_but_its_answers(shell: Shell) -> None:
    shell.frozen = True
    gone = shell.dealer(b"gone")
    gone.send(messages.encode_batch(1, [item(PUT)]))
    shell.until(lambda: not shell.store.replica.idle)
    gone.close(0)
    shell.until(lambda: sockets.send_or_drop(shell.socket, (b"gone", b"")) == "gone")
    shell.frozen = False
    shell.until(lambda: shell.service.counters.values[DROPPED_GONE] == 1)
    assert shell.status(item(GET)) == Status.OK


# -- snapshots of other stores


def test_a_request_for_a_snapshot_goes_to_the_source_and_its_answer_to_whom_asked(shell: Shell) -> None:
    asked: list[tuple[bytes, bytes]] = []
    shell.service.on_bulk = lambda peer, body: asked.append((peer, body))
    shell.router.send(messages.encode_bulk_request(b"open"))
    shell.until(lambda: asked)
    ((peer, body),) = asked
    assert body == b"open"
    other = shell.dealer()
    shell.service.send_bulk(peer, b"opened")
    shell.until(lambda: shell.router.poll(0))
    reply = messages.decode_to_peer(shell.router.recv())
    assert isinstance(reply, messages.BulkReply)
    assert reply.body == b"opened"
    assert not other.poll(0)
    other.close(0)


def test_a_store_without_snapshots_and_a_request_that_is_wrong_get_a_fault(shell: Shell) -> None:
    shell.router.send(messages.encode_bulk_request(b"open"))
    shell.until(lambda: shell.router.poll(0))
    assert isinstance(messages.decode_to_peer(shell.router.recv()), Fault)

    def refuse(peer: bytes, body: bytes) -> None:
        raise ProtocolError("a request of three fields")

    shell.service.on_bulk = refuse
    shell.router.send(messages.encode_bulk_request(b"open"))
    shell.until(lambda: shell.router.poll(0))
    fault = messages.decode_to_peer(shell.router.recv())
    assert isinstance(fault, Fault)
    assert fault.message == "a request of three fields"
    assert shell.status(item(GET)) == Status.OK


# -- stopping


def run(shell: Shell) -> None:
    """The loop until it ends on its own."""
    limit = shell.reactor.call_later(DEADLINE_S, lambda: pytest.fail("the loop does not end"))
    shell.reactor.run()
    limit.cancel()
    assert not shell.reactor.failures


def test_a_store_that_stops_gives_leadership_away_while_it_still_reads(shell: Shell) -> None:
    """Routers learn where to go; nobody meets a store that does not answer."""
    shell.frozen = True
    shell.service.stop()
    shell.service.stop()
    assert shell.store.replica.raft._leadership.transferee != 0  # type: ignore[union-attr]
    shell.router.send(messages.encode_batch(1, [item(PUT)]))
    shell.until(lambda: not shell.store.replica.idle)
    shell.frozen = False
    (answer,) = shell.answers(1)
    assert answer.status in (Status.BUSY, Status.NOT_LEADER), "and not refused by a store that stops"
    run(shell)
    assert not shell.store.groups.leading
    assert shell.world.stores[2].leads or shell.world.stores[3].leads


def test_a_store_that_is_told_to_lead_while_it_refuses_what_arrived_does_not_take_it_along(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood, was elected and was gone: writes waited 1.4 s for the next election."""
    refuse = shell.service._refuse_unread
    told: list[int] = []

    def refuse_and_hear() -> None:
        refuse()
        if not told:
            assert not shell.store.groups.leading
            (leader,) = (store for store in shell.world.stores.values() if store.leads)
            told.append(leader.node)
            leader.replica.raft.transfer(shell.store.node)
            leader.groups.dirty(leader.replica)
            while not shell.store.groups.leading:
                shell.world.turn()

    def tick() -> None:
        shell.world.tick()
        shell.reactor.call_later(0.01, tick)

    monkeypatch.setattr(shell.service, "_refuse_unread", refuse_and_hear)
    shell.service.stop()
    tick()
    run(shell)
    assert told
    assert not shell.store.groups.leading
    shell.world.settle()
    assert shell.world.stores[2].leads or shell.world.stores[3].leads


def test_what_was_taken_is_answered_before_the_loop_ends(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can take over: the grace for it passes, and then the log write under way ends."""
    monkeypatch.setattr(service_module, "HAND_OVER_S", 0.02)
    monkeypatch.setattr(shell.store.groups, "hand_over", lambda: None)
    for store in shell.world.stores.values():
        store.writer.held = True
    shell.router.send(messages.encode_batch(1, [item(PUT, 1), item(GET, 2)]))
    shell.until(lambda: shell.store.replica._logged)
    shell.service.stop()
    shell.until(lambda: shell.service._stopping)
    shell.turn()

    def release() -> None:
        for store in shell.world.stores.values():
            store.writer.held = False
            store.writer.write()

    shell.reactor.call_later(0.02, release)
    run(shell)
    assert {one.token: one.status for one in shell.answers_now()} == {1: 0, 2: 0}


def test_a_linearizable_read_under_way_is_answered_before_the_loop_ends(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only writes were waited for: the loop ended in the middle of its round."""
    monkeypatch.setattr(service_module, "HAND_OVER_S", 0.0)
    monkeypatch.setattr(shell.store.groups, "hand_over", lambda: None)
    shell.frozen = True
    shell.router.send(messages.encode_batch(1, [item(GET, 2)]))
    shell.until(lambda: not shell.store.replica.idle)
    shell.service.stop()
    shell.until(lambda: shell.service._stopping)

    def thaw() -> None:
        shell.frozen = False

    shell.reactor.call_later(0.02, thaw)
    run(shell)
    assert [(one.token, one.status) for one in shell.answers_now()] == [(2, Status.OK)]


def test_of_what_arrives_while_a_store_stops_writes_are_refused_and_reads_served(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read was left in Raft, where nobody came to answer it: a round of it takes more than a turn."""
    monkeypatch.setattr(service_module, "HAND_OVER_S", 0.0)
    monkeypatch.setattr(shell.store.groups, "hand_over", lambda: None)
    assert shell.status(item(increment())) == Status.OK
    shell.service.stop()
    shell.service._stop_reading()
    shell.router.send(
        messages.encode_batch(1, [item(increment(), 1), item(GET, 2), item(GET, 3, read_mode=1)])
    )
    run(shell)
    found = shell.answers_now()
    assert {one.token: one.status for one in found} == {1: Status.UNAVAILABLE, 2: 0, 3: 0}
    assert shell.store.value(b"n") == b"1"


def test_a_store_that_has_given_leadership_away_names_who_has_it_to_whom_comes_late(shell: Shell) -> None:
    """It said that it was stopping, so that routers asked it again, later and later, until its socket was
    gone: writes stood still for 70 ms, some for 250 ms, while another store led 5 ms after the signal.
    """
    assert shell.status(item(increment())) == Status.OK
    shell.store.groups.hand_over()
    shell.until(lambda: not shell.store.groups.leading)
    shell.service.stop()
    shell.service._stop_reading()
    shell.router.send(messages.encode_batch(1, [item(increment(), 7)]))
    run(shell)
    (leader,) = (store for store in shell.world.stores.values() if store.leads)
    (answer,) = shell.answers_now()
    assert (answer.token, answer.status) == (7, Status.NOT_LEADER)
    assert protocol.decode_error(answer.body)["leader"] == leader.node
    assert leader.value(b"n") == b"1"


def test_a_store_that_cannot_finish_ends_after_its_grace(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "HAND_OVER_S", 0.0)
    monkeypatch.setattr(service_module, "STOP_GRACE_S", 0.05)
    monkeypatch.setattr(shell.store.groups, "hand_over", lambda: None)
    shell.frozen = True
    shell.router.send(messages.encode_batch(1, [item(PUT)]))
    shell.until(lambda: not shell.store.replica.idle)
    shell.service.stop()
    run(shell)
    assert not shell.store.replica.idle
    shell.frozen = False
    shell.world.settle()


def test_routers_that_say_who_they_are_are_told_of_and_nonsense_is_a_fault(shell: Shell) -> None:
    shell.router.send(messages.encode_router_hello("router1", "tcp://127.0.0.1:7100"))
    shell.until(shell.service.routers.figures)
    assert shell.service.routers.figures() == [{"name": "router1", "front": "tcp://127.0.0.1:7100"}]
    shell.router.send(messages.encode_router_hello("router2", "tcp://0.0.0.0:7100"))
    assert isinstance(shell.receive(), Fault)
    assert len(shell.service.routers.figures()) == 1


LOOKS = {
    "ping": messages.encode_ping(5),
    "map": messages.encode_map_request(5),
    "status": messages.encode_status_request(5),
    "show": encode_control_request(ControlRequest(5, 0, 1000, 0, ControlCommand.SHOW, b"\x80")),
}


def a_batch(ops: bytes) -> bytes:
    return messages.encode_batch(1, [Item(5, PARTITION, 1000, 0, 0, 0, 0, 0, ops)])


CHANGES = {
    "put": a_batch(protocol.encode_put(b"k", b"v")),
    "get": a_batch(protocol.encode_get(b"k")),
    "remove": encode_control_request(ControlRequest(5, 0, 1000, 0, ControlCommand.NODE_REMOVE, b"\x80")),
    "join": encode_control_request(ControlRequest(5, 0, 1000, 0, ControlCommand.JOIN, b"\x80")),
    "bulk": messages.encode_bulk_request(b""),
}


@pytest.mark.parametrize("asked", [*LOOKS, *CHANGES])
@pytest.mark.parametrize("name", ["router1", "monitor"])
def test_who_is_no_member_of_the_cluster_may_look_and_no_more(shell: Shell, asked: str, name: str) -> None:
    """Names come with messages where there are keys."""
    watcher = shell.dealer(b"watcher")
    watcher.send(messages.encode_ping(1))
    shell.until(lambda: watcher.poll(0))
    watcher.recv()
    shell.service._is_member = {"router1"}.__contains__
    shell.service._on_named([[b"watcher", (LOOKS | CHANGES)[asked]]], [name])
    shell.until(lambda: watcher.poll(0))
    answer = messages.decode_to_router(watcher.recv())
    refused = isinstance(answer, Fault) and "may look at this store" in answer.message
    assert refused == (name == "monitor" and asked in CHANGES)
    watcher.close(0)
