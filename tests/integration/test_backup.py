"""Backups of real clusters: taken under load while a store dies, interrupted, continued, and restored into a
cluster of another size; and what hostile frames do to a store that gives them away.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml
import zmq

import kvclient
from kvclient.errors import Exit, KVError, Status
from shared.backupmessages import BackupCommand, BackupReply, BackupRequest, encode_backup_request
from shared.hashing import xxh64
from shared.messages import Pong, decode_to_router, encode_ping
from storenode.cuts import CUTS_MAX
from tests.integration.localcluster import KVCLI, Cluster, resident_bytes

DEADLINE_S = 60.0
HOSTILE_FRAMES = 5000
GROWTH_BYTES_MAX = 50 << 20

# One partition has pages enough that a scan which sees later writes would betray itself.
FILLING = {b"{pair}m%05d" % number: b"%d" % number * 40 for number in range(12_000)}
ODD = {bytes([byte]) * length: bytes([255 - byte]) * length for byte in range(256) for length in (1, 4096)}
LARGE = {b"large%d" % number: random.Random(number).randbytes(1 << 20) for number in range(6)}
STABLE = FILLING | ODD | LARGE | {b"user:%05d" % number: b"name %d" % number for number in range(8000)}
TIMED = {b"timed:%d" % number: b"soon" for number in range(50)}
TTL_S = 3600.0


class Pairs:
    """Writes n to the first and then to the last key of a partition, over and over: at any one moment the
    first is equal to the last, or one ahead. Fails for as long as the cluster does, never goes on before an
    acknowledgement.
    """

    FIRST, LAST = b"{pair}a", b"{pair}z"

    def __init__(self, cluster: Cluster) -> None:
        self.acknowledged = 0
        self._cluster = cluster
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._cluster.connect(timeout=30) as client:
            number = 0
            while not self._stopped.is_set():
                number += 1
                for key in (self.FIRST, self.LAST):
                    self._put(client, key, b"%d" % number)
                self.acknowledged = number

    def _put(self, client: kvclient.Client[bytes], key: bytes, value: bytes) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                client.put(key, value)
                return
            except KVError:
                assert time.monotonic() < deadline, "the cluster does not come back"

    def __enter__(self) -> Pairs:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopped.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three stores, 16 partitions, filled."""
    running = Cluster(tmp_path_factory.mktemp("source"))
    try:
        running.up("--stores", "3", "--routers", "2", "--partitions", "16")
        with running.connect(timeout=30) as client:
            client.put_many(STABLE).raise_for_errors()
            client.put_many(TIMED, ttl=TTL_S).raise_for_errors()
        yield running
    finally:
        running.dev("down")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Cluster]:
    """One store, 4 partitions, empty."""
    running = Cluster(tmp_path / "target")
    try:
        running.up("--stores", "1", "--routers", "1", "--partitions", "4")
        yield running
    finally:
        running.dev("down")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def began(cluster: Cluster, *arguments: str, directory: Path) -> subprocess.Popen[bytes]:
    """A kvcli that goes on by itself, in `directory`."""
    return subprocess.Popen(
        [KVCLI, *arguments],
        env=cluster.environment(),
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit code and stderr."""
    try:
        _, err = process.communicate(timeout=2 * DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, err.decode()


def pulled(directory: Path) -> int:
    """Bytes in the partition files so far."""
    return sum(path.stat().st_size for path in directory.glob("partition-*"))


def restored(cluster: Cluster) -> dict[bytes, bytes]:
    with cluster.connect(timeout=30) as client:
        return {entry.key: entry.value for entry in client.scan()}


@pytest.mark.timeout(400)
def test_a_backup_under_load_survives_a_store_and_is_one_moment_of_each_partition(
    source: Cluster, target: Cluster, tmp_path: Path
) -> None:
    directory = tmp_path / "backup"
    with Pairs(source) as pairs:
        until(lambda: pairs.acknowledged > 20, "nothing is written")
        before = pairs.acknowledged
        leader = source.kvcli("route", "{pair}a", "-o", "json").stdout
        victim = next(node["name"] for node in json.loads(leader)["replicas"] if node["leader"])
        arguments = ["backup", "create", str(directory), "--bandwidth", "2MiB", "--retry-for", "60s"]
        process = began(source, *arguments, directory=tmp_path)
        until(lambda: directory.exists() and pulled(directory) > 100_000, "nothing is pulled")
        source.dev("kill", victim)
        code, err = ended(process)
        assert code == 0, err
        after = pairs.acknowledged + 1
    source.dev("start", victim)
    assert sorted(path.name for path in directory.iterdir()) == [
        "manifest.json",
        *(f"partition-{number:04}.rkb" for number in range(16)),
    ]
    manifest = json.loads((directory / "manifest.json").read_bytes())
    assert all(row["index"] > 1 and row["term"] > 0 for row in manifest["partitions"])
    source.kvcli("backup", "verify", str(directory))

    done = target.kvcli("-o", "json", "backup", "restore", str(directory), cwd=tmp_path)
    assert json.loads(done.stdout)["restored"] == sum(row["records"] for row in manifest["partitions"])
    found = restored(target)
    first, last = (int(found.pop(key)) for key in (Pairs.FIRST, Pairs.LAST))
    assert first - last in (0, 1), "two moments of one partition"
    assert before <= last
    assert first <= after
    assert found == STABLE | TIMED
    with target.connect() as client:
        ttls = [client.entry(key).ttl for key in TIMED]
        assert all(ttl is not None and TTL_S - 600 < ttl <= TTL_S for ttl in ttls)
        assert client.entry(b"user:00001").ttl is None

    refused = target.kvcli("backup", "restore", str(directory), cwd=tmp_path, check=False)
    assert refused.returncode == Exit.CONFLICT
    assert b"--force" in refused.stderr
    target.kvcli("backup", "restore", str(directory), "--force", cwd=tmp_path)
    assert restored(target) == STABLE | TIMED | {Pairs.FIRST: b"%d" % first, Pairs.LAST: b"%d" % last}


@pytest.mark.timeout(400)
def test_what_is_interrupted_is_continued_with_the_command_that_is_printed(
    source: Cluster, target: Cluster, tmp_path: Path
) -> None:
    source.ready()
    directory = tmp_path / "backup"
    create = ["backup", "create", str(directory)]
    process = began(source, *create, "--bandwidth", "2MiB", directory=tmp_path)
    until(lambda: _rows(directory) >= 2, "no partition is done")
    process.send_signal(signal.SIGTERM)
    code, err = ended(process)
    assert code == Exit.INTERRUPTED, err
    assert f"continue:  kvcli {' '.join(create)} --bandwidth 2MiB --resume" in err
    kept = _rows(directory)
    first = (directory / "partition-0000.rkb").stat().st_mtime_ns

    again = source.kvcli(*create, check=False)
    assert again.returncode == Exit.USAGE
    assert b"--resume" in again.stderr
    none = source.kvcli("backup", "restore", str(directory), check=False)
    assert none.returncode == Exit.USAGE
    done = source.kvcli("-o", "json", *create, "--resume")
    assert json.loads(done.stdout)["partitions"] == 16
    assert kept >= 2
    assert (directory / "partition-0000.rkb").stat().st_mtime_ns == first, "it was kept"
    source.kvcli("backup", "verify", str(directory))
    used = source.kvcli(*create, check=False)
    assert used.returncode == Exit.USAGE

    process = began(target, "backup", "restore", str(directory), directory=tmp_path)
    state = tmp_path / "backup.restore-state"
    until(lambda: _done(state).get("restored", 0) or process.poll() is not None, "nothing is restored")
    process.send_signal(signal.SIGKILL)
    ended(process)
    resume = ["backup", "restore", str(directory), "--resume", str(state)]
    target.kvcli(*resume, cwd=tmp_path)
    assert {key: value for key, value in restored(target).items() if b"{pair}a" != key != b"{pair}z"} == (
        STABLE | TIMED
    )
    assert b"is complete" in target.kvcli(*resume, cwd=tmp_path).stderr


def _rows(directory: Path) -> int:
    return len(_done(directory / "unfinished.json").get("rows", ()))


def _done(state: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(state.read_bytes())["done"])
    except FileNotFoundError:
        return {}


@pytest.fixture
def store(source: Cluster) -> Iterator[zmq.Socket[bytes]]:
    """A socket to store1's rpc endpoint."""
    config = yaml.safe_load((source.directory / "config" / "store1.yaml").read_text())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.connect(config["listen"]["rpc"])
    yield socket
    socket.close(linger=0)
    context.term()


def test_hostile_frames_leave_a_store_alive_correct_and_small(
    source: Cluster, store: zmq.Socket[bytes]
) -> None:
    seed = random.randrange(1 << 32)
    print(f"replay with seed {seed}")
    dice = random.Random(seed)
    source.ready()
    with source.connect() as client:
        cluster = xxh64(client.admin("status")["id"].encode())
    process_id = source.processes()["store1"]
    before = resident_bytes(process_id)

    for number in range(HOSTILE_FRAMES):
        command = dice.choice(list(BackupCommand))
        frame = encode_backup_request(
            BackupRequest(number, cluster, command, dice.randrange(20), dice.randrange(30), dice.randbytes(8))
        )
        data = bytearray(frame)
        if dice.random() < 0.8:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        if dice.random() < 0.1:
            data[dice.randrange(len(data)) :] = dice.randbytes(5)
        store.send(bytes(data))
        while number % 64 == 0 and store.poll(0):
            store.recv()
    _drained(store)

    opened = [
        _ask(store, BackupRequest(1, cluster, BackupCommand.OPEN, at % 16, 1000 + at, b""))
        for at in range(64)
    ]
    held = sum(reply.status == Status.OK for reply in opened)
    assert held <= CUTS_MAX
    assert {reply.status for reply in opened} <= {Status.OK, Status.BUSY, Status.NOT_LEADER}
    for number in (*range(30), *range(1000, 1064)):
        _ask(store, BackupRequest(1, cluster, BackupCommand.CLOSE, 0, number, b""))
    replies = (_ask(store, BackupRequest(1, cluster, BackupCommand.OPEN, at, 5000, b"")) for at in range(16))
    taken = next(reply for reply in replies if reply.status == Status.OK)
    assert msgpack.unpackb(taken.body)["node"] == 1
    read = _ask(store, BackupRequest(1, cluster, BackupCommand.READ, 0, 5000, b""))
    assert msgpack.unpackb(read.body)["count"] > 0
    _ask(store, BackupRequest(1, cluster, BackupCommand.CLOSE, 0, 5000, b""))

    assert source.processes()["store1"] == process_id
    assert Path(f"/proc/{process_id}").exists()
    until(lambda: resident_bytes(process_id) - before < GROWTH_BYTES_MAX, "store1 keeps memory")
    assert "handler_failed" not in (source.directory / "log" / "store1.log").read_text()
    with source.connect() as client:
        assert client.get(b"user:00042") == b"name 42"


def _drained(store: zmq.Socket[bytes]) -> None:
    """Until a ping is answered, behind everything that was sent before it."""
    store.send(encode_ping(424_242))
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        reply = decode_to_router(store.recv())
        if isinstance(reply, Pong) and reply.token == 424_242:
            return
    raise AssertionError("no answer to a ping")


def _ask(store: zmq.Socket[bytes], request: BackupRequest) -> BackupReply:
    """The answer to a request, whose token is drawn here; late answers to others are passed over."""
    token = random.randrange(1 << 32, 1 << 63)
    store.send(encode_backup_request(request._replace(token=token)))
    while True:
        reply = decode_to_router(store.recv())
        if isinstance(reply, BackupReply) and reply.token == token:
            return reply
