"""The operators' command `backup` in the router: opened by whoever leads, read from the store that has it."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import Kind
from router.admin import decode_command
from router.permissions import changes_nothing
from shared.backupmessages import BackupCommand, BackupRequest
from shared.hashing import xxh64
from tests.unit.router.conftest import PARTITIONS, THREE_STORES, Harness

CUT = (1 << 63) - 25


class Backup:
    """A cluster of three stores with three replicas; `leader` is that of partition 0."""

    def __init__(self) -> None:
        self.harness = Harness(replicas=3, stores=THREE_STORES)
        self.leader, self.second, _ = self.harness.map.replicas[0]

    def ask(self, *arguments: Any, timeout_ms: int = 5000) -> None:
        body = protocol.encode_admin("backup", *arguments)
        self.harness.send(body, kind=Kind.ADMIN, sequence=0, timeout_ms=timeout_ms)

    def sent(self) -> list[tuple[int, BackupRequest]]:
        found = list(self.harness.router.outbox_backups)
        self.harness.router.outbox_backups.clear()
        return found

    def one(self) -> tuple[int, BackupRequest]:
        (only,) = self.sent()
        return only

    def reply(self, node: int, request: BackupRequest, status: Status, **details: Any) -> None:
        body = protocol.encode_error("no", **details)
        self.harness.router.on_backup_reply(node, request.token, status, body)

    def wait(self) -> tuple[int, BackupRequest]:
        """The next attempt."""
        for _ in range(150):
            self.harness.pass_time(0.01)
            if found := self.sent():
                (only,) = found
                return only
        raise AssertionError("nothing is sent")

    def error(self) -> tuple[Status, str]:
        response = self.harness.response()
        return Status(response.status), protocol.decode_error(response.body)["message"]


@pytest.fixture
def backup() -> Backup:
    return Backup()


def test_open_goes_to_the_leader_and_its_answer_to_the_client_untouched(backup: Backup) -> None:
    backup.ask("open", 0, CUT)
    node, request = backup.one()
    cluster = xxh64(backup.harness.map.cluster_id.encode())
    assert node == backup.leader
    assert request == BackupRequest(request.token, cluster, BackupCommand.OPEN, 0, CUT, b"")
    assert backup.harness.router.busy
    body = msgpack.packb({"node": node})
    backup.harness.router.on_backup_reply(node, request.token, 0, body)
    response = backup.harness.response()
    assert (response.kind, response.status, response.body) == (Kind.ADMIN, Status.OK, body)
    assert backup.harness.idle


def test_open_follows_the_leader(backup: Backup) -> None:
    backup.ask("open", 0, CUT)
    backup.reply(*backup.one(), Status.NOT_LEADER, leader=backup.second)
    node, request = backup.one()
    assert (node, request.cut) == (backup.second, CUT)


def test_open_waits_while_a_store_is_busy_and_survives_its_death(backup: Backup) -> None:
    backup.ask("open", 0, CUT)
    backup.reply(*backup.one(), Status.BUSY, retry_after_ms=50)
    node, _ = backup.wait()
    assert node == backup.leader
    backup.harness.router.on_backend(backup.leader, False)
    node, request = backup.wait()
    assert node != backup.leader
    backup.reply(node, request, Status.CONDITION_FAILED)
    assert backup.error() == (Status.CONDITION_FAILED, "no")


def test_read_and_close_go_to_the_node_that_has_the_cut_whoever_leads(backup: Backup) -> None:
    backup.ask("read", backup.second, CUT, b"from here\x00")
    node, request = backup.one()
    assert (node, request.command, request.cut) == (backup.second, BackupCommand.READ, CUT)
    assert request.start == b"from here\x00"
    backup.reply(node, request, Status.CONDITION_FAILED)
    assert backup.error()[0] == Status.CONDITION_FAILED
    backup.ask("close", backup.second, CUT)
    node, request = backup.one()
    assert (node, request.command, request.cut) == (backup.second, BackupCommand.CLOSE, CUT)


@pytest.mark.parametrize("when", ["before", "while it is there", "while it waits"])
def test_a_read_from_a_store_that_is_gone_is_refused_at_once(backup: Backup, when: str) -> None:
    router = backup.harness.router
    if when == "before":
        router.on_backend(backup.leader, False)
    backup.ask("read", backup.leader, CUT, b"")
    if when == "while it waits":
        backup.reply(*backup.one(), Status.BUSY, retry_after_ms=1000)
    if when != "before":
        assert backup.harness.responses() == []
        router.on_backend(backup.leader, False)
    status, message = backup.error()
    assert status == Status.UNAVAILABLE
    assert f"store{backup.leader}" in message
    assert backup.harness.idle


def test_a_read_that_the_link_does_not_take_is_sent_again(backup: Backup) -> None:
    backup.ask("read", backup.leader, CUT, b"")
    node, request = backup.one()
    backup.harness.router.on_backup_unsent(node, request.token)
    again, request = backup.wait()
    assert (again, request.command) == (node, BackupCommand.READ)


def test_a_read_that_is_not_answered_ends_at_the_deadline(backup: Backup) -> None:
    backup.ask("read", backup.leader, CUT, b"", timeout_ms=1000)
    backup.one()
    backup.harness.pass_time(1.1)
    assert backup.error()[0] == Status.TIMEOUT


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("open",),
        ("open", 0),
        ("open", 0, 0),
        ("open", -1, CUT),
        ("open", PARTITIONS, CUT),
        ("open", 4096, CUT),
        ("open", True, CUT),
        ("open", 0, CUT, 1),
        ("open", 0, -CUT),
        ("read", 1, CUT),
        ("read", 0, CUT, b""),
        ("read", 0xFFFF, CUT, b""),
        ("read", 1, 0, b""),
        ("read", 1, CUT, "text"),
        ("read", 1, CUT, b"x" * 4097),
        ("read", "store1", CUT, b""),
        ("close", 1),
        ("close", 1, 0),
        ("drop", 1, CUT),
    ],
)
def test_arguments_that_are_wrong_are_refused(backup: Backup, arguments: tuple[Any, ...]) -> None:
    backup.ask(*arguments)
    assert backup.error()[0] == Status.INVALID_REQUEST
    assert backup.sent() == []


def test_a_node_that_the_cluster_never_had_is_unreachable(backup: Backup) -> None:
    backup.ask("read", 77, CUT, b"")
    assert backup.error()[0] == Status.UNAVAILABLE


@pytest.mark.parametrize("arguments", [("open", 0, CUT), ("read", 1, CUT, b""), ("close", 1, CUT)])
def test_who_may_only_look_may_not_read_everything(arguments: tuple[Any, ...]) -> None:
    assert not changes_nothing(decode_command(protocol.encode_admin("backup", *arguments)))
