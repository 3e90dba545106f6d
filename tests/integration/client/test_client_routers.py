"""`kv://a,b,c`: clients find a router that works among those that do not, on real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

import kvclient
from tests.integration.client.scriptedrouter import ScriptedRouter
from tests.ports import free_ports

# The order is the client's to choose: in as many runs each of three has been first.
RUNS = 8


@pytest.fixture
def mute():
    """Takes connections and says nothing: a host that hangs."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_routers_that_are_dead_mute_or_unknown_do_not_hide_one_that_works(router, mute):
    others = f"127.0.0.1:{free_ports(1)[0]},127.0.0.1:{mute},no-such-host.invalid:7100"
    for _ in range(RUNS):
        with kvclient.connect(f"kv://{others},127.0.0.1:{router.port}") as client:
            client.put("k", b"1")
            assert client.get("k") == b"1"


def test_a_router_that_comes_later_is_found(router):
    """It is not there when the client is opened, and the only one when the first has gone."""
    late = free_ports(1)[0]
    with kvclient.connect(f"kv://127.0.0.1:{late},127.0.0.1:{router.port}") as client:
        client.put("k", b"1")
        newcomer = ScriptedRouter(store=router.store, port=late)
        try:
            router.stop()
            assert client.get("k", timeout=20) == b"1"
        finally:
            newcomer.stop()


@pytest.fixture
def several(monkeypatch):
    """The name localhost, with a second address; nobody listens at the first, which libzmq knows."""
    second = ScriptedRouter(host="127.0.0.2")
    look_up = socket.getaddrinfo

    def two(host, port, *rest):
        found = look_up("127.0.0.1", port, *rest)
        return (
            [*found, *look_up("127.0.0.2", port, *rest)]
            if host == "localhost"
            else look_up(host, port, *rest)
        )

    monkeypatch.setattr(socket, "getaddrinfo", two)
    yield second
    second.stop()


def test_all_addresses_of_a_name_are_tried(several):
    with kvclient.connect(f"kv://localhost:{several.port}") as client:
        client.put("k", b"1")
        assert client.get("k") == b"1"


def test_async_all_addresses_of_a_name_are_tried(several):
    async def use():
        async with await kvclient.aconnect(f"kv://localhost:{several.port}") as client:
            await client.put("k", b"1")
            return await client.get("k")

    assert asyncio.run(use()) == b"1"
