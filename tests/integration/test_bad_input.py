"""What an operator or an application gets wrong has its own clear error, seen through the whole house."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
import yaml
import zmq

import kvclient
from kvclient import protocol
from kvclient.errors import Exit, Status, Unsupported
from tests.integration.localcluster import Cluster
from tests.smalldisk import small_disk_at


@pytest.fixture(scope="module")
def front(cluster: Cluster) -> Iterator[zmq.Socket[bytes]]:
    """A bare socket to router1."""
    config = yaml.safe_load((cluster.directory / "config" / "router1.yaml").read_text())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.connect(config["router"]["listen"])
    yield socket
    socket.close(linger=0)
    context.term()


def fails(cluster: Cluster, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a kvcli call that must fail, and leave stdout empty."""
    done = cluster.kvcli(*arguments, check=False)
    assert done.returncode != 0
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stderr.decode()


def test_an_unknown_command_is_told_what_it_may_have_meant(cluster: Cluster) -> None:
    code, text = fails(cluster, "putt", "a", "b")
    assert code == Exit.USAGE
    assert "'putt'" in text
    assert "'put'" in text


def test_an_unknown_admin_command_is_unsupported(cluster: Cluster) -> None:
    with cluster.connect() as client, pytest.raises(Unsupported, match="frobnicate"):
        client.admin("frobnicate")


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (("put", "k" * 4097, "v"), ("4097", "4096")),
        (("put", "", "v"), ("at least one byte",)),
        (("get", "k" * 5000), ("5000", "4096")),
    ],
)
def test_limits_of_keys(cluster: Cluster, arguments: tuple[str, ...], numbers: tuple[str, ...]) -> None:
    code, text = fails(cluster, *arguments)
    assert code == Exit.USAGE
    assert all(number in text.replace(",", "") for number in numbers), text


def test_limits_of_values(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(bytes((1 << 20) + 1))
    code, text = fails(cluster, "put", "big", f"@{tmp_path / 'value'}")
    assert code == Exit.USAGE
    assert "1048577" in text.replace(",", "")
    assert "1048576" in text.replace(",", "")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({0: 2}, Status.VERSION_MISMATCH, ("2", "1")),
        ({1: 99}, Status.UNSUPPORTED, ("99",)),
        ({9: "text"}, Status.INVALID_REQUEST, ("body", "bin")),
        ({3: -1}, Status.INVALID_REQUEST, ("timeout_ms",)),
        ({9: b"\x93\x02\xc4\x01k\xc4\x05cut"}, Status.INVALID_REQUEST, ()),
        ({9: b"\x92\x01\xa3key"}, Status.INVALID_REQUEST, ("key",)),
        ({9: b"\x92\x63\xc4\x01k"}, Status.UNSUPPORTED, ("99",)),
        ({9: b"\x91\x01" * 20_000}, Status.INVALID_REQUEST, ()),
        ({9: protocol.encode_get(b"k") * 10_001}, Status.TOO_MANY_OPS, ("10001", "10000")),
    ],
)
def test_malformed_requests_are_answered_with_what_is_wrong(
    front: zmq.Socket[bytes], change: dict[int, object], status: Status, words: tuple[str, ...]
) -> None:
    fields: list[object] = [1, 1, 5151, 5000, 0, 0, 0, 0, 0, protocol.encode_get(b"k")]
    for position, value in change.items():
        fields[position] = value
    front.send(msgpack.packb(fields))
    answer = protocol.decode_response(front.recv())
    assert answer.request_id == 5151
    assert Status(answer.status) is status
    text = protocol.decode_error(answer.body)["message"].replace(",", "")
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", b"hello", b"\x9a\x01", os.urandom(300), b"\xdd\xff\xff\xff\xff"]
)
def test_bytes_that_are_no_request_are_answered(front: zmq.Socket[bytes], frame: bytes) -> None:
    front.send(frame)
    answer = protocol.decode_response(front.recv())
    assert answer.status == Status.INVALID_REQUEST
    assert protocol.decode_error(answer.body)["message"]


