"""The asyncio client on real sockets."""

from __future__ import annotations

import asyncio
import gc

import pytest

import kvclient
from kvclient import protocol
from tests.integration.client.scriptedrouter import DROP, DROP_AFTER, ScriptedRouter, of_kind, once
from tests.ports import free_ports


def run(router, scenario, **options):
    async def main():
        async with await kvclient.aconnect(router.url, **options) as client:
            return await asyncio.wait_for(scenario(client), 30)

    return asyncio.run(main())


def test_async_one_and_many(router):
    async def scenario(db):
        assert await db.put("k", "v") == 1
        assert await db.get("k") == "v"
        assert (await db.entry("k")).version == 1
        assert await db.exists("k") is True
        assert await db.touch("k", 5) is True
        assert await db.delete("k") is True
        assert await db.increment("n") == 1
        assert (await db.put_many((f"k{i:04}", "x") for i in range(3000))).ok == 3000
        assert await db.count("k") == 3000
        assert await db.get_many(["k0001", "no"]) == {"k0001": "x"}
        assert await db.delete_many(["k0001", "no"]) == 1
        assert [entry.key async for entry in db.scan("k", limit=2)] == [b"k0000", b"k0002"]
        assert [len(page) async for page in db.scan("k", page=1000).pages()] == [1000, 1000, 999]
        assert (await db.ping()).router == "router1"
        assert await db.admin("ready") == {"command": ["ready"]}
        assert await db.cluster_map() == {"epoch": 7}
        assert await db.namespace("k").get("0000") == "x"

    run(router, scenario, codec="str")


def test_async_calls_are_under_way_together(router):
    async def scenario(db):
        results = await asyncio.gather(*(db.increment(f"n{i % 50}") for i in range(2000)))
        assert sum(result == 40 for result in results) == 50

    run(router, scenario, timeout=100)
    assert len(of_kind(router)) == 2000, "nothing was overlooked and sent again"


@pytest.mark.parametrize("batch", [1, 512])
def test_async_pipeline(router, batch):
    async def scenario(db):
        async with db.pipeline(batch=batch, max_in_flight=16) as pipe:
            handles = [await pipe.increment("n") for _ in range(200)]
            assert await handles[3].result() == 4
        assert [await handle.result() for handle in handles] == list(range(1, 201))
        with pytest.raises(RuntimeError):  # noqa: PT012
            async with db.pipeline() as pipe:
                handle = await pipe.put("k", b"v")
                raise RuntimeError
        with pytest.raises(kvclient.ClosedError):
            await handle.result()
        assert await db.get("k") is None

    run(router, scenario)


def test_async_retry_and_exactly_once(router):
    router.script = once(DROP_AFTER)

    async def scenario(db):
        assert await db.increment("n") == 1

    run(router, scenario)
    assert router.executed == 1
    assert [request.flags for request in of_kind(router)] == [0, protocol.FLAG_RETRY]


def test_a_cancelled_call_is_forgotten_and_the_client_goes_on(router):
    router.script = once(DROP)

    async def scenario(db):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(db.put("k", b"1"), 0.05)
        assert db._connection.session.live == []
        assert await db.put("k", b"2") > 0
        assert await db.get("k") == b"2"

    run(router, scenario)


def test_async_deadlines_end_without_traffic(router):
    router.script = lambda request: DROP if request.kind == protocol.Kind.OPS else None

    async def scenario(db):
        with pytest.raises(kvclient.OutcomeUnknown):
            await db.put("k", b"1", timeout=0.3)
        with pytest.raises(kvclient.KVTimeout):
            await db.get("k", timeout=0.3)

    run(router, scenario)


def test_async_connect_error():
    async def main():
        with pytest.raises(kvclient.ConnectError) as caught:
            await kvclient.aconnect(f"kv://127.0.0.1:{free_ports(1)[0]}", connect_timeout=0.2)
        assert "refused" in str(caught.value)

    asyncio.run(main())


def test_async_failover_to_a_router_that_comes_back(router):
    async def scenario(db):
        await db.put("k", b"1")
        await asyncio.to_thread(router.stop)
        waiting = asyncio.create_task(db.get("k", timeout=20))
        await asyncio.sleep(0)
        reborn = await asyncio.to_thread(ScriptedRouter, router.store, router.port)
        try:
            assert await waiting == b"1"
        finally:
            await asyncio.to_thread(reborn.stop)

    run(router, scenario)


def test_an_async_client_belongs_to_its_loop(router):
    async def opened():
        return await kvclient.aconnect(router.url)

    with asyncio.Runner() as first:
        client = first.run(opened())

        async def elsewhere():
            with pytest.raises(kvclient.ForkedError, match="event loop"):
                await client.get("k")

        with asyncio.Runner() as second:
            second.run(elsewhere())
        first.run(client.close())


def test_closing_an_async_client_ends_its_calls(router):
    router.script = lambda request: DROP if request.kind == protocol.Kind.OPS else None

    async def main():
        client = await kvclient.aconnect(router.url)
        calls = [asyncio.create_task(client.get("k", timeout=60)) for _ in range(3)]
        await asyncio.sleep(0)
        await client.close()
        await client.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [kvclient.ClosedError] * 3

    asyncio.run(main())


def test_a_forgotten_async_client_warns(router):
    async def main():
        client = await kvclient.aconnect(router.url)
        connection = client._connection
        with pytest.warns(ResourceWarning, match="kvclient.AsyncClient"):  # noqa: PT031
            del client
            gc.collect()
        connection.close()

    asyncio.run(main())
