"""The stores' sockets and their health, with sockets and a loop that the test plays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from router import backends
from router.backends import Backends
from shared import messages
from shared.reactor import BUDGET
from shared.sockets import LinkEvent
from tests.unit.router.conftest import STORES, Harness, ok, put


class Socket:
    """Frames to read, and what was sent."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()

    def recv(self, flags: int, copy: bool) -> Any:
        if not self.waiting:
            raise zmq.Again
        return SimpleNamespace(bytes=self.waiting.popleft(), more=False)

    def fileno(self) -> int:
        return 0


class House:
    """One router's backends, all linked and up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.harness = Harness()
        self.timers: list[Callable[[], None]] = []
        self.fds: list[Callable[[], None]] = []
        self.sockets: list[Socket] = []
        self.monitors: list[SimpleNamespace] = []
        monkeypatch.setattr(backends.sockets, "backend_dealer", self._dealer)
        monkeypatch.setattr(backends.sockets, "monitor_events", self._monitor)
        monkeypatch.setattr(backends.sockets, "send_or_drop", lambda socket, frames: None)
        reactor: Any = SimpleNamespace(
            add_reader=lambda socket, on_batch, priority: None,
            add_fd=lambda fd, callback: self.fds.append(callback),
            call_later=lambda seconds, callback: self.timers.append(callback),
        )
        context: Any = None
        endpoints = [node.rpc for node in STORES]
        self.backends = Backends(reactor, context, self.harness.router, endpoints)
        self.backends._follow_map()

    def _dealer(self, context: object, endpoint: str) -> Socket:
        self.sockets.append(Socket())
        return self.sockets[-1]

    def _monitor(self, watched: Socket) -> SimpleNamespace:
        monitor = SimpleNamespace(socket=Socket(), said=[])
        monitor.events = lambda batch: monitor.said
        self.monitors.append(monitor)
        return monitor

    def link(self, store: int, up: bool) -> None:
        self.monitors[store].said = [LinkEvent(up, STORES[store].rpc, "disconnected")]
        self.monitors[store].socket.waiting.append(b"")
        self.fds[store]()


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch)


def test_the_checks_go_on_when_one_fails(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next check was set after the work: one failure, and no silent store was found out any more."""

    def fail(*_: object) -> None:
        raise zmq.ZMQError(zmq.ENOTSOCK)

    monkeypatch.setattr(backends.sockets, "reconnect", fail)
    for backend in house.backends._backends.values():
        backend.broken = True
    check = house.timers.pop()
    with pytest.raises(zmq.ZMQError):
        check()
    assert house.timers == [check]


def test_all_that_a_store_said_before_it_went_is_heard(house: House) -> None:
    """Only the first batch was, and what came before a pong: writes answered in the rest were in doubt."""
    harness = house.harness
    house.link(0, True)
    house.backends._backends[STORES[0].rpc].up = True
    key = harness.keys(STORES[0].id, 1)[0]
    harness.send(put(key), client_id=0, sequence=0)
    _, item = harness.item()
    house.sockets[0].waiting.extend([messages.encode_pong(0, STORES[0].id, 1)] * BUDGET)
    house.sockets[0].waiting.append(messages.encode_batch_reply(1, [(item.token, 0, ok(1))]))
    house.link(0, False)
    assert harness.results() == [[0, 1]]
