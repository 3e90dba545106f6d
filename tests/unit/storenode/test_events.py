"""Maps and reports between stores, on real sockets on loopback. What does not arrive fails at a deadline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from kvclient.errors import ProtocolError
from shared import sockets
from shared.config import ConfigError
from shared.messages import FIGURES_TOPIC, MAP_TOPIC
from shared.reactor import Reactor
from storenode import events as events_module
from storenode.control.reports import Heading, Report, encode_report
from storenode.events import REPORT_TOPIC, Events

DEADLINE_S = 10.0
CLUSTER = 0xC1
ANY_PORT = "tcp://127.0.0.1:0"


def report(node: int, epoch: int = 1, cluster: int = CLUSTER) -> bytes:
    return encode_report(Report(cluster, node, "", epoch, "1.0", 0, 1, 0))


class Nodes:
    """Events of several nodes on one loop, and what each of them heard."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.context = sockets.context()
        self.events: dict[int, Events] = {}
        self.maps: dict[int, list[bytes]] = {}
        self.reports: dict[int, list[tuple[Heading, bytes]]] = {}
        self.publishers: list[zmq.Socket[bytes]] = []

    def add(self, node: int) -> Events:
        maps, reports = self.maps.setdefault(node, []), self.reports.setdefault(node, [])

        def on_map(encoded: bytes) -> None:
            if encoded == b"none":
                raise ProtocolError("no map")
            maps.append(encoded)

        def on_report(heading: Heading, payload: bytes) -> None:
            if heading.epoch == 99:
                raise ZeroDivisionError
            reports.append((heading, payload))

        made = Events(self.reactor, self.context, node, CLUSTER, ANY_PORT, on_map, on_report)
        self.events[node] = made
        return made

    def publisher(self) -> tuple[zmq.Socket[bytes], str]:
        """A bare publisher that says what the test wants."""
        socket = self.context.socket(zmq.PUB)
        socket.bind("tcp://127.0.0.1:*")
        self.publishers.append(socket)
        return socket, socket.get_string(zmq.LAST_ENDPOINT)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s"
            self.reactor.call_later(0.005, lambda: None)
            self.reactor._turn()
        assert not self.reactor.failures

    def close(self) -> None:
        for one in self.events.values():
            one.close()
        self.reactor.close()
        self.context.destroy(0)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.close()


def said(nodes: Nodes, speaker: int, listener: int) -> Callable[[], bool]:
    """Says a report again until the listener has it: the link takes its time."""

    def heard() -> bool:
        nodes.events[speaker].say_report(report(speaker))
        return any(heading.node == speaker for heading, _ in nodes.reports[listener])

    return heard


def test_maps_and_reports_reach_the_peers_and_nobody_hears_himself(nodes: Nodes) -> None:
    endpoints = {node: nodes.add(node).endpoint for node in (1, 2)}
    for one in nodes.events.values():
        one.set_peers(endpoints)
    nodes.until(said(nodes, 1, 2))
    nodes.events[1].say_map(b"a map")
    nodes.until(lambda: bool(nodes.maps[2]))
    assert nodes.maps == {1: [], 2: [b"a map"]}
    heading, payload = nodes.reports[2][0]
    assert (heading, payload) == (Heading(CLUSTER, 1, "", 1), report(1))
    assert not nodes.reports[1]


def test_peers_come_and_go_while_it_runs(nodes: Nodes) -> None:
    first, second, third = (nodes.add(node) for node in (1, 2, 3))
    third.set_peers({1: first.endpoint})
    nodes.until(said(nodes, 1, 3))
    third.set_peers({2: second.endpoint})
    nodes.reports[3].clear()
    nodes.until(said(nodes, 2, 3))
    first.say_report(report(1))
    nodes.reports[3].clear()
    nodes.until(said(nodes, 2, 3))
    assert {heading.node for heading, _ in nodes.reports[3]} == {2}


def test_a_peer_without_an_address_does_not_keep_the_others_from_being_heard(nodes: Nodes) -> None:
    speaker, listener = nodes.add(1), nodes.add(2)
    with pytest.raises(ConfigError):
        listener.set_peers({3: "nowhere", 1: speaker.endpoint})
    nodes.until(said(nodes, 1, 2))