def test_wrong_types_in_the_sdk(cluster: Cluster) -> None:
    with cluster.connect() as client:
        with pytest.raises(TypeError, match="int"):
            client.put(7, b"v")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="bytes"):
            client.put("k", "text")  # type: ignore[arg-type]
        client.put("word", b"abc")
        with pytest.raises(kvclient.NotAnInteger):
            client.increment("word")


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that this test may break."""
    running = Cluster(tmp_path / "cluster")
    try:
        running.up("--stores", "3", "--routers", "2")
        yield running
    finally:
        running.dev("down")


def test_a_store_that_is_down_is_named_and_costs_nothing(broken: Cluster) -> None:
    """Of two that are down, the partitions cannot be served: a majority is missing."""
    keys = [f"key{number}" for number in range(64)]
    broken.kvcli("mput", *[text for key in keys for text in (key, "v")])
    broken.dev("kill", "store2")
    broken.kvcli("mput", *[text for key in keys for text in (key, "w")])
    assert broken.kvcli("mget", *keys).stdout.count(b"\tw\n") == len(keys)
    status = broken.kvcli("status", check=False)
    assert status.returncode == Exit.DEGRADED
    assert b"store2 is down" in status.stderr
    assert status.stderr.count(b"store2 is") == 1, "told once, not again with its partitions"
    broken.ready()

    broken.dev("kill", "store3")
    code, text = fails(broken, "--timeout", "2s", "put", "key0", "x")
    assert code in (Exit.UNAVAILABLE, Exit.OUTCOME_UNKNOWN)
    code, text = fails(broken, "wait", "--ready", "--timeout", "1s")
    assert code == Exit.UNAVAILABLE
    assert "no leader" in text or "does not answer" in text or "not reachable" in text
    status = broken.kvcli("status", check=False)
    assert status.returncode == Exit.DEGRADED
    assert b"store2 is down" in status.stderr
    assert b"store3 is down" in status.stderr
    assert b"missing" not in status.stderr

    broken.dev("start", "stores")
    broken.kvcli("wait", "--healthy", "--timeout", "60s")
    broken.kvcli("put", "key0", "x")
    assert broken.kvcli("status").stderr == b""


def test_a_router_that_is_down_is_passed_by_and_all_down_is_a_connect_error(broken: Cluster) -> None:
    broken.kvcli("put", "k", "v")
    broken.dev("kill", "router1")
    assert broken.kvcli("get", "k").stdout == b"v\n"
    broken.dev("kill", "router2")
    code, text = fails(broken, "--timeout", "2s", "get", "k")
    assert code == Exit.CONNECT
    assert all(part in text for part in broken.url.removeprefix("kv://").split(","))
    broken.dev("start", "routers")
    broken.ready()
    assert broken.kvcli("get", "k").stdout == b"v\n"


def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 192 MiB: the log reserves room for a segment of 64."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk_at(disk, 192):
        yield disk


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_disk_ends_its_store_and_the_others_serve_on(small_disk: Path) -> None:
    """What no disk has room for, two others have: nothing fails, and with room again it catches up."""
    running = Cluster(small_disk.parent / "cluster")
    data = running.directory / "data" / "store2"
    data.parent.mkdir(parents=True)
    data.symlink_to(small_disk)
    try:
        running.up("--stores", "3", "--routers", "2")
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        with running.connect() as client:
            number = 0
            while "store2" in running.processes() and alive(running.processes()["store2"]):
                assert number < 1000, "the log of store2 has still room"
                client.put(f"more{number}", bytes(1_000_000))
                number += 1
            log = (running.directory / "log" / "store2.log").read_text()
            (said,) = [line for line in log.splitlines() if '"log_failed"' in line]
            assert "No space left on device" in said
            assert str(data / "raft") in said
            client.put("k", b"without it")
            status = running.kvcli("status", check=False)
            assert status.returncode == Exit.DEGRADED
            assert b"store2 is down" in status.stderr

            filler.unlink()
            running.dev("start", "store2")
            client.put("k", b"room again")
            wait_until(lambda: running.kvcli("status", check=False).returncode == Exit.OK)
            assert client.get(f"more{number - 1}") == bytes(1_000_000)
    finally:
        running.dev("down")


def alive(process_id: int) -> bool:
    return Path(f"/proc/{process_id}").exists()


def test_a_read_only_file_system_stops_a_store_from_starting_with_its_name(small_disk: Path) -> None:
    cluster = Cluster(small_disk / "cluster")
    try:
        cluster.up("--stores", "1", "--routers", "1")
        cluster.dev("down")
        config = cluster.directory / "config" / "store1.yaml"
        assert run("mount", "-o", "remount,ro", str(small_disk)).returncode == 0
        done = run(sys.executable, "-m", "storenode", "--config", str(config))
        assert done.returncode == Exit.ERROR
        assert b"Read-only file system" in done.stderr
        assert b"Traceback" not in done.stderr
    finally:
        run("mount", "-o", "remount,rw", str(small_disk))
        cluster.dev("down")
