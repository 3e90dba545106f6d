"""What an operator or an application gets wrong has its own clear error, seen through the whole house."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import yaml
import zmq

import kvclient
from kvclient import protocol
from kvclient.errors import Exit, Status, Unsupported
from tests.integration.localcluster import Cluster


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


def key_on(cluster: Cluster, store: str) -> str:
    """A key whose partition lives on that store."""
    with cluster.connect() as client:
        for number in range(1000):
            if client.admin("route", b"key%d" % number)["replicas"][0]["name"] == store:
                return f"key{number}"
    raise AssertionError(f"{store} owns nothing")


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that this test may break."""
    running = Cluster(tmp_path / "cluster")
    try:
        running.up("--stores", "3", "--routers", "2")
        yield running
    finally:
        running.dev("down")


def test_a_store_that_is_down_is_named(broken: Cluster) -> None:
    theirs, ours = key_on(broken, "store2"), key_on(broken, "store1")
    broken.kvcli("put", ours, "v")
    broken.dev("kill", "store2")
    code, text = fails(broken, "--timeout", "2s", "put", theirs, "v")
    assert code == Exit.UNAVAILABLE
    assert "store2" in text
    assert broken.kvcli("get", ours).stdout == b"v\n"
    status = broken.kvcli("status", check=False)
    assert status.returncode == Exit.DEGRADED
    assert b"store2" in status.stdout + status.stderr
    code, text = fails(broken, "wait", "--ready", "--timeout", "1s")
    assert "store2" in text

    broken.dev("start", "store2")
    broken.ready()
    broken.kvcli("put", theirs, "v")


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
    """A disk of 64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)).returncode:
        pytest.skip("mounting a tmpfs needs root and CAP_SYS_ADMIN")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def put_until_it_fails(client: kvclient.Client[bytes]) -> None:
    """Logs have some room left that they asked for before the disk was full."""
    for number in range(1000):
        client.put(f"more{number}", bytes(4000))


def test_a_full_disk_is_named_reads_go_on_and_room_heals_it(small_disk: Path) -> None:
    cluster = Cluster(small_disk / "cluster")
    try:
        cluster.up("--stores", "1", "--routers", "1")
        cluster.kvcli("put", "k", "v")
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        with cluster.connect() as client:
            with pytest.raises(kvclient.ReadOnly, match="No space left"):
                put_until_it_fails(client)
            assert client.get("k") == b"v"
            code, text = fails(cluster, "put", "k", "x" * 4000)
            assert code == Exit.UNAVAILABLE
            assert "store1" in text
            filler.unlink()
            client.put("k", b"room again")
            assert client.get("k") == b"room again"
    finally:
        cluster.dev("down")


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
