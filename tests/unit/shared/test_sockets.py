"""Sockets with the options of production against peers that are up, down, silent, full, hostile or gone."""

from __future__ import annotations

import errno
import socket as sockets
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from shared.config import ConfigError
from shared.reactor import Reactor
from shared.sockets import (
    FRAME_OVERHEAD,
    LinkEvent,
    LinkMonitor,
    ListenError,
    backend_dealer,
    bound_endpoint,
    bus_subscriber,
    context,
    front_router,
    monitor_events,
    reconnect,
    require_loopback,
    send_or_drop,
    store_router,
)
from tests.ports import free_ports

DEADLINE_S = 10.0
ANY_PORT = "tcp://127.0.0.1:0"

Keep = Callable[[Any], Any]


@pytest.fixture
def made() -> Iterator[Any]:
    one = context()
    yield one
    one.destroy(linger=0)


@pytest.fixture
def keep(made: Any) -> Iterator[Keep]:
    """Closes what it is given, the last first, before the context ends."""
    kept: list[Any] = []

    def remember(one: Any) -> Any:
        kept.append(one)
        return one

    yield remember
    for one in reversed(kept):
        one.close()


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.005)
    raise AssertionError(f"no {what} within {DEADLINE_S} s")


def next_event(monitor: Any) -> LinkEvent:
    assert monitor.socket.poll(int(DEADLINE_S * 1000)), "no event of the link"
    (event,) = monitor.events([monitor.socket.recv_multipart()])
    return event


def wait_up(monitor: Any) -> None:
    """Until the link is up; it may say before that it is still trying."""
    while not next_event(monitor).up:
        pass


def receive(socket: Any) -> list[bytes]:
    assert socket.poll(int(DEADLINE_S * 1000)), "no message"
    return socket.recv_multipart()


def connected(keep: Keep, made: Any, endpoint: str) -> Any:
    """A dealer whose link is up."""
    dealer, monitor = linked(keep, made, endpoint)
    wait_up(monitor)
    return dealer


def linked(keep: Keep, made: Any, endpoint: str) -> tuple[Any, Any]:
    """A dealer, up or not, and its monitor."""
    dealer = keep(backend_dealer(made, endpoint))
    return dealer, keep(monitor_events(dealer))


# -- listening


def test_a_message_goes_there_and_back(made: Any, keep: Keep) -> None:
    router = keep(front_router(made, ANY_PORT, request_bytes_max=1000, in_flight=500))
    dealer = connected(keep, made, bound_endpoint(router))
    assert send_or_drop(dealer, [b"question"]) is None
    identity, question = receive(router)
    assert question == b"question"
    assert send_or_drop(router, (identity, b"answer")) is None
    assert receive(dealer) == [b"answer"]


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://0.0.0.0:7100",
        "tcp://*:7100",
        "tcp://[::]:7100",
        "tcp://192.0.2.1:7100",
        "tcp://store1:7200",
        "tcp://eth0:1",
    ],
)
def test_anybody_elses_address_without_keys_is_refused_with_what_to_do(made: Any, endpoint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        front_router(made, endpoint, request_bytes_max=1000, in_flight=500)
    text = str(caught.value)
    assert text.startswith(f"refusing to listen on {endpoint} without keys: ")
    assert "set insecure: true" in text
    with pytest.raises(ConfigError):
        store_router(made, endpoint, batch_bytes_max=1000)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:7100",
        "tcp://127.8.9.1:0",
        "tcp://localhost:1",
        "tcp://[::1]:7100",
        "tcp://lo:1",
        "inproc://a",
        "ipc:///a",
    ],
)
def test_this_machines_own_addresses_need_no_keys(endpoint: str) -> None:
    require_loopback(endpoint, insecure=False)


