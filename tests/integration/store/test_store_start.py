"""Starts that are refused, with what to do, and disks that are full."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kvclient import protocol
from kvclient.errors import Status
from shared import messages
from shared.commandline import REFUSED
from shared.messages import BatchReply
from tests.integration.store.storeprocess import (
    DEADLINE_S,
    Start,
    configuration,
    first_result,
    get,
    put,
    refused,
)
from tests.ports import free_ports
from tests.smalldisk import small_disk_at


def test_a_second_process_on_the_same_directory_is_refused(start: Start) -> None:
    store = start()
    code, line = refused(start(connect=False))
    assert code == 1
    assert f"in use by process {store.process.pid}" in line


def test_a_port_in_use_is_named(start: Start, tmp_path: Path) -> None:
    store = start()
    bus, events = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    listen = {"rpc": store.endpoint, "bus": bus, "events": events}
    other = {"listen": listen, "data": {"dir": str(tmp_path / "other")}}
    code, line = refused(start(connect=False, **other))
    assert code == 1
    assert f"cannot listen on {store.endpoint}: another process listens there" in line


def test_a_directory_of_another_cluster_is_refused(start: Start) -> None:
    assert start().stop() == 0
    code, line = refused(start("--set", "cluster.name=other", connect=False))
    assert code == REFUSED
    assert "belongs to cluster test" in line
    code, line = refused(start("--set", "cluster.partitions=32", connect=False))
    assert code == REFUSED
    assert "set cluster.partitions back to 16" in line


def test_a_directory_that_cannot_be_made_is_refused(start: Start) -> None:
    code, line = refused(start("--set", "data.dir=/proc/ringkv", connect=False))
    assert code == 1
    assert "cannot use data directory /proc/ringkv" in line


def test_a_configuration_with_typos_exits_2_and_names_all_of_them(start: Start) -> None:
    store = start("--set", "limits.in_flight_byte=64MiB", "--set", "engine.workers=many", connect=False)
    assert store.process.wait(DEADLINE_S) == 2
    text = store.log.read_text()
    assert "limits.in_flight_byte" in text
    assert "in_flight_bytes" in text
    assert "engine.workers" in text
    assert "Traceback" not in text


def test_a_bind_to_the_world_without_keys_exits_2(start: Start) -> None:
    store = start("--set", "listen.rpc=tcp://0.0.0.0:*", connect=False)
    assert store.process.wait(DEADLINE_S) == 2
    assert "insecure" in store.log.read_text()


def test_the_configuration_in_force_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "store.yaml"
    path.write_text(yaml.safe_dump(configuration(tmp_path)))
    command = [
        sys.executable,
        "-m",
        "storenode",
        "--config",
        str(path),
        "--print-config",
        "--set",
        "engine.cache=48MiB",
    ]
    environment = {**os.environ, "RINGKV_LOG__LEVEL": "warning"}
    printed = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=DEADLINE_S)
    effective = yaml.safe_load(printed.stdout)
    assert effective["engine"]["cache"] == "48MiB"
    assert effective["log"]["level"] == "warning"
    assert effective["cluster"]["name"] == "test"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    with small_disk_at(mount, 64):
        yield mount


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass


def test_a_store_whose_log_cannot_be_written_says_so_and_ends(small_disk: Path, start: Start) -> None:
    """Nobody can say what is on such a disk: nothing more is answered, and a start with room goes on."""
    sections = {"data": {"dir": str(small_disk / "data")}, "raft": {"segment": "1MiB"}}
    store = start(**sections)
    assert store.one(protocol.encode_put(b"kept", b"v"), b"kept").status == Status.OK
    fill(small_disk / "ballast")
    acknowledged = set()
    for number in range(32):  # a segment's room is reserved: it is the next one that cannot be made
        store.socket.send(messages.encode_batch(1, [put(number, b"new%d" % number, bytes(100_000))]))
        while not store.socket.poll(20) and store.process.poll() is None:
            pass
        if not store.socket.poll(0):
            break
        reply = store.receive()
        assert isinstance(reply, BatchReply)
        assert [answer.status for answer in reply.answers] == [Status.OK]
        acknowledged.add(number)
    assert store.process.wait(DEADLINE_S) == 1
    (said,) = [event for event in store.events() if event["event"] == "log_failed"]
    assert "No space left on device" in said["error"]
    assert said["directory"] == str(small_disk / "data" / "raft")
    assert "Traceback" not in store.log.read_text()

    code, line = refused(start(connect=False, data={"dir": str(small_disk / "other")}))
    assert code == 1
    assert f"{small_disk / 'other'}" in line
    assert "No space left on device" in line

    (small_disk / "ballast").unlink()
    again = start(**sections)
    read = again.batch([get(1000, b"kept"), *(get(number, b"new%d" % number) for number in acknowledged)])
    assert {first_result(answer)[0] for answer in read.values()} == {Status.OK}
    assert again.one(protocol.encode_put(b"after", b"v"), b"after").status == Status.OK
