"""People and machines outside of the cluster: an operator who gives commands, and stores that want to join.

Owns the way of one CONTROL command: any store is asked, who is named as the leader is asked next, and who
does not answer in time is asked no more for now. A command may be carried out several times by that, as by a
person who presses the key again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from kvclient.errors import Status
from kvclient.protocol import decode_error
from shared import messages, sockets
from shared.controlmessages import ControlCommand, ControlReply, ControlRequest, encode_control_request
from tests.simulation.elastic.sockets import SocketMachine, Wires
from tests.simulation.world import World

PATIENCE_S = 1.0
PAUSE_S = 0.2

Told = Callable[[int, dict[str, Any]], object]
"""(status, answer or error body)."""


class Operator(SocketMachine):
    """Who asks; `cluster` is 0 for one that does not know it yet."""

    def __init__(self, world: World, wires: Wires, name: str, cluster: int) -> None:
        super().__init__(world, name, 0.002)
        self.wires = wires
        self.cluster = cluster
        self._token = 0
        self.begin_life()

    def ask(
        self, command: ControlCommand, arguments: dict[str, Any], seconds: float, told: Told | None = None
    ) -> None:
        """`told` follows once, with OUTCOME_UNKNOWN when nobody has answered for good in time."""
        self._token += 1
        _Question(self, self._token, command, arguments, self.world.now + seconds, told or _ignore)


class _Question:
    def __init__(
        self,
        operator: Operator,
        token: int,
        command: ControlCommand,
        arguments: dict[str, Any],
        until: float,
        told: Told,
    ) -> None:
        self._operator = operator
        self._world = operator.world
        self._command = command
        self._arguments = arguments
        self._until = until
        self._told = told
        self._attempt = 0
        request = ControlRequest(
            token, operator.cluster, 2000, 0, command, msgpack.packb(arguments, use_bin_type=True)
        )
        self._frame = encode_control_request(request)
        self._ask("")

    def _ask(self, endpoint: str) -> None:
        if self._world.now >= self._until:
            self._end(int(Status.OUTCOME_UNKNOWN), {"message": "nobody answered in time"})
            return
        self._attempt += 1
        attempt = self._attempt
        stores = self._operator.wires.stores
        known = [one for one, store in stores.items() if store.up]
        if endpoint not in stores:
            endpoint = self._world.random.choice(known or list(stores))
        socket = sockets.bulk_dealer(self._operator, endpoint)  # type: ignore[type-var]

        def next_attempt(wait: float, other: str) -> None:
            if attempt == self._attempt:
                self._attempt += 1
                self._operator.remove_reader(socket)
                socket.close(0)
                self._world.after(wait, lambda: self._ask(other))

        def heard(batch: list[list[bytes]]) -> None:
            if attempt != self._attempt:
                return
            reply = messages.decode_to_peer(batch[0][-1])
            if not isinstance(reply, ControlReply):
                next_attempt(PAUSE_S, "")
                return
            body = msgpack.unpackb(reply.body) if reply.status == Status.OK else decode_error(reply.body)
            if reply.status == Status.NOT_LEADER:
                next_attempt(PAUSE_S / 4, self._endpoint(body.get("leader")))
            elif reply.status in (Status.BUSY, Status.OUTCOME_UNKNOWN, Status.UNAVAILABLE, Status.TIMEOUT):
                next_attempt(PAUSE_S, endpoint)
            else:
                self._attempt += 1
                socket.close(0)
                self._end(reply.status, body)

        self._operator.add_reader(socket, heard)
        sockets.send_or_drop(socket, (self._frame,))
        self._world.after(PATIENCE_S, lambda: next_attempt(0.0, ""))

    def _endpoint(self, node: object) -> str:
        """Of a node that was named; "" if it was none."""
        stores = self._operator.wires.stores
        return next((endpoint for endpoint, store in stores.items() if store.node == node), "")

    def _end(self, status: int, body: dict[str, Any]) -> None:
        words = "" if status == Status.OK else f": {body.get('message')}"
        about = {key: value for key, value in self._arguments.items() if key != "incarnation"}
        self._world.note(f"{self._command} {about} -> {Status(status).name}{words}")
        self._told(status, body)


def _ignore(status: int, body: dict[str, Any]) -> None:
    """Nobody waits."""
