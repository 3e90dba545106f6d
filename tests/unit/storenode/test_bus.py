"""The bus on real sockets on loopback. What does not arrive fails at a deadline, never hangs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from shared import sockets
from shared.config import ConfigError
from shared.reactor import Reactor
from storenode import bus as bus_module
from storenode.bus import Bus
from storenode.raft.messages import EVERYBODY, Entry, Kind, Message
from storenode.raftframes import Outgoing
from tests.unit.storenode.links import CuttableLink, free_endpoint

DEADLINE_S = 10.0
CLUSTER = 0x0102030405060708
ANY_PORT = "tcp://127.0.0.1:0"


class Nodes:
    """Buses on one loop; what each of them heard, in order."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.context = sockets.context()
        self.buses: dict[int, Bus] = {}
        self.heard: dict[int, list[tuple[int, int, Message]]] = {}
        self.stack = contextlib.ExitStack()

    def add(self, node: int, *, cluster: int = CLUSTER, listen: str = ANY_PORT) -> Bus:
        heard = self.heard.setdefault(node, [])

        def on_messages(sender: int, rows: list[tuple[int, Message]]) -> None:
            heard.extend((sender, group, message) for group, message in rows)

        bus = Bus(self.reactor, self.context, node, cluster, listen, {}, on_messages)
        self.buses[node] = bus
        return bus

    def add_when_free(self, node: int, endpoint: str) -> Bus:
        """On an endpoint that was closed just now: libzmq's own thread does the closing."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                return self.add(node, listen=endpoint)
            except sockets.ListenError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def join(self, *nodes: int) -> None:
        """Make them peers, and wait until each hears each of the others."""
        endpoints = {node: self.buses[node].endpoint for node in nodes}
        for node in nodes:
            self.buses[node].set_peers(endpoints)
        self.wait_for_links(nodes)

    def wait_for_links(self, nodes: tuple[int, ...]) -> None:
        """Speak until everybody hears everybody; then drain, and forget all of that."""
        probe = Message(EVERYBODY, 0, Kind.HEARTBEAT, 0)
        missing = {(a, b) for a in nodes for b in nodes if a != b}
        rounds = 0

        def linked() -> bool:
            nonlocal rounds
            for listener, speaker in missing.copy():
                if any(sender == speaker for sender, _, _ in self.heard[listener]):
                    missing.discard((listener, speaker))
            if missing:
                rounds += 1
                for node in nodes:
                    self.say(node, 4095, probe)
            return not missing

        self.until(linked, "links")
        for node in nodes:
            self.say(node, 4094, probe)
        last = {(a, b) for a in nodes for b in nodes if a != b}
        self.until(
            lambda: last <= {(a, s) for a in nodes for s, group, _ in self.heard[a] if group == 4094},
            "last probes",
        )
        for heard in self.heard.values():
            heard.clear()

    def say(self, node: int, group: int, message: Message) -> None:
        self.buses[node].send(group, message._replace(sender=node))
        self.buses[node].flush()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
            self.reactor.call_later(0.005, lambda: None)
            self.reactor._turn()
        assert not self.reactor.failures

    def groups(self, node: int) -> list[int]:
        return [group for _, group, _ in self.heard[node]]

    def close(self) -> None:
        for bus in self.buses.values():
            bus.close()
        self.stack.close()
        self.reactor.close()
        self.context.destroy(0)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.close()


def heartbeat(to: int = EVERYBODY, context: int = 0) -> Message:
    return Message(to, 0, Kind.HEARTBEAT, 3, 10, 2, context=context)


def append(size: int) -> Message:
    return Message(EVERYBODY, 0, Kind.APPEND, 3, entries=(Entry(3, 0, bytes(size)),))


def test_a_broadcast_reaches_each_peer_once_and_a_message_only_its_node(nodes: Nodes) -> None:
    for node in (1, 2, 3):
        nodes.add(node)
    nodes.join(1, 2, 3)
    sent = [bus.counters.values[bus_module.FRAMES_SENT] for bus in nodes.buses.values()]
    nodes.buses[1].send(7, heartbeat()._replace(sender=1))
    nodes.buses[1].send(8, Message(2, 1, Kind.TIMEOUT_NOW, 3))
    nodes.buses[1].send(9, heartbeat()._replace(sender=1))
    nodes.buses[1].flush()
    nodes.say(2, 1, heartbeat(EVERYBODY))
    nodes.say(3, 2, heartbeat(EVERYBODY))
    nodes.until(lambda: [len(nodes.heard[n]) for n in (1, 2, 3)] == [2, 4, 3], "messages")
    nodes.say(2, 99, heartbeat())
    nodes.say(1, 99, heartbeat())
    nodes.until(lambda: [nodes.groups(n).count(99) for n in (1, 2, 3)] == [1, 1, 2], "last messages")
    assert [entry[1] for entry in nodes.heard[3] if entry[0] == 1] == [7, 9, 99]
    assert sorted(entry[1] for entry in nodes.heard[2] if entry[0] == 1) == [7, 8, 9, 99]
    assert (1, 8, Message(2, 1, Kind.TIMEOUT_NOW, 3)) in nodes.heard[2]
    assert all(sender != 1 for sender, _, _ in nodes.heard[1]), "its own broadcasts came back"
    assert nodes.buses[1].counters.values[bus_module.FRAMES_SENT] == sent[0] + 3
    assert [bus.figures()["frames_lost"] for bus in nodes.buses.values()] == [0, 0, 0]


def test_messages_arrive_in_order_and_nothing_leaves_before_the_flush(nodes: Nodes) -> None:
    first, _ = nodes.add(1), nodes.add(2)
    nodes.join(1, 2)
    for number in range(500):
        first.send(number, heartbeat()._replace(sender=1))
        if number % 10 == 0:
            first.flush()
    nodes.until(lambda: len(nodes.heard[2]) == 491, "what was flushed")
    assert nodes.groups(2) == list(range(491))
    first.flush()
    first.flush()
    nodes.until(lambda: len(nodes.heard[2]) == 500, "the rest")
    assert nodes.groups(2) == list(range(500))


def test_what_is_lost_while_a_link_is_down_is_counted_and_the_link_comes_back(nodes: Nodes) -> None:
    speaker, listener = nodes.add(1), nodes.add(2)
    link = CuttableLink(speaker.endpoint)
    nodes.stack.callback(link.close)
    listener.set_peers({1: link.endpoint})
    speaker.set_peers({2: listener.endpoint})
    nodes.wait_for_links((1, 2))
    link.cut()
    for _ in range(20):
        nodes.say(1, 5, heartbeat())
    link.mend()

    def back() -> bool:
        nodes.say(1, 6, heartbeat())
        return 6 in nodes.groups(2)

    nodes.until(back, "message after the link was mended")
    assert 5 not in nodes.groups(2)
    assert listener.figures()["frames_lost"] >= 20
    assert listener.figures()["frames_late"] == 0
    assert speaker.figures()["frames_lost"] == 0


def test_a_hung_subscriber_neither_blocks_nor_holds_more_than_its_marks(nodes: Nodes) -> None:
    speaker, _ = nodes.add(1), nodes.add(2)
    nodes.join(1, 2)
    size, count = 64 << 10, 1500
    hung = sockets.bus_subscriber(nodes.context, [b"\xff\xff"])
    nodes.stack.callback(hung.close, 0)
    sockets.connect(hung, speaker.endpoint)

    def joined() -> bool:
        nodes.say(1, 0, heartbeat())
        return bool(hung.poll(0))

    nodes.until(joined, "subscription")
    nodes.heard[2].clear()
    for number in range(1, count + 1):
        nodes.say(1, number, append(size))
        nodes.until(lambda n=number: n in nodes.groups(2)[-20:], "message past the hung one")  # type: ignore[misc]
    read = 0
    while hung.poll(300):
        read += len(hung.recv()) >= size
    kernel = 2 * (16 << 20) // size  # what two buffers of the largest size hold
    assert 64 <= read <= 64 + 64 + kernel < count
    assert nodes.buses[2].figures()["frames_lost"] == 0


PUBLISHER = """
import sys, time
from shared import sockets
socket = sockets.bus_publisher(sockets.context(), sys.argv[1])
print(sockets.bound_endpoint(socket), flush=True)
while True:
    for _ in range(1200):
        sockets.send_or_drop(socket, (b"\\xff\\xff" + bytes(2000),))
        time.sleep(0.001)
    print("more than the marks", flush=True)