def test_what_is_no_event_is_counted_and_the_rest_is_heard(nodes: Nodes) -> None:
    listener = nodes.add(1)
    publisher, endpoint = nodes.publisher()
    listener.set_peers({2: endpoint})

    def good() -> bool:
        publisher.send(REPORT_TOPIC + report(2))
        return bool(nodes.reports[1])

    nodes.until(good)
    before = listener.counters.snapshot()
    bad = [
        [REPORT_TOPIC],
        [REPORT_TOPIC + b"\xc1"],
        [REPORT_TOPIC + os.urandom(64)],
        [REPORT_TOPIC + b"\x9a\x02"],
        [REPORT_TOPIC + report(2, epoch=99)],
        [MAP_TOPIC + b"none"],
        [MAP_TOPIC + b"two", b"frames"],
        [MAP_TOPIC + bytes(events_module.FRAME_BYTES_MAX)],
    ]
    for frames in bad:
        publisher.send_multipart(frames)
    publisher.send(REPORT_TOPIC + report(2, cluster=7))
    publisher.send(REPORT_TOPIC + report(3))
    publisher.send(REPORT_TOPIC + report(1))
    publisher.send(MAP_TOPIC + b"the last")
    nodes.until(lambda: nodes.maps[1] == [b"the last"])
    after = listener.counters.snapshot()
    assert after["frames_bad"] - before["frames_bad"] == len(bad)
    assert after["reports_foreign"] == 1
    assert after["reports_stranger"] == 2
    assert {heading.node for heading, _ in nodes.reports[1]} == {2}


def test_a_peer_that_is_silent_is_connected_to_afresh(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "SILENT_S", 0.1)
    again: list[str] = []
    monkeypatch.setattr(sockets, "reconnect", lambda socket, endpoint: again.append(endpoint))
    speaker, listener = nodes.add(1), nodes.add(2)
    listener.set_peers({1: speaker.endpoint})
    nodes.until(lambda: again == [speaker.endpoint])


LEAVER = """
import sys, zmq
context = zmq.Context()
socket = context.socket(zmq.SUB)
socket.set(zmq.RCVHWM, 1)
socket.set(zmq.RCVBUF, 1024)
socket.setsockopt(zmq.SUBSCRIBE, b"")
socket.connect(sys.argv[1])
socket.recv()
print("heard", flush=True)
sys.stdin.read(1)
import os
os._exit(0)
"""


def test_a_subscriber_that_leaves_in_the_middle_costs_the_publisher_nothing(nodes: Nodes) -> None:
    """Two frames a message made libzmq abort this process here."""
    speaker, listener = nodes.add(1), nodes.add(2)
    listener.set_peers({1: speaker.endpoint})
    nodes.until(said(nodes, 1, 2))
    for _ in range(3):
        leaver = subprocess.Popen(
            [sys.executable, "-c", LEAVER, speaker.endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert leaver.stdout is not None
            os.set_blocking(leaver.stdout.fileno(), False)

            def heard(pipe: int = leaver.stdout.fileno()) -> bool:
                speaker.say_map(bytes(1 << 18))
                try:
                    return bool(os.read(pipe, 16))
                except BlockingIOError:
                    return False

            nodes.until(heard)
            for _ in range(200):  # more than its queue holds: some wait in the middle
                speaker.say_map(bytes(1 << 18))
        finally:
            leaver.kill()
            leaver.communicate()
    nodes.reports[2].clear()
    nodes.until(said(nodes, 1, 2))


def test_figures_reach_who_listens_for_them_and_no_store(nodes: Nodes) -> None:
    speaker, peer = nodes.add(1), nodes.add(2)
    peer.set_peers({1: speaker.endpoint})
    listener = sockets.bus_subscriber(nodes.context, [FIGURES_TOPIC])
    sockets.connect(listener, speaker.endpoint)

    def heard() -> bool:
        speaker.say_figures(b"payload")
        return bool(listener.poll(5))

    nodes.until(heard)
    nodes.until(said(nodes, 1, 2))
    assert listener.recv_multipart() == [FIGURES_TOPIC + b"payload"]
    assert peer.counters.snapshot()["frames_bad"] == 0
    listener.close(0)