def test_insecure_is_the_operators_word(made: Any, keep: Keep) -> None:
    router = keep(front_router(made, "tcp://0.0.0.0:0", request_bytes_max=1000, in_flight=500, insecure=True))
    port = bound_endpoint(router).rpartition(":")[2]
    connected(keep, made, f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:7100", "tcp://127.0.0.1", "http://127.0.0.1:7100"])
def test_what_is_no_endpoint_is_a_configuration_error(made: Any, endpoint: str) -> None:
    with pytest.raises(ConfigError, match="expected an endpoint such as"):
        front_router(made, endpoint, request_bytes_max=1000, in_flight=500)


def test_a_port_in_use_names_the_endpoint_and_what_to_do(made: Any, keep: Keep) -> None:
    endpoint = bound_endpoint(keep(store_router(made, ANY_PORT, batch_bytes_max=1000)))
    with pytest.raises(ListenError) as caught:
        store_router(made, endpoint, batch_bytes_max=1000)
    assert str(caught.value).endswith(
        f"cannot listen on {endpoint}: another process listens there already: stop it, or choose another port"
    )
    assert caught.value.errno == errno.EADDRINUSE


def test_an_address_this_machine_does_not_have_is_named(made: Any) -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:7100: this machine does not have that address"):
        front_router(made, "tcp://192.0.2.1:7100", request_bytes_max=1000, in_flight=500, insecure=True)


def test_failures_and_closed_monitors_leave_no_socket_behind(made: Any, keep: Keep) -> None:
    endpoint = bound_endpoint(keep(store_router(made, ANY_PORT, batch_bytes_max=1000)))
    other = context()
    with pytest.raises(ListenError):
        store_router(other, endpoint, batch_bytes_max=1000)
    with pytest.raises(ConfigError):
        backend_dealer(other, "tcp://*:7200")
    dealer = backend_dealer(other, endpoint)
    monitor_events(dealer).close()
    dealer.close(0)
    other.term()  # waits for ever for a socket that is still open


def test_a_bad_endpoint_to_connect_to_is_named(made: Any) -> None:
    with pytest.raises(ConfigError, match=r"port 70000 of tcp://127.0.0.1:70000 is over 65535"):
        backend_dealer(made, "tcp://127.0.0.1:70000")
    with pytest.raises(ConfigError, match=r"cannot connect to tcp://\*:7200"):
        backend_dealer(made, "tcp://*:7200")


IDENTITIES = """
import zmq
from shared.sockets import *
made = context()
router = front_router(made, "tcp://127.0.0.1:0", request_bytes_max=1000, in_flight=500)
dealer = backend_dealer(made, bound_endpoint(router))
while send_or_drop(dealer, [b"x"]): pass
print(router.recv_multipart()[0].hex())
made.destroy(0)
"""


def test_routing_ids_differ_between_processes() -> None:
    """libzmq never seeds rand(): without our seed the first peer of every process has the id 006b8b4567."""
    found = {
        subprocess.run(
            [sys.executable, "-c", IDENTITIES], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for _ in range(2)
    }
    assert len(found) == 2
    assert "006b8b4567\n" not in found


# -- limits


def test_a_frame_over_the_limit_ends_that_connection_only(made: Any, keep: Keep) -> None:
    router = keep(front_router(made, ANY_PORT, request_bytes_max=100_000, in_flight=500))
    good = connected(keep, made, bound_endpoint(router))
    bad = connected(keep, made, bound_endpoint(router))
    monitor = monitor_events(bad)
    bad.send(bytes(100_000 + FRAME_OVERHEAD))
    assert len(receive(router)[1]) == 100_000 + FRAME_OVERHEAD
    bad.send(bytes(100_000 + FRAME_OVERHEAD + 1))
    assert not next_event(monitor).up
    good.send(b"still here")
    assert receive(router)[1] == b"still here"


def test_a_silent_connection_is_closed(made: Any, keep: Keep) -> None:
    router = keep(front_router(made, ANY_PORT, request_bytes_max=1000, in_flight=500))
    host, port = bound_endpoint(router).removeprefix("tcp://").split(":")
    with sockets.create_connection((host, int(port)), timeout=DEADLINE_S) as silent:
        while silent.recv(100):  # our greeting, then the end: HANDSHAKE_IVL
            pass


def test_garbage_instead_of_a_handshake_harms_nobody(made: Any, keep: Keep) -> None:
    router = keep(front_router(made, ANY_PORT, request_bytes_max=1000, in_flight=500))
    dealer = connected(keep, made, bound_endpoint(router))
    host, port = bound_endpoint(router).removeprefix("tcp://").split(":")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 4, b"\xff" * 64):
        with sockets.create_connection((host, int(port)), timeout=DEADLINE_S) as raw:
            raw.sendall(garbage)
    dealer.send(b"still here")
    assert receive(router)[1] == b"still here"


# -- sending


def test_a_router_counts_unknown_peers_instead_of_dropping_silently(made: Any, keep: Keep) -> None:
    router = keep(front_router(made, ANY_PORT, request_bytes_max=1000, in_flight=500))
    assert send_or_drop(router, [b"nobody", b"answer"]) == "gone"


def test_an_answer_for_a_peer_that_left_is_gone(made: Any, keep: Keep) -> None:
    router = keep(front_router(made, ANY_PORT, request_bytes_max=1000, in_flight=500))
    dealer = made.socket(zmq.DEALER)
    dealer.connect(bound_endpoint(router))
    dealer.send(b"x")
    identity, _ = receive(router)
    dealer.close(0)
    assert wait_for(lambda: send_or_drop(router, [identity, b"answer"]), "drop") == "gone"


def test_a_peer_that_does_not_read_fills_up_alone(made: Any, keep: Keep) -> None:
    router = keep(front_router(made, ANY_PORT, request_bytes_max=1 << 20, in_flight=500))
    deaf = keep(made.socket(zmq.DEALER))
    deaf.set(zmq.LINGER, 0)
    deaf.set(zmq.RCVHWM, 1)
    deaf.connect(bound_endpoint(router))
    deaf.send(b"x")
    deaf_id, _ = receive(router)
    dealer = connected(keep, made, bound_endpoint(router))
    dealer.send(b"x")
    dealer_id, _ = receive(router)

    body = bytes(1 << 16)
    sent = 0
    while (drop := send_or_drop(router, [deaf_id, body])) is None:
        sent += 1
        assert sent < 100_000, "a peer that does not read is never full"
    assert drop == "full"
    assert send_or_drop(router, [dealer_id, b"answer"]) is None
    assert receive(dealer) == [b"answer"]


def test_a_dropped_message_leaves_no_frame_behind(made: Any, keep: Keep) -> None:
    """A message that is refused at its first frame must not glue its rest to the next one."""
    router = keep(front_router(made, ANY_PORT, request_bytes_max=1000, in_flight=500))
    dealer = connected(keep, made, bound_endpoint(router))
    dealer.send(b"x")
    identity, _ = receive(router)
    for _ in range(3):
        assert send_or_drop(router, [b"nobody", b"one", b"two"]) == "gone"
        assert send_or_drop(router, [identity, b"answer"]) is None
        assert receive(dealer) == [b"answer"]


def test_other_errors_are_raised(made: Any) -> None:
    dealer = made.socket(zmq.DEALER)
    dealer.close(0)
    with pytest.raises(zmq.ZMQError):
        send_or_drop(dealer, [b"x"])


# -- links


def test_nothing_is_queued_for_a_store_that_is_down_and_nothing_stale_arrives(made: Any, keep: Keep) -> None:
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    dealer, monitor = linked(keep, made, endpoint)
    assert [send_or_drop(dealer, [b"stale"]) for _ in range(10)] == ["full"] * 10
    router = keep(store_router(made, endpoint, batch_bytes_max=1000))
    wait_up(monitor)
    assert wait_for(lambda: send_or_drop(dealer, [b"fresh"]) is None, "link")
    assert receive(router)[1:] == [b"fresh"]


def test_a_link_that_breaks_and_heals_is_reported_through_the_reactor(made: Any, keep: Keep) -> None:
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    first = store_router(made, endpoint, batch_bytes_max=1000)
    routers = [first]
    _dealer, monitor = linked(keep, made, endpoint)
    events: list[LinkEvent] = []
    loop = Reactor()

    def on_events(messages: list[list[bytes]]) -> None:
        events.extend(monitor.events(messages))
        ups = [event.up for event in events]
        if ups == [True]:
            first.close(0)
        elif ups[:2] == [True, False] and len(routers) == 1:
            routers.append(keep(store_router(made, endpoint, batch_bytes_max=1000)))
        elif ups[-1]:
            loop.stop()

    loop.add_reader(monitor.socket, on_events)
    overdue = loop.call_later(DEADLINE_S, loop.stop)
    loop.run()
    overdue.cancel()
    loop.close()
    assert [event.up for event in events] == [True, *[False] * (len(events) - 2), True]
    assert [event.reason for event in events[1:3]] == ["disconnected", "connect_retried"]
    assert not events[2].final
    assert all(event.endpoint == endpoint for event in events)


NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"


def test_reconnect_revives_a_link_that_libzmq_has_given_up(made: Any, keep: Keep) -> None:
    """Trap: after a protocol error libzmq never tries again, and another connect() alone does nothing."""
    port = free_ports(1)[0]
    endpoint = f"tcp://127.0.0.1:{port}"
    with sockets.create_server(("127.0.0.1", port)) as impostor:
        dealer, monitor = linked(keep, made, endpoint)
        link, _ = impostor.accept()
        with link:
            link.sendall(NULL_GREETING + b"\x04\x26\x05READY" + b"\xff" * 32)
            event = next_event(monitor)
            assert (event.up, event.final) == (False, True)
    router = keep(store_router(made, endpoint, batch_bytes_max=1000))
    dealer.connect(endpoint)
    assert not monitor.socket.poll(300)  # given up for good, as said
    reconnect(dealer, endpoint)
    wait_up(monitor)
    dealer.send(b"x")
    assert receive(router)[1:] == [b"x"]


def test_reconnect_of_a_live_link_is_harmless(made: Any, keep: Keep) -> None:
    router = keep(store_router(made, ANY_PORT, batch_bytes_max=1000))
    dealer = connected(keep, made, bound_endpoint(router))
    reconnect(dealer, bound_endpoint(router))
    # What is sent while the old connection ends may go with it.
    assert wait_for(lambda: send_or_drop(dealer, [b"x"]) is None and router.poll(100), "link")
    assert receive(router)[1:] == [b"x"]


FLOOD_AND_VANISH = """
import zmq
from shared.sockets import bound_endpoint, context, {factory}

server = {factory}(context(), "tcp://127.0.0.1:0", {limit}=1 << 20)
peers = zmq.Context()
peer = peers.socket(zmq.DEALER)
for option, value in ((zmq.HEARTBEAT_IVL, 10), (zmq.HEARTBEAT_TIMEOUT, 60_000), (zmq.SNDHWM, 0)):
    peer.setsockopt(option, value)
monitor = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
peer.connect(bound_endpoint(server))
assert monitor.poll(10_000)
for _ in range(100):
    for _ in range(300):
        peer.send(b"flood")
    assert peer.poll(11) == 0  # time for a PING between the messages
peer.disable_monitor()
peers.destroy(linger=0)
received = 0
while server.poll(1000):
    server.recv_multipart()
    received += 1
print(received)
"""


@pytest.mark.parametrize(
    ("factory", "limit"),
    [("front_router", "in_flight=500, request_bytes_max"), ("store_router", "batch_bytes_max")],
)
def test_a_peer_that_floods_and_vanishes_does_not_abort_the_process(factory: str, limit: str) -> None:
    code = FLOOD_AND_VANISH.format(factory=factory, limit=limit)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10_000, "the flood has to be larger than any queue mark to mean something"


def test_a_black_hole_is_seen_by_the_heartbeats(made: Any, keep: Keep) -> None:
    """A peer that is there but never answers again: only heartbeats tell, after HEARTBEAT_TIMEOUT."""
    with sockets.create_server(("127.0.0.1", 0)) as hole:
        _dealer, monitor = linked(keep, made, f"tcp://127.0.0.1:{hole.getsockname()[1]}")
        link, _ = hole.accept()
        with link:
            link.sendall(NULL_GREETING + READY)
            wait_up(monitor)
            assert not next_event(monitor).up


def test_heartbeats_stay_under_the_value_that_wraps(made: Any, keep: Keep) -> None:
    """Trap: HEARTBEAT_TTL over 65535 ms wraps around and cuts every link."""
    router = keep(front_router(made, ANY_PORT, request_bytes_max=1000, in_flight=500))
    dealer, _ = linked(keep, made, bound_endpoint(router))
    for one in (router, dealer):
        assert (
            100
            <= one.get(zmq.HEARTBEAT_IVL)
            < one.get(zmq.HEARTBEAT_TIMEOUT)
            <= one.get(zmq.HEARTBEAT_TTL)
            <= 65_000
        )
    assert router.get(zmq.HANDSHAKE_IVL) <= 5000
    assert dealer.get(zmq.LINGER) == router.get(zmq.LINGER) == 0


def test_reconnect_pauses_differ_between_sockets(made: Any, keep: Keep) -> None:
    dealers = [linked(keep, made, f"tcp://127.0.0.1:{free_ports(1)[0]}")[0] for _ in range(20)]
    assert len({(one.get(zmq.RECONNECT_IVL), one.get(zmq.RECONNECT_IVL_MAX)) for one in dealers}) > 1
    assert all(50 <= one.get(zmq.RECONNECT_IVL) <= one.get(zmq.RECONNECT_IVL_MAX) <= 1000 for one in dealers)


def test_a_store_that_comes_back_is_sought_on_the_bus_often(made: Any, keep: Keep) -> None:
    """A second after its start the others still had not heard it."""
    subscriber = keep(bus_subscriber(made, []))
    assert subscriber.get(zmq.RECONNECT_IVL_MAX) <= 300


def test_a_link_is_given_up_only_when_no_retry_follows() -> None:
    def message(event: zmq.Event) -> list[bytes]:
        return [struct.pack("=HI", event, 0), b"tcp://127.0.0.1:1"]

    decode = LinkMonitor.events
    watcher = LinkMonitor.__new__(LinkMonitor)
    down, retry = message(zmq.Event.DISCONNECTED), message(zmq.Event.CONNECT_RETRIED)
    assert [event.final for event in decode(watcher, [down, retry])] == [False, False]
    assert [event.final for event in decode(watcher, [retry, down])] == [False, True]
    assert decode(watcher, [message(zmq.Event.HANDSHAKE_FAILED_AUTH)]) == [
        LinkEvent(False, "tcp://127.0.0.1:1", "handshake_failed_auth")
    ]