"""

SUBSCRIBER = """
import signal, subprocess, sys, time
from shared import sockets
publisher = subprocess.Popen([sys.executable, "-c", sys.argv[1], "tcp://127.0.0.1:0"], stdout=subprocess.PIPE)
endpoint = publisher.stdout.readline().decode().strip()
socket = sockets.bus_subscriber(sockets.context(), [b"\\xff\\xff"])
sockets.connect(socket, endpoint)
assert socket.poll(5000)
for _ in range(2):  # the first may have begun before there was a subscriber
    publisher.stdout.readline()
publisher.kill()
publisher.wait()
time.sleep(1.2)  # libzmq would abort within it, at a PING
read = 0
while socket.poll(200):
    socket.recv()
    read += 1
print(read)
"""


def test_a_publisher_that_vanishes_before_a_full_subscriber_does_not_end_its_process() -> None:
    """With heartbeats on, libzmq 4.3.5 aborts here; shared/sockets.py says why."""
    done = subprocess.run([sys.executable, "-c", SUBSCRIBER, PUBLISHER], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 64


def test_a_peer_without_an_address_does_not_keep_the_others_from_being_heard(nodes: Nodes) -> None:
    speaker, listener = nodes.add(1), nodes.add(2)
    with pytest.raises(ConfigError):
        listener.set_peers({3: "nowhere", 1: speaker.endpoint})
    speaker.set_peers({2: listener.endpoint})
    nodes.wait_for_links((1, 2))


def test_frames_of_another_cluster_and_of_no_peer_are_dropped_and_counted(nodes: Nodes) -> None:
    nodes.add(1)
    listener = nodes.add(2)
    foreign = nodes.add(3, cluster=CLUSTER + 1)
    stranger = nodes.add(4)
    nodes.join(1, 2)
    endpoint = nodes.buses[1].endpoint
    listener.set_peers({1: endpoint, 3: foreign.endpoint, 5: stranger.endpoint})
    values = listener.counters.values

    def refused() -> bool:
        for node in (1, 3, 4):
            nodes.say(node, node, heartbeat())
        return values[bus_module.FRAMES_FOREIGN] > 2 and values[bus_module.FRAMES_STRANGER] > 2

    nodes.until(refused, "foreign frames")
    nodes.until(lambda: 1 in nodes.groups(2), "message of the peer")
    assert {sender for sender, _, _ in nodes.heard[2]} == {1}
    assert values[bus_module.FRAMES_BAD] == 0


def test_bytes_that_are_no_frames_cost_nothing_but_a_count(nodes: Nodes) -> None:
    listener = nodes.add(2)
    rogue = sockets.bus_publisher(nodes.context, ANY_PORT)
    nodes.stack.callback(rogue.close, 0)
    listener.set_peers({1: sockets.bound_endpoint(rogue)})
    values = listener.counters.values
    outgoing = Outgoing(1, CLUSTER, 1)

    def refused() -> bool:
        rogue.send(b"\xff\xff")
        rogue.send(b"\xff\xff" + os.urandom(50))
        rogue.send_multipart([b"\xff\xff", b"more"])
        outgoing.add(1, Message(2, 1, Kind.TIMEOUT_NOW, 3, a=1))
        outgoing.add(2, Message(2, 1, Kind.TIMEOUT_NOW, 3))
        rogue.send(outgoing.take()[0])
        return values[bus_module.FRAMES_BAD] > 10 and len(nodes.heard[2]) > 3

    nodes.until(refused, "refusals")
    assert set(nodes.groups(2)) == {2}
    assert values[bus_module.ROWS_BAD] >= 3


def test_peers_that_go_are_not_heard_and_those_that_stay_lose_nothing(nodes: Nodes) -> None:
    for node in (1, 2, 3):
        nodes.add(node)
    nodes.join(1, 2, 3)
    listener = nodes.buses[3]
    listener.set_peers({2: nodes.buses[2].endpoint})
    for number in range(10):
        nodes.say(1, 1, heartbeat())
        nodes.say(2, number, heartbeat())
    nodes.until(lambda: len(nodes.heard[3]) >= 10, "messages of the one that stays")
    assert [(sender, group) for sender, group, _ in nodes.heard[3]] == [(2, n) for n in range(10)]
    assert listener.figures()["frames_lost"] == 0
    listener.set_peers({1: nodes.buses[1].endpoint, 2: nodes.buses[2].endpoint})
    nodes.wait_for_links((1, 2, 3))
    assert listener.figures()["frames_lost"] == 0, "what one did not want to hear is no loss"


def test_a_peer_that_restarts_at_its_address_is_heard_again(nodes: Nodes) -> None:
    endpoint = free_endpoint()
    first, listener = nodes.add(1, listen=endpoint), nodes.add(2)
    nodes.join(1, 2)
    first.close()
    again = nodes.add_when_free(1, endpoint)
    again.set_peers({2: listener.endpoint})
    nodes.wait_for_links((1, 2))
    assert listener.figures()["peer_restarts"] == 1
    assert listener.figures()["frames_lost"] == 0


def test_a_link_that_a_stranger_broke_for_good_is_made_afresh(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libzmq never connects again to who does not speak its protocol."""
    monkeypatch.setattr(bus_module, "SILENT_S", 0.3)
    listener = nodes.add(2)
    endpoint = free_endpoint()
    with socket.create_server(("127.0.0.1", int(endpoint.rsplit(":", 1)[1]))) as web:
        listener.set_peers({1: endpoint})
        taken, _ = web.accept()
        taken.settimeout(DEADLINE_S)
        taken.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"ODD".ljust(52, b"\x00"))
        while taken.recv(64):  # until libzmq has given it up
            pass
        taken.close()
    nodes.add(1, listen=endpoint)

    def heard() -> bool:
        nodes.say(1, 5, heartbeat())
        return 5 in nodes.groups(2)

    nodes.until(heard, "message")


def test_a_bus_that_cannot_listen_or_connect_says_so_and_leaves_nothing_open(nodes: Nodes) -> None:
    taken = nodes.add(1).endpoint
    with pytest.raises(sockets.ListenError, match="another process listens there"):
        nodes.add(2, listen=taken)
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0"):
        nodes.add(2, listen="tcp://0.0.0.0:0")
    with pytest.raises(ConfigError):
        Bus(nodes.reactor, nodes.context, 2, CLUSTER, ANY_PORT, {3: "nonsense"}, print)


def test_the_marks_of_the_bus_bound_what_a_peer_can_hold(nodes: Nodes) -> None:
    publisher = sockets.bus_publisher(nodes.context, ANY_PORT)
    subscriber = sockets.bus_subscriber(nodes.context, [])
    options: dict[str, Any] = {
        "publisher": [publisher.get(zmq.SNDHWM), publisher.get(zmq.HEARTBEAT_IVL)],
        "subscriber": [subscriber.get(zmq.RCVHWM), subscriber.get(zmq.HEARTBEAT_IVL)],
    }
    publisher.close(0)
    subscriber.close(0)
    assert options == {"publisher": [64, 0], "subscriber": [64, 0]}
