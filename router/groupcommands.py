"""The operators' command `group`: to the store that leads a partition, until that store or its successor has
answered (docs/protocol.md section 6).

Owns the commands under way and their attempts. Must not know sockets, nor what a command does. `now` is
handed in, monotonic seconds.

Invariants: a command is with one store, or waits for its next attempt. It is answered once. It may be sent
again after any loss: stores answer OK to what is the case already.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final, NamedTuple

from kvclient.errors import InvalidRequest, ProtocolError, Status
from kvclient.protocol import Kind, decode_error, encode_error
from router.topology import Topology
from shared.groupmessages import GroupCommand, GroupRequest
from shared.hashing import xxh64
from shared.messagefields import DRY_RUN, UINT32_MAX

COMMANDS_MAX: Final = 64  # operators, not traffic
HOPS_MAX: Final = 2  # attempts that go at once where a refusal points to: see router/retries.py
PAUSE_SECONDS: Final = 0.1  # an election takes a few of them
# The store gives up this much before its router does, so that its reason arrives: an eighth of what is left.
MARGIN_MS: Final = 50

_PASSING = frozenset({Status.BUSY, Status.NOT_LEADER, Status.WRONG_REPLICA})
_NOBODY = 0

Respond = Callable[[bytes, int, int, int, bytes], None]  # client, kind, request id, status, body


class Command(NamedTuple):
    """A checked command. `node` is an id, or a name; 0 = it is about nobody."""

    command: GroupCommand
    partition: int
    node: int | str
    dry_run: bool


class Asker(NamedTuple):
    """Who gave the command, and until when the answer is of use."""

    client: bytes
    request_id: int
    deadline: float


class _UnderWay:
    __slots__ = ("asker", "at", "due", "hops", "node", "refusal", "sent", "what")

    def __init__(self, asker: Asker, what: Command, node: int) -> None:
        self.asker = asker
        self.what = what
        self.node = node
        self.at = _NOBODY  # the store that has it
        self.due = inf  # the next attempt, while no store has it
        self.hops = 0
        self.sent = False  # an attempt was lost with its store, and may have been carried out
        self.refusal = ""


def decode_group(fields: list[object]) -> Command:
    """The command `group` from the fields of an ADMIN body; InvalidRequest says what is wrong with it."""
    match fields:
        case ["group", "show", int(partition)] if _is_partition(partition):
            return Command(GroupCommand.SHOW, partition, _NOBODY, False)
        case ["group", "transfer-leader" | "add-learner" | "promote" | "remove" as verb, *rest]:
            match rest:
                case [int(partition), (int() | str()) as node, bool(dry_run)] if _is_partition(partition):
                    if isinstance(node, str) or 0 < node <= 0xFFFE:
                        return Command(GroupCommand(verb), partition, node, dry_run)
            raise InvalidRequest(
                f"group {verb} takes a partition, a node's id or name, and whether it is a dry run"
            )
    raise InvalidRequest(
        "group takes show with a partition, or transfer-leader, add-learner, promote or remove with a "
        "partition, a node and whether it is a dry run"
    )


def _is_partition(value: int) -> bool:
    return type(value) is int and 0 <= value <= 0xFFFF


class GroupCommands:
    """Those of one router. `outbox`: (node id, request) to send."""

    def __init__(self, topology: Topology, respond: Respond) -> None:
        self.outbox: list[tuple[int, GroupRequest]] = []
        self._topology = topology
        self._respond = respond
        self._under_way: dict[int, _UnderWay] = {}
        self._token = 0

    @property
    def pending(self) -> bool:
        """Whether any command has not been answered yet."""
        return bool(self._under_way)

    def start(self, asker: Asker, what: Command, now: float) -> None:
        """Takes a command. InvalidRequest: the cluster has no such partition or node."""
        known = self._topology.map
        assert known is not None
        if what.partition >= known.partition_count:
            raise InvalidRequest(
                f"there is no partition {what.partition}: the last one is {known.partition_count - 1}"
            )
        node = self._node_id(what.node)
        if len(self._under_way) >= COMMANDS_MAX:
            body = encode_error("too many group commands at once", retry_after_ms=100)
            self._respond(asker.client, Kind.ADMIN, asker.request_id, Status.BUSY, body)
            return
        self._place(_UnderWay(asker, what, node), now)

    def _node_id(self, node: int | str) -> int:
        known = self._topology.map
        assert known is not None
        if node == _NOBODY:
            return _NOBODY
        for one in known.nodes:
            if node in (one.id, one.name):
                return one.id
        names = ", ".join(f"{one.name} ({one.id})" for one in known.nodes[:16])
        raise InvalidRequest(f"there is no node {node!r:.80} in this cluster; known: {names}")

    def on_reply(self, node: int, token: int, status: int, body: bytes, now: float) -> None:
        """A store's answer; that to an attempt that was given up is ignored."""
        command = self._under_way.get(token)
        if command is None or command.at != node:
            return
        del self._under_way[token]
        if status not in _PASSING:
            self._give(command, status, body)
            return
        message, leader, retry_after_ms = _read(body)
        command.refusal = message
        pause = PAUSE_SECONDS
        if status == Status.BUSY:
            pause = retry_after_ms / 1000 if retry_after_ms else pause
        elif self._topology.not_leading(command.what.partition, node, leader) and command.hops < HOPS_MAX:
            command.hops += 1
            self._place(command, now)
            return
        self._later(command, now + pause)

    def on_unsent(self, node: int, token: int, now: float) -> None:
        """The socket of the node did not take it."""
        command = self._under_way.get(token)
        if command is not None and command.at == node:
            del self._under_way[token]
            command.refusal = f"the link to {self._topology.describe(node)} takes nothing"
            self._later(command, now + PAUSE_SECONDS)

    def on_down(self, node: int, now: float) -> None:
        """The node went down with what it had: what becomes of that, its successor knows."""
        for token in [token for token, command in self._under_way.items() if command.at == node]:
            command = self._under_way.pop(token)
            command.sent = True
            command.refusal = f"{self._topology.describe(node)} went away"
            self._later(command, now + PAUSE_SECONDS)

    def on_tick(self, now: float) -> None:
        """What is late ends; what is due is sent once more."""
        for token, command in list(self._under_way.items()):
            if command.asker.deadline <= now:
                del self._under_way[token]
                self._give_up(command)
            elif command.due <= now:
                del self._under_way[token]
                self._place(command, now)

    def next_due(self) -> float:
        """When `on_tick` has to be called next."""
        return min(
            (min(command.due, command.asker.deadline) for command in self._under_way.values()), default=inf
        )

    # -- attempts

    def _place(self, command: _UnderWay, now: float) -> None:
        known, what = self._topology.map, command.what
        assert known is not None
        node = self._topology.reachable_leader(what.partition)
        if node == _NOBODY:
            command.refusal = self._topology.why_unreachable(what.partition)
            self._later(command, now + PAUSE_SECONDS)
            return
        left_ms = max(1, int((command.asker.deadline - now) * 1000))
        timeout_ms = min(UINT32_MAX, left_ms - min(left_ms // 8, MARGIN_MS))
        command.at, command.due = node, inf
        self._token += 1
        self._under_way[self._token] = command
        flags = DRY_RUN if what.dry_run else 0
        cluster = xxh64(known.cluster_id.encode())
        request = GroupRequest(
            self._token, cluster, what.partition, timeout_ms, flags, what.command, command.node, 0
        )
        self.outbox.append((node, request))

    def _later(self, command: _UnderWay, due: float) -> None:
        command.at, command.due, command.hops = _NOBODY, due, 0
        self._token += 1
        self._under_way[self._token] = command

    # -- the end

    def _give(self, command: _UnderWay, status: int, body: bytes) -> None:
        asker = command.asker
        self._respond(asker.client, Kind.ADMIN, asker.request_id, status, body)

    def _give_up(self, command: _UnderWay) -> None:
        what = command.what
        harmless = what.command == GroupCommand.SHOW or what.dry_run
        if (command.at != _NOBODY or command.sent) and not harmless:
            why = command.refusal if command.sent else f"{self._topology.describe(command.at)} did not answer"
            text = f"{why}; {what.command} may have been done, or may go on"
            self._give(command, Status.OUTCOME_UNKNOWN, encode_error(text))
        elif command.at != _NOBODY:
            text = f"{self._topology.describe(command.at)} did not answer within the deadline"
            self._give(command, Status.TIMEOUT, encode_error(text))
        else:
            self._give(command, Status.UNAVAILABLE, encode_error(f"{command.refusal}; nothing was changed"))


def _read(body: bytes) -> tuple[str, int, int]:
    """What a refusal says: message, leader, pause in milliseconds; 0 if it does not say."""
    try:
        details = decode_error(body)
    except ProtocolError:
        return "refused by the store, which gave no reason", _NOBODY, 0
    return details["message"], details.get("leader", _NOBODY), max(0, details.get("retry_after_ms", 0))
