"""The operators' command `backup`: a partition's content at one moment, from the store that has it
(docs/protocol.md section 6, docs/raft.md section 11).

Owns its arguments, and whom they go to. Must not know sockets, nor what a page holds. A cut is on one store
and nowhere else: when that store cannot be reached, whoever reads from it is told at once, since there is
nothing to wait for.
"""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

from kvclient.errors import InvalidRequest, Status
from kvclient.protocol import KEY_BYTES_MAX, encode_error
from router import errands
from router.errands import NOBODY, Asker, Errands
from shared.backupmessages import BackupCommand, BackupRequest
from shared.messagefields import UINT64_MAX

_NODE_MAX: Final = 0xFFFE
_PARTITION_MAX: Final = 4095


class Command(NamedTuple):
    """A checked command. OPEN is for the leader of `partition`, READ and CLOSE for `node`."""

    command: BackupCommand
    partition: int
    node: int
    cut: int
    start: bytes


def decode_backup(fields: list[object]) -> Command:
    """The command `backup` from the fields of an ADMIN body; InvalidRequest says what is wrong with it."""
    match fields:
        case ["backup", "open", int(partition), int(cut)] if _within(0, partition, _PARTITION_MAX):
            if _within(1, cut, UINT64_MAX):
                return Command(BackupCommand.OPEN, partition, NOBODY, cut, b"")
        case ["backup", "read", int(node), int(cut), bytes(start)] if len(start) <= KEY_BYTES_MAX:
            if _within(1, node, _NODE_MAX) and _within(1, cut, UINT64_MAX):
                return Command(BackupCommand.READ, 0, node, cut, start)
        case ["backup", "close", int(node), int(cut)]:
            if _within(1, node, _NODE_MAX) and _within(1, cut, UINT64_MAX):
                return Command(BackupCommand.CLOSE, 0, node, cut, b"")
    raise InvalidRequest(
        "backup takes open with a partition and a cut's number, read with a node's id, that number and the "
        "key to go on from, or close with a node's id and that number"
    )


def _within(least: int, value: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


class BackupCommands(Errands[Command, BackupRequest]):
    """Those of one router."""

    def start(self, asker: Asker, what: Command, now: float) -> None:
        """Takes a command. InvalidRequest: the cluster has no such partition."""
        known = self._topology.map
        assert known is not None
        if what.partition >= known.partition_count:
            raise InvalidRequest(
                f"there is no partition {what.partition}: the last one is {known.partition_count - 1}"
            )
        if what.node != NOBODY and what.node not in self._topology.queues:
            self._give(asker, Status.UNAVAILABLE, self._unreachable(what.node), now)
        else:
            command = errands.Command(f"backup {what.command}", True)
            self._start(what, command, asker.deadline, partial(self._give, asker), now)

    def on_down(self, node: int, now: float) -> None:
        """The node went down, and its cuts with it as far as anybody can tell."""
        for token in [token for token, errand in self._under_way.items() if errand.what.node == node]:
            self._under_way.pop(token).then(Status.UNAVAILABLE, self._unreachable(node), now)
        super().on_down(node, now)

    def _unreachable(self, node: int) -> bytes:
        return encode_error(f"{self._topology.describe(node)}, which has the cut, cannot be reached")

    def _where(self, what: Command) -> tuple[int, str]:
        if what.node != NOBODY:
            return what.node, ""
        node = self._topology.reachable_leader(what.partition)
        return node, "" if node else self._topology.why_unreachable(what.partition)

    def _redirected(self, what: Command, node: int, named: int, now: float) -> bool:
        return what.node == NOBODY and self._topology.not_leading(what.partition, node, named)

    def _request(self, what: Command, token: int, cluster: int, timeout_ms: int) -> BackupRequest:
        return BackupRequest(token, cluster, what.command, what.partition, what.cut, what.start)
