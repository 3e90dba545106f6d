"""SDK, routers, stores and engines together: what clients may rely on, on real processes."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvclient
from kvclient import Compare, ops
from kvclient.errors import KVError
from tests.integration.localcluster import Cluster


@pytest.fixture
def db(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[kvclient.Client[bytes]]:
    """A client in a namespace of its own."""
    with cluster.connect() as client:
        yield client.namespace(f"{request.node.name}/")


def test_the_house_behaves_like_a_sorted_dict(db: kvclient.Client[bytes]) -> None:
    seed = random.randrange(1 << 32)
    print(f"replay with seed {seed}")
    dice = random.Random(seed)
    model: dict[bytes, bytes] = {}
    versions: dict[bytes, int] = {}
    keys = [b"%03d" % number for number in range(150)] + [b"{tag}%02d" % number for number in range(20)]
    for step in range(1500):
        key = dice.choice(keys)
        value = b"%d:" % step + bytes(dice.randrange(50))
        match dice.randrange(8):
            case 0 | 1:
                versions[key] = db.put(key, value)
                model[key] = value
            case 2:
                assert db.delete(key) == (key in model)
                model.pop(key, None)
            case 3:
                assert db.get(key) == model.get(key)
            case 4:
                batch = {dice.choice(keys): value for _ in range(dice.randint(1, 60))}
                db.put_many(batch).raise_for_errors()
                model |= batch
                for changed in batch:
                    versions.pop(changed, None)
            case 5:
                if key in model:
                    with pytest.raises(kvclient.Conflict) as conflict:
                        db.put(key, value, if_absent=True)
                    current = conflict.value.current_version
                    assert current == versions.get(key, current) > 0
                else:
                    versions[key] = db.put(key, value, if_absent=True)
                    model[key] = value
            case 6:
                start, stop = sorted((dice.choice(keys), dice.choice(keys)))
                found = list(db.scan(start=start, stop=stop, page=dice.randint(1, 40)))
                assert [(entry.key, entry.value) for entry in found] == [
                    (name, model[name]) for name in sorted(model) if start <= name < stop
                ]
            case 7:
                reverse = [entry.key for entry in db.scan(reverse=True, limit=25, keys_only=True)]
                assert reverse == sorted(model, reverse=True)[:25]
                assert db.count() == len(model)
    assert db.get_many(keys) == model


def test_transactions_move_between_keys_without_a_loss(
    cluster: Cluster, db: kvclient.Client[bytes], request: pytest.FixtureRequest
) -> None:
    """Threads and tasks take from one account and give to another; nobody ever sees a wrong sum."""
    accounts = [b"{bank}%d" % number for number in range(4)]
    db.put_many(dict.fromkeys(accounts, b"1000")).raise_for_errors()
    sums: set[int] = set()

    def transfer(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(50):
            source, target = dice.sample(accounts, 2)
            amount = dice.randint(1, 20)
            done = db.txn(
                compare=[Compare.present(source), Compare.present(target)],
                then=[ops.increment(source, -amount), ops.increment(target, amount), *map(ops.get, accounts)],
            )
            assert done.succeeded
            sums.add(sum(map(int, done.results[2:])))

    async def also() -> None:
        async with await kvclient.aconnect(cluster.url) as client:
            view = client.namespace(f"{request.node.name}/")
            for _ in range(50):
                done = await view.txn(
                    then=[ops.increment(accounts[0], -1), ops.increment(accounts[1], 1)],
                )
                assert done.succeeded

    threads = [threading.Thread(target=transfer, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    asyncio.run(also())
    for thread in threads:
        thread.join()
    assert sums == {4000}
    assert sum(map(int, db.get_many(accounts).values())) == 4000


def test_transactions_compare_and_fail_as_a_whole(db: kvclient.Client[bytes]) -> None:
    version = db.put("{t}a", b"text")
    swap = {
        "compare": [Compare.version("{t}a", version)],
        "then": [ops.get("{t}a"), ops.put("{t}a", b"next"), ops.put("{t}b", b"", ttl=100)],
        "else_": [ops.get("{t}a")],
    }
    held, failed = db.txn(**swap), db.txn(**swap)
    assert held == (True, [b"text", db.entry("{t}a").version, db.entry("{t}b").version])
    assert held.results[1] == held.results[2] > version
    assert failed == (False, [b"next"])
    with pytest.raises(kvclient.NotAnInteger, match="op 1 of the branch"):
        db.txn(then=[ops.delete("{t}b"), ops.increment("{t}a")])
    assert db.exists("{t}b")
    with pytest.raises(kvclient.InvalidRequest, match="same hash tag"):
        db.txn(then=[ops.get("a"), ops.get("b")])


def test_versions_of_a_key_only_grow_and_guard_it(db: kvclient.Client[bytes]) -> None:
    first = db.put("k", b"1")
    second = db.put("k", b"2", if_version=first)
    assert second > first
    with pytest.raises(kvclient.Conflict) as caught:
        db.put("k", b"3", if_version=first)
    assert caught.value.current_version == second
    assert db.delete("k", if_value=b"2")
    assert db.put("k", b"again") > second


def test_a_key_with_a_ttl_goes(db: kvclient.Client[bytes]) -> None:
    db.put("short", b"x", ttl=0.2)
    db.put("long", b"x", ttl=100)
    assert 99 < (db.entry("long").ttl or 0) <= 100
    deadline = time.monotonic() + 10
    while db.exists("short"):
        assert time.monotonic() < deadline, "the TTL passed long ago"
    assert db.get("short") is None
    assert [entry.key for entry in db.scan()] == [b"long"]
    assert db.count() == 1
    assert db.put("short", b"y", if_absent=True) > 0


def test_asyncio_and_threads_at_once(cluster: Cluster, db: kvclient.Client[bytes]) -> None:
    async def many() -> list[int]:
        async with await kvclient.aconnect(cluster.url) as client:
            return await asyncio.gather(*(client.increment("at-once/counter") for _ in range(300)))

    threads = [threading.Thread(target=lambda: [db.increment("own") for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    sums = asyncio.run(many())
    for thread in threads:
        thread.join()
    assert sorted(sums) == list(range(1, 301))
    assert db.get("own") == b"400"


def test_increments_are_applied_once_while_routers_die(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.up("--stores", "3", "--routers", "2")
        stop = threading.Event()
        acknowledged = [0] * 4
        unknown = [0] * 4

        def work(number: int) -> None:
            while not stop.is_set():
                try:
                    client.increment(f"counter:{number}", timeout=20)
                    acknowledged[number] += 1
                except kvclient.OutcomeUnknown:
                    unknown[number] += 1

        with cluster.connect() as client:
            workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for worker in workers:
                worker.start()
            for name in ("router1", "router2", "router1"):
                before = sum(acknowledged)
                deadline = time.monotonic() + 60
                while sum(acknowledged) < before + 200:
                    assert time.monotonic() < deadline, "nothing gets through"
                    time.sleep(0.005)
                cluster.dev("kill", name)
                cluster.dev("start", name)
            stop.set()
            for worker in workers:
                worker.join()
            counters = [int(client.get(f"counter:{number}") or 0) for number in range(4)]
        assert sum(unknown) == 0, "the stores lived on, so every outcome could be told"
        assert counters == acknowledged
    finally:
        cluster.dev("down")


def test_acknowledged_writes_survive_kill_9_of_everything(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.up("--stores", "3", "--routers", "1")
        acknowledged: dict[bytes, bytes] = {}
        with cluster.connect(timeout=2) as client:

            def write() -> None:
                try:
                    for number in range(1_000_000):
                        batch = {b"%07d:%d" % (number, index): b"%d" % number for index in range(20)}
                        if client.put_many(batch).errors:
                            return
                        acknowledged.update(batch)
                except KVError:
                    return

            writer = threading.Thread(target=write)
            writer.start()
            deadline = time.monotonic() + 60
            while len(acknowledged) < 3000:
                assert writer.is_alive(), "a write failed before the kill"
                assert time.monotonic() < deadline
                time.sleep(0.005)
            cluster.dev("kill", "all")
            writer.join()
        cluster.dev("start", "all")
        cluster.ready()
        with cluster.connect() as client:
            assert client.get_many(acknowledged) == acknowledged
    finally:
        cluster.dev("down")
