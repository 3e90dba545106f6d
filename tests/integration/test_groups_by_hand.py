"""`kvcli group` on a real cluster of four stores: a partition moves from one store to another under load."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvclient.errors import Exit
from shared.hashing import partition_of
from tests.integration.localcluster import Cluster

PARTITIONS = 4
BITS = 2
PARTITION = 0
PATIENCE_S = 30.0


class Load:
    """A client that increments one counter and reads it back, in a thread, until it is stopped."""

    def __init__(self, cluster: Cluster, key: bytes) -> None:
        self.done = 0
        self.failures: list[str] = []
        self._key = key
        self._cluster = cluster
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with self._cluster.connect(codec="bytes", timeout=20.0) as client:
            while not self._stopped.is_set():
                try:
                    value = client.increment(self._key)
                    read = client.get(self._key)
                    if value != self.done + 1 or read != b"%d" % value:
                        self.failures.append(f"{self.done} increments, answered {value}, read {read!r}")
                except Exception as error:  # noqa: BLE001 - any of them is a failed request
                    self.failures.append(f"{type(error).__name__}: {error}")
                self.done += 1

    def goes_on(self) -> None:
        """Some more requests are answered."""
        enough = self.done + 20
        wait_for(lambda: self.done >= enough, "requests are answered")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("groups") / "dev")
    made.up("--stores", "4", "--routers", "2", "--partitions", str(PARTITIONS))
    made.kvcli("rebalance", "pause")  # or the controller takes back what people have begun
    yield made
    made.dev("down")


def group(cluster: Cluster, *arguments: str) -> Any:
    done = cluster.kvcli("group", *arguments, "-o", "json", "--timeout", "20s")
    return json.loads(done.stdout)


def refused(cluster: Cluster, *arguments: str) -> str:
    done = cluster.kvcli("group", *arguments, "-o", "json", check=False)
    assert (done.returncode, done.stdout) == (Exit.CONFLICT, b"")
    return done.stderr.decode()


def names(answer: Any) -> set[str]:
    return {member["name"] for member in answer["members"]}


def place(cluster: Cluster, name: str) -> dict[str, Any]:
    found = group(cluster, "show", str(PARTITION))
    (member,) = (one for one in found["members"] if one["name"] == name)
    return dict(member)


def caught_up(cluster: Cluster, name: str) -> bool:
    member = place(cluster, name)
    return member["state"] == "replicate" and member["lag"] <= 100 and (member["heard_ms"] or 0) < 1000


@pytest.mark.timeout(300)  # some forty processes are started, on a machine that may have other things to do
def test_a_partition_moves_to_another_store_under_load_without_a_failed_request(cluster: Cluster) -> None:
    keys = [
        key for key in (b"key%d" % number for number in range(20_000)) if partition_of(key, BITS) == PARTITION
    ]
    data = {key: b"value of " + key for key in keys[:2000]}
    with cluster.connect(codec="bytes") as client:
        client.put_many(data).raise_for_errors()
    before = group(cluster, "show", str(PARTITION))
    members = names(before)
    (spare,) = {"store1", "store2", "store3", "store4"} - members
    partition = str(PARTITION)
    leader = next(one["name"] for one in before["members"] if one["role"] == "leader")
    group(cluster, "transfer-leader", partition, leader)  # to stay: the map may prefer another

    with Load(cluster, keys[-1]) as load:
        load.goes_on()
        assert "is no member" in refused(cluster, "promote", partition, spare)
        assert "leads: transfer the leadership" in refused(cluster, "remove", partition, leader)
        assert group(cluster, "add-learner", partition, spare, "--dry-run")["learners"] == [spare]
        assert names(group(cluster, "show", partition)) == members

        assert group(cluster, "add-learner", partition, spare)["learners"] == [spare]
        wait_for(lambda: caught_up(cluster, spare), "the learner has the data")
        assert set(group(cluster, "promote", partition, spare)["voters"]) == members | {spare}
        load.goes_on()
        assert group(cluster, "transfer-leader", partition, spare)["leader"] == spare
        load.goes_on()
        left = (members | {spare}) - {leader}
        assert set(group(cluster, "remove", partition, leader)["voters"]) == left
        load.goes_on()
        assert names(group(cluster, "show", partition)) == left

        # The leadership stays where the operator put it, though the map prefers another; and the new member
        # comes back with what it had.
        assert place(cluster, spare)["role"] == "leader"
        cluster.dev("kill", spare)
        load.goes_on()
        cluster.dev("start", spare)
        wait_for(lambda: caught_up(cluster, spare), "the new member is back")
        load.goes_on()
        assert group(cluster, "transfer-leader", partition, spare)["leader"] == spare
        load.goes_on()
    assert load.failures == []

    cluster.ready()
    with cluster.connect(codec="bytes") as client:
        assert client.get(keys[-1]) == b"%d" % load.done
        assert client.get_many(list(data)) == data
    row = group(cluster, "ls")["groups"][PARTITION]
    assert (row["leader"], set(row["voters"])) == (spare, left)
    assert group(cluster, "ls", "--problems")["groups"] == []


def test_a_removal_that_would_cost_the_majority_is_refused_with_the_numbers(cluster: Cluster) -> None:
    found = group(cluster, "show", "1")
    leader = next(one["name"] for one in found["members"] if one["role"] == "leader")
    dead, alive = sorted(names(found) - {leader})
    cluster.dev("kill", dead)
    wait_for(lambda: "no answer" in refusal_of(cluster, alive), "the leader has missed it")
    reason = refusal_of(cluster, alive)
    assert "the group has 2 voters and needs 2 of them, but only 1 can be reached: no answer from" in reason
    assert dead in reason
    assert [row["partition"] for row in group(cluster, "ls", "--problems")["groups"]]
    cluster.dev("start", dead)
    cluster.ready()


def refusal_of(cluster: Cluster, name: str) -> str:
    done = cluster.kvcli("group", "remove", "1", name, "--dry-run", "--timeout", "20s", check=False)
    return done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("show", "4"), Exit.USAGE),
        (("show", "-1"), Exit.USAGE),
        (("show", "x"), Exit.USAGE),
        (("promote", "0"), Exit.USAGE),
        (("promote", "0", "store9"), Exit.USAGE),
        (("add-learner", "0", "9"), Exit.USAGE),
    ],
)
def test_wrong_usage_is_told(cluster: Cluster, arguments: tuple[str, ...], code: Exit) -> None:
    done = cluster.kvcli("group", *arguments, check=False)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.count(b"\n") <= 4
