"""The operators' command `group`: to the store that leads a partition (docs/protocol.md section 6).

Owns its arguments, and who leads. Must not know sockets, nor what a command does.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from kvclient.errors import InvalidRequest
from router import errands
from router.errands import NOBODY, Asker, Errands
from shared.groupmessages import GroupCommand, GroupRequest
from shared.messagefields import DRY_RUN


class Command(NamedTuple):
    """A checked command. `node` is an id, or a name; 0 = it is about nobody."""

    command: GroupCommand
    partition: int
    node: int | str
    dry_run: bool


class _Order(NamedTuple):
    """A command whose node is known."""

    command: GroupCommand
    partition: int
    node: int
    dry_run: bool


def decode_group(fields: list[object]) -> Command:
    """The command `group` from the fields of an ADMIN body; InvalidRequest says what is wrong with it."""
    match fields:
        case ["group", "show" | "checksum" as verb, int(partition)] if _is_partition(partition):
            return Command(GroupCommand(verb), partition, NOBODY, False)
        case ["group", "transfer-leader" | "add-learner" | "promote" | "remove" as verb, *rest]:
            match rest:
                case [int(partition), (int() | str()) as node, bool(dry_run)] if _is_partition(partition):
                    if isinstance(node, str) or 0 < node <= 0xFFFE:
                        return Command(GroupCommand(verb), partition, node, dry_run)
            raise InvalidRequest(
                f"group {verb} takes a partition, a node's id or name, and whether it is a dry run"
            )
    raise InvalidRequest(
        "group takes show or checksum with a partition, or transfer-leader, add-learner, promote or remove "
        "with a partition, a node and whether it is a dry run"
    )


def _is_partition(value: int) -> bool:
    return type(value) is int and 0 <= value <= 0xFFFF


class GroupCommands(Errands[_Order, GroupRequest]):
    """Those of one router."""

    def start(self, asker: Asker, what: Command, now: float) -> None:
        """Takes a command. InvalidRequest: the cluster has no such partition or node."""
        known = self._topology.map
        assert known is not None
        if what.partition >= known.partition_count:
            raise InvalidRequest(
                f"there is no partition {what.partition}: the last one is {known.partition_count - 1}"
            )
        order = _Order(what.command, what.partition, self._node_id(what.node), what.dry_run)
        harmless = what.command in (GroupCommand.SHOW, GroupCommand.CHECKSUM) or what.dry_run
        command = errands.Command(what.command, harmless)
        self._start(order, command, asker.deadline, partial(self._give, asker), now)

    def _node_id(self, node: int | str) -> int:
        known = self._topology.map
        assert known is not None
        if node == NOBODY:
            return NOBODY
        for one in known.nodes:
            if node in (one.id, one.name):
                return one.id
        names = ", ".join(f"{one.name} ({one.id})" for one in known.nodes[:16])
        raise InvalidRequest(f"there is no node {node!r:.80} in this cluster; known: {names}")

    def _where(self, what: _Order) -> tuple[int, str]:
        node = self._topology.reachable_leader(what.partition)
        return node, "" if node else self._topology.why_unreachable(what.partition)

    def _redirected(self, what: _Order, node: int, named: int, now: float) -> bool:
        return self._topology.not_leading(what.partition, node, named)

    def _request(self, what: _Order, token: int, cluster: int, timeout_ms: int) -> GroupRequest:
        flags = DRY_RUN if what.dry_run else 0
        return GroupRequest(token, cluster, what.partition, timeout_ms, flags, what.command, what.node, 0)
