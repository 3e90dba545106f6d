"""The core of the router: requests in, batches out, answers back. Sans-I/O: no socket, no thread, no timer;
time and chance are handed in.

The caller's duties: hand in what arrives (`on_requests`, `on_batch_reply`, `on_map`, `on_backend`,
`on_unsent`, `on_status_reply`, and for groups, control and backups each `on_..._reply` and
`on_..._unsent`); call `on_tick` no later than `next_due()`; at the end of each turn send and empty
`outbox_clients`, `outbox_stores`, `outbox_status`, `outbox_groups`, `outbox_control` and
`outbox_backups`, and put a MAP question to some store if `should_ask_map()`. A node that has left the map
gets nothing more, and may still answer what it has: its link is kept until `is_with` says that there is
nothing, and when it goes, `on_backend` is told.

Promises
- A request that was read is answered exactly once, by its deadline, unless its client is gone.
- A write is sent a second time only with FLAG_RETRY, which the store's session table answers; without a
  session, never. One that lay here while this process stood still counts as sent (`on_stall`).
- What is under way is bounded in parts and bytes: beyond, BUSY at once.
- Hostile bytes cost their decoding and an error response. Nothing raises out of `on_requests` and
  `on_batch_reply`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Any

import msgpack

from kvclient.protocol import FLAG_RETRY, LEASE, VERSION, Kind, Request, pack
from router import figures as figure
from router.admin import StatusRounds
from router.backupcommands import BackupCommands
from router.controlcommands import ControlCommands
from router.dispatch import Dispatch, make_tuple
from router.figures import Figures
from router.flight import Flight, Part
from router.gate import Gate, Lookup
from router.groupcommands import GroupCommands
from router.requests import (
    MARGIN_MS,
    MARGIN_SHORT,
    TIMEOUT_MS_MAX,
    Budget,
    Caller,
    Intake,
)
from router.responses import Responses
from router.topology import Topology
from shared.backupmessages import BackupRequest
from shared.clock import Clock
from shared.controlmessages import ControlRequest
from shared.groupmessages import GroupRequest
from shared.messages import Item
from shared.opstream import Limits, split

# The straight line's decoder: ten plain fields. Nesting and huge announced arrays are refused before they
# cost.
_unpack = partial(msgpack.unpackb, raw=False, max_array_len=10, max_map_len=0, max_ext_len=0)
_OPS = int(Kind.OPS)
# Requests that lay in queues while this process stood still: all have been read this long after it goes on.
STALE_SECONDS = 5.0
_READ_MODE_MAX = 0xFFFFFFFF
_TIMEOUT_MS_ORDINARY = MARGIN_SHORT * MARGIN_MS


class Router:
    """One router's state. One thread; the outboxes belong to the caller between calls."""

    def __init__(
        self,
        *,
        name: str,
        version: str,
        seeds: Iterable[str],
        limits: Limits,
        budget: Budget,
        clock: Clock,
        random: Random,
        certificate: Lookup | None = None,
    ) -> None:
        """`certificate`: of a client by its name; None: clients have no names, and may do everything."""
        self.figures = Figures()
        self.topology = Topology()
        self.flight = Flight()
        self._responses = Responses(self.figures)
        self._dispatch = Dispatch(self.topology, self.flight, self._responses, self.figures, random)
        self._groups = GroupCommands(self.topology, self._responses.give)
        self._control = ControlCommands(self.topology, self._responses.give)
        self._backups = BackupCommands(self.topology, self._responses.give)
        self._errands = (self._groups, self._control, self._backups)
        self._status = StatusRounds(
            name, self.topology, self._control.show, self.figures.snapshot, self._responses.give
        )
        self._intake = Intake(
            name=name,
            version=version,
            limits=limits,
            budget=budget,
            topology=self.topology,
            flight=self.flight,
            dispatch=self._dispatch,
            status=self._status,
            groups=self._groups,
            control=self._control,
            backups=self._backups,
            responses=self._responses,
            figures=self.figures,
        )
        self.gate = None if certificate is None else Gate(certificate, limits, self._responses, self.figures)
        self._limits = limits
        self._budget = budget
        self._clock = clock
        self._no_map = f"no cluster map yet: none of {', '.join(seeds)} has answered; nothing was applied"

    # -- outboxes

    @property
    def outbox_clients(self) -> list[tuple[bytes, bytes]]:
        """(client, frame) to send; empty it with clear()."""
        return self._responses.outbox

    @property
    def outbox_stores(self) -> dict[int, list[Item]]:
        """Node id -> items to send, for exactly the nodes that are up.

        Replace a queue by a new list when it is sent.
        """
        return self.topology.queues

    @property
    def outbox_status(self) -> list[tuple[int, int]]:
        """(node id, token) of STATUS messages to send; empty it with clear()."""
        return self._status.questions

    @property
    def outbox_groups(self) -> list[tuple[int, GroupRequest]]:
        """(node id, request) of GROUP messages to send; empty it with clear()."""
        return self._groups.outbox

    @property
    def outbox_control(self) -> list[tuple[int, ControlRequest]]:
        """(node id, request) of CONTROL messages to send; empty it with clear()."""
        return self._control.outbox

    @property
    def outbox_backups(self) -> list[tuple[int, BackupRequest]]:
        """(node id, request) of BACKUP messages to send; empty it with clear()."""
        return self._backups.outbox

    @property
    def busy(self) -> bool:
        """Whether any request has not been answered yet."""
        commands = self._status.pending or any(errands.pending for errands in self._errands)
        return bool(self.flight.parts or self._intake.early or commands)

    def is_with(self, node: int) -> bool:
        """Whether the node has anything that it has not answered."""
        return self.flight.is_with(node) or any(errands.is_with(node) for errands in self._errands)

    # -- from clients

    def on_request(self, client: bytes, frame: bytes) -> None:
        """One request."""
        self.on_requests([[client, frame]])

    def on_named_requests(self, messages: Iterable[list[bytes]], names: Iterable[str]) -> None:
        """What a front has read whose clients have names."""
        assert self.gate is not None, "Router() was given no certificates"
        self.on_requests(self.gate.passed(messages, names, self._clock.monotonic()))

    def on_requests(self, messages: Iterable[list[bytes]]) -> None:
        """What the front has read: [client, frame] each, if the clients behave.

        This is the straight line: a well-formed request for one partition whose leader is up, with an
        ordinary deadline, becomes one item at once. `Intake` takes every case, this one too.
        """
        now = self._clock.monotonic()
        intake, flight, topology, limits = self._intake, self.flight, self.topology, self._limits
        parts, leaders, queues, bits = flight.parts, topology.leaders, topology.queues, topology.bits
        parts_max, bytes_max = self._budget
        ordinary = topology.map is not None and now >= intake.stale_until
        straight, ops_taken = 0, self.figures.ops
        for message in messages:
            pieces = None
            try:
                client, frame = message
                version, kind, number, timeout_ms, read_mode, flags, session, sequence, acked, ops = _unpack(
                    frame
                )
                if (
                    ordinary
                    and kind == _OPS
                    and version == VERSION
                    and int is type(kind) is type(number) is type(timeout_ms)
                    and int is type(read_mode) is type(flags)
                    and int is type(session) is type(sequence) is type(acked)
                    and _TIMEOUT_MS_ORDINARY <= timeout_ms <= TIMEOUT_MS_MAX
                    and 0 <= read_mode <= _READ_MODE_MAX
                    and 0 <= flags <= FLAG_RETRY
                    and number >= 0 <= session
                    and sequence >= 0 <= acked
                    and len(parts) < parts_max
                    and flight.bytes_held < bytes_max
                ):
                    pieces = split(ops, bits, limits)
                    left = timeout_ms - MARGIN_MS
                    deadline = now + left / 1000
                    size = len(frame)
                    if len(pieces.parts) == 1:
                        partition, ops = pieces.parts[0]
                        node = leaders[partition]
                        if read_mode > LEASE and not pieces.writes:
                            node = topology.any_replica(partition)
                        queue = queues.get(node)
                        if queue is not None:
                            token = flight.token = flight.token + 1
                            item = make_tuple(
                                Item,
                                (token, partition, left, read_mode, flags, session, sequence, acked, ops),
                            )
                            parts[token] = Part(
                                token, client, number, now, deadline, size, item, pieces.writes, node
                            )
                            flight.bytes_held += size
                            if deadline < flight.deadline_floor:
                                flight.deadline_floor = deadline
                            queue.append(item)
                            straight += 1
                            ops_taken[pieces.writes] += pieces.count
                            continue
            except Exception:  # noqa: BLE001 - whatever is wrong, the intake finds it again and the words for it
                pieces = None
            if pieces is not None and pieces.parts:
                request = Request(
                    kind, number, timeout_ms, read_mode, flags, session, sequence, acked, message[1]
                )
                intake.accept_split(Caller(client, request, size, now, deadline), pieces, now)
            else:
                intake.accept(message, now)
        self.figures.counters.values[figure.REQUESTS_OPS] += straight

    # -- from stores

    def on_batch_reply(self, node: int, epoch: int, answers: Iterable[tuple[int, int, bytes]]) -> None:
        """A store's answers: (token, status, body) each.

        Results of a request that is one part are passed on untouched.
        """
        now = self._clock.monotonic()
        flight, outbox, counters = self.flight, self._responses.outbox, self.figures.counters.values
        parts, observe, guessed = flight.parts, self.figures.observe_served, self.topology.guessed
        arrived, together = now, [0, 0]  # most answers of a batch are to requests that arrived together
        self.on_epoch(epoch, node)
        for token, status, body in answers:
            part = parts.get(token)
            if part is None or part.node != node:
                counters[figure.ANSWERS_STRAY] += 1
                continue
            del parts[token]
            if guessed and status == 0 and part.item.read_mode <= LEASE:
                self.topology.served(part.item.partition, node)
            if status != 0:
                self._dispatch.refused(part, status, body, now)
            elif part.gather is None:
                flight.bytes_held -= part.size
                outbox.append((part.client, pack((VERSION, _OPS, part.request_id, 0, body))))
                if part.arrived != arrived:
                    observe(now - arrived, together)
                    arrived = part.arrived
                together[part.op] += 1
            else:
                self._dispatch.results(part, part.gather, body, now)
        observe(now - arrived, together)

    def on_status_reply(self, node: int, token: int, figures: dict[str, Any]) -> None:
        """A store's figures."""
        self._status.on_reply(node, token, figures, self._clock.monotonic())

    def on_group_reply(self, node: int, token: int, status: int, body: bytes) -> None:
        """A store's answer to a command for a group."""
        self._groups.on_reply(node, token, status, body, self._clock.monotonic())

    def on_group_unsent(self, node: int, token: int) -> None:
        """The socket of a node did not take this command: nobody has it."""
        self._groups.on_unsent(node, token, self._clock.monotonic())

    def on_control_reply(self, node: int, token: int, status: int, body: bytes) -> None:
        """A store's answer to a command for the cluster."""
        self._control.on_reply(node, token, status, body, self._clock.monotonic())

    def on_control_unsent(self, node: int, token: int) -> None:
        """The socket of a node did not take this command: nobody has it."""
        self._control.on_unsent(node, token, self._clock.monotonic())

    def on_backup_reply(self, node: int, token: int, status: int, body: bytes) -> None:
        """A store's answer to a command for a cut."""
        self._backups.on_reply(node, token, status, body, self._clock.monotonic())

    def on_backup_unsent(self, node: int, token: int) -> None:
        """The socket of a node did not take this command: nobody has it."""
        self._backups.on_unsent(node, token, self._clock.monotonic())

    def on_backend(self, node: int, up: bool) -> None:
        """A store of the map can be sent to from now on, or cannot. What it had when it went down is lost."""
        now = self._clock.monotonic()
        if up:
            if self.topology.set_up(node):
                self._dispatch.place_parked(now)
        else:
            self._dispatch.unsent(node, self.topology.set_down(node), now)
            self._dispatch.lost(node, now)
            for errands in self._errands:
                errands.on_down(node, now)

    def on_unsent(self, node: int, items: Iterable[Item]) -> None:
        """The socket of a node did not take these items: nobody has them."""
        self._dispatch.unsent(node, items, self._clock.monotonic())

    # -- the map

    def should_ask_map(self) -> bool:
        """Whether to ask some store for its map now.

        The first, after a sign of a newer one, and from time to time.
        """
        return self.topology.should_ask(self._clock.monotonic())

    def on_epoch(self, epoch: int, node: int) -> None:
        """A store has a map of this epoch."""
        if epoch > self.topology.epoch:
            self.topology.suspect(self._clock.monotonic(), node)

    def on_map(self, encoded: bytes) -> bool:
        """A store's map; whether it was taken. ProtocolError if it is none."""
        now = self._clock.monotonic()
        taken = self.topology.install(encoded)
        self.topology.answered(now)
        if not taken:
            return False
        for node in self.topology.removed_nodes():
            self._dispatch.elsewhere(self.topology.set_down(node), now)
        self._intake.start_early(now)
        self._dispatch.place_parked(now)
        return True

    # -- time

    def on_tick(self, now: float) -> None:
        """Do what is due: deadlines, next attempts.

        In this order: what is late already must not go out once more, and leave doubt.
        """
        self._dispatch.expire(now)
        self._dispatch.place_due(now)
        self._intake.expire_early(now, self._no_map)
        self._status.expire(now)
        for errands in self._errands:
            errands.on_tick(now)

    def on_stall(self) -> None:
        """This process stood still for longer than clients wait for an attempt.

        The writes that it now finds in its queues may have come here a second time through another router,
        so they are passed on with RETRY. Without it, a store that has restarted meanwhile would execute them
        again.
        """
        self._intake.stale_until = self._clock.monotonic() + STALE_SECONDS

    def next_due(self) -> float:
        """When `on_tick` has to be called next, or the question of `should_ask_map` comes up.

        Monotonic seconds.
        """
        return min(
            self.flight.next_due(),
            self._intake.early_due,
            self._status.next_due(),
            *(errands.next_due() for errands in self._errands),
            self.topology.next_question,
        )
