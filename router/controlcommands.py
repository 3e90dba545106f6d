"""The operators' command `control`: to the controller, which is the store that leads the control partition
(docs/control.md section 4, docs/protocol.md section 6).

Owns its arguments' shape, and which node is believed to be the controller. Must not know sockets, nor what a
command does. Who leads is learnt from answers alone: without a hint the nodes of the control partition are
asked in turn.
"""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

import msgpack

from kvclient.errors import InvalidRequest, Status, Unsupported
from router import errands
from router.errands import NOBODY, Asker, Errands, Respond, Then
from router.topology import Topology
from shared.controlmessages import ControlCommand, ControlRequest
from shared.messagefields import DRY_RUN

_ANSWERS_OF_A_CONTROLLER = frozenset({Status.OK, Status.CONDITION_FAILED})
_HARMLESS = frozenset(
    {ControlCommand.SHOW, ControlCommand.KNOWN, ControlCommand.REBALANCE_PLAN, ControlCommand.NODE_ADD}
)
_NOTHING: Final = msgpack.packb({})


class Command(NamedTuple):
    """A checked command; its arguments are the controller's to read."""

    command: ControlCommand
    arguments: bytes
    dry_run: bool


def decode_control(fields: list[object]) -> Command:
    """The command `control` from the fields of an ADMIN body; InvalidRequest or Unsupported says what is
    wrong with it.
    """
    match fields:
        case ["control", str(name), bytes(arguments), bool(dry_run)]:
            try:
                return Command(ControlCommand(name), arguments, dry_run)
            except ValueError:
                known = ", ".join(ControlCommand)
                raise Unsupported(f"unknown control command {name[:40]!r}; known: {known}") from None
    raise InvalidRequest(
        "control takes a command's name, its arguments (a MessagePack map, as bin), and whether it is a dry "
        "run"
    )


class ControlCommands(Errands[Command, ControlRequest]):
    """Those of one router."""

    def __init__(self, topology: Topology, respond: Respond) -> None:
        super().__init__(topology, respond)
        self._controller = NOBODY
        self._turn = 0

    def start(self, asker: Asker, what: Command, now: float) -> None:
        """Takes an operator's command."""
        command = errands.Command(f"control {what.command}", what.dry_run or what.command in _HARMLESS)
        self._start(what, command, asker.deadline, partial(self._give, asker), now)

    def show(self, deadline: float, then: Then, now: float) -> None:
        """Asks what the controller knows; `then` gets its answer, or why there is none."""
        what = Command(ControlCommand.SHOW, _NOTHING, False)
        self._start(what, errands.Command(what.command, True), deadline, then, now)

    def on_reply(self, node: int, token: int, status: int, body: bytes, now: float) -> None:
        """A store's answer; only a controller says yes or no."""
        if status in _ANSWERS_OF_A_CONTROLLER:
            self._controller = node
        super().on_reply(node, token, status, body, now)

    def _where(self, what: Command) -> tuple[int, str]:
        known, up = self._topology.map, self._topology.queues
        assert known is not None
        if self._controller in up:
            return self._controller, ""
        # Where none of the map's can be reached, the partition may have moved: any store has a newer word.
        candidates = [node for node in known.control if node in up] or list(up)
        if not candidates:
            names = ", ".join(self._topology.describe(node) for node in known.control)
            return NOBODY, f"there is no controller: none of {names} is reachable"
        self._turn += 1
        return candidates[self._turn % len(candidates)], ""

    def _redirected(self, what: Command, node: int, named: int, now: float) -> bool:
        if named != NOBODY and not self._topology.knows(named):
            self._topology.suspect(now, node)
        if self._controller in (node, NOBODY) or self._controller not in self._topology.queues:
            self._controller = named if named != node and named in self._topology.queues else NOBODY
        return self._controller != NOBODY

    def _request(self, what: Command, token: int, cluster: int, timeout_ms: int) -> ControlRequest:
        flags = DRY_RUN if what.dry_run else 0
        return ControlRequest(token, cluster, timeout_ms, flags, what.command, what.arguments)
