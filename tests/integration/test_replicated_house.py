"""What three replicas are for, on real processes: stores that are stopped, killed, or all gone at once, under
clients that never stop writing."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvclient
from kvclient.errors import Exit
from tests.integration.localcluster import KVCLI, Cluster

STORES = ("store1", "store2", "store3")
WRITERS = 3
BATCH = 20
WRITES_BETWEEN = 300
"""Acknowledged before the next blow: every partition has been written to."""
CALL_S = 30.0
"""Of one call, with all its tries: on a busy machine an election takes its time."""
DEADLINE_S = 60.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path / "cluster")
    try:
        running.up("--stores", "3", "--routers", "2")
        yield running
    finally:
        running.dev("down")


class Writers:
    """Threads that increment counters in every partition, in pipelines. `counts`: how often, each of them."""

    def __init__(self, client: kvclient.Client[bytes]) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self.acknowledged = 0
        self._client = client
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _write(self, number: int) -> None:
        keys = [f"{number}:{index}" for index in range(BATCH)]
        while not self._stopping.is_set():
            try:
                with self._client.pipeline() as pipeline:
                    answers = [pipeline.increment(key) for key in keys]
                for key, answer in zip(keys, answers, strict=True):
                    self.counts[key] += 1
                    assert answer.result() == self.counts[key], f"{key} was incremented twice"
            except Exception as error:  # noqa: BLE001 - any failure is one too many
                self.failures.append(error)
                return
            with self._lock:
                self.acknowledged += len(keys)

    def go_on(self) -> None:
        """Until so many more writes are acknowledged."""
        wanted = self.acknowledged + WRITES_BETWEEN
        wait_until(lambda: bool(self.failures) or self.acknowledged >= wanted, "writes go on")
        assert not self.failures, self.failures

    def stop(self) -> dict[str, int]:
        """What each counter must be."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert not self.failures, self.failures
        return self.counts


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.01)


def whole(cluster: Cluster) -> None:
    """Until every store answers and every replica has what its leader has committed."""
    wait_until(lambda: cluster.kvcli("status", check=False).returncode == Exit.OK, "a healthy cluster")


def counters(client: kvclient.Client[bytes], keys: dict[str, int]) -> dict[str, int]:
    return {key: int(client.get(key) or 0) for key in keys}


def leader_of(client: kvclient.Client[bytes], key: str) -> str:
    found: list[str] = []

    def known() -> bool:
        replicas = client.admin("route", key.encode())["replicas"]
        found[:] = [str(replica["name"]) for replica in replicas if replica["leader"]]
        return bool(found)

    wait_until(known, f"a leader of {key}")
    return found[0]


def test_a_rolling_restart_under_writes_loses_no_request(house: Cluster) -> None:
    with house.connect(timeout=CALL_S) as client:
        writers = Writers(client)
        try:
            for store in STORES:
                writers.go_on()
                house.dev("stop", store)
                writers.go_on()
                house.dev("start", store)
                whole(house)
            writers.go_on()
        finally:
            expected = writers.stop()
        assert counters(client, expected) == expected


def test_kill_9_of_leaders_under_writes_loses_no_request(house: Cluster) -> None:
    """A put waits for the election, no longer, and no caller sees anything of it."""
    with house.connect(timeout=CALL_S) as client:
        writers = Writers(client)
        try:
            for blow in range(4):
                writers.go_on()
                victim = leader_of(client, f"0:{blow}")
                house.dev("kill", victim)
                writers.go_on()
                house.dev("start", victim)
                whole(house)
            writers.go_on()
        finally:
            expected = writers.stop()
        assert counters(client, expected) == expected


def test_what_was_acknowledged_survives_any_one_store_for_good(house: Cluster) -> None:
    """The disk of one store is lost with it: two others have everything."""
    values = {b"key%d" % number: b"%d" % number for number in range(500)}
    with house.connect(timeout=CALL_S) as client:
        client.put_many(values).raise_for_errors()
        house.dev("kill", "store1")
        assert client.get_many(values) == values
        values |= {b"more%d" % number: b"%d" % number for number in range(500)}
        client.put_many(values).raise_for_errors()
        assert client.get_many(values) == values
    said = house.kvcli("status", check=False)
    assert said.returncode == Exit.DEGRADED
    assert "store1 is down" in said.stderr.decode()


def test_an_import_goes_on_after_kill_9_of_all_stores(house: Cluster, tmp_path: Path) -> None:
    """The walkthrough: import, kill everything, start, the same import again; the export is the input."""
    source = tmp_path / "words.txt"
    source.write_bytes(b"".join(b"word %07d\n" % number for number in range(200_000)))
    state = tmp_path / "state"
    command = ["import", str(source), "--format", "lines", "--resume", str(state), "--retry-for", "1s"]
    with subprocess.Popen(
        [KVCLI, *command], env=house.environment(), cwd=tmp_path, stderr=subprocess.DEVNULL
    ) as running:
        wait_until(lambda: acknowledged_bytes(state) > 100_000, "some of it is acknowledged")
        house.dev("kill", "stores")
        assert running.wait(110) != 0, "it was to be interrupted: make the file larger"
    house.dev("start", "stores")
    house.ready()
    house.kvcli(*command, cwd=tmp_path)
    exported = tmp_path / "exported.txt"
    house.kvcli("export", "--file", str(exported), "--format", "lines", cwd=tmp_path)
    assert exported.read_bytes() == source.read_bytes()


def acknowledged_bytes(state: Path) -> int:
    try:
        recorded = json.loads(state.read_text())
    except (FileNotFoundError, ValueError):
        return 0
    return int(recorded["done"]["offset"])
