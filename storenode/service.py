"""The store's shell: messages of routers in, answers out. The only file of this package that touches zmq.

Owns the rpc socket. Every message but a FAULT is answered, whatever it holds; nothing that a message holds
can end the loop or the drain. Reads are answered at once, writes go to their partition, and all answers of a
turn leave at its end, one frame per router. One thread, the reactor's.

Stopping: leadership is handed to others first, while requests are still read, so that routers learn where to
go. Then nothing more is read until all that was taken so far is answered; then what has arrived meanwhile is
read once more: its writes are refused, its reads served. A write that nobody answers may have been applied,
as far as its router can tell.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import zmq

from kvclient.errors import KVError, ProtocolError, Status
from kvclient.protocol import FLAG_BARRIER, encode_error
from shared import logs, messages
from shared.backupmessages import BackupRequest, encode_backup_reply
from shared.clock import Clock
from shared.clustermap import ClusterMap
from shared.controlmessages import ControlCommand, ControlRequest, encode_control_reply
from shared.groupmessages import GroupRequest, encode_group_reply
from shared.metrics import Counters
from shared.opstream import Limits, inspect
from shared.reactor import Reactor, drain_named, drain_router
from shared.sockets import send_or_drop
from shared.versions import SPOKEN, mismatch
from storenode.maps import Maps
from storenode.outbox import Outbox
from storenode.routers import Routers

BATCH_BYTES_MAX: Final = 64 << 20
"""Largest frame a router may send: four of the largest requests. Routers cut their batches far below."""

HAND_OVER_S: Final = 1.0
"""How long a stopping store tries to give its leadership away: a round trip and a vote, unless the others are
not there either.
"""

STOP_GRACE_S: Final = 3.0
"""How long a stopping store then waits for its answers; with HAND_OVER_S less than the 5 s and 10 s after
which supervisors kill.
"""

STOP_DRAIN_S: Final = 0.5
"""How long a stopping store reads what has arrived, at most: routers send on until its socket is gone."""
STOP_QUIET_MS: Final = 20
"""Silence after which nothing is on its way any more: what arrived may still be in the kernel's buffers."""

DEFECT_LOG_INTERVAL_S: Final = 1.0

_COUNTERS: Final = (
    "batches", "items", "reads", "writes", "faults_sent", "faults_received", "dropped_full", "dropped_gone",
    "defects",
)  # fmt: skip
(BATCHES, ITEMS, READS, WRITES, FAULTS_SENT, FAULTS_RECEIVED, DROPPED_FULL, DROPPED_GONE, DEFECTS) = range(9)

_TIMEOUT: Final = encode_error("the deadline passed before the store could serve it; nothing was applied")
_EMPTY: Final = encode_error("an empty op stream asks for nothing")
_NO_GROUPS: Final = encode_error("the partitions of this store are not replicated")
_NO_IDENTITY: Final = encode_error("this store keeps no data, and knows of nobody's")
_NO_CONTROL: Final = encode_error("this store has no control partition")
_NO_CUTS: Final = encode_error("this store keeps no data to back up")
_STOPPING: Final = encode_error("this store is stopping; nothing was applied")

_log = logs.get("service")


class Partition(Protocol):
    """What serves one partition: a `Replica`, or its no-op twin. `propose` answers when it can, and at once
    if the partition takes no writes.
    """

    @property
    def takes_writes(self) -> bool: ...
    def read(self, route: tuple[bytes, int], ops: bytes, mode: int, deadline: float, now: float) -> None: ...
    def propose(
        self,
        route: tuple[bytes, int],
        client_id: int,
        sequence: int,
        acked_below: int,
        flags: int,
        ops: bytes,
        deadline: float,
        now: float,
    ) -> None: ...


class Driver(Protocol):
    """What makes partitions answer: `storenode.groups.Groups`, or nothing on a no-op store."""

    @property
    def idle(self) -> bool: ...
    @property
    def leading(self) -> bool: ...
    def hand_over(self) -> None: ...


class NoDriver:
    """Of partitions that answer at once."""

    idle = True
    leading = False

    def hand_over(self) -> None:
        """There is nothing."""


class Service:
    """Serves the partitions of one node. Replicas answer through `outbox`."""

    def __init__(
        self,
        reactor: Reactor,
        maps: Maps,
        node_id: int,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.counters = Counters(_COUNTERS)
        self.outbox = Outbox(maps.map.epoch, self._send)
        maps.follow(self._on_map)
        self._reactor = reactor
        self._maps = maps
        self._node_id = node_id
        self._limits = limits
        self._clock = clock
        self.driver: Driver = NoDriver()
        self.routers = Routers(clock)
        self.on_bulk: Callable[[bytes, bytes], object] | None = None
        """(peer, body) of a request for a snapshot; None: this store has none to give."""
        self.on_group: Callable[[bytes, GroupRequest], object] | None = None
        """(peer, command for a group); None: the partitions of this store are no groups."""
        self.on_control: Callable[[bytes, ControlRequest], object] | None = None
        """(peer, command for the cluster); None: this store knows no controller."""
        self.on_backup: Callable[[bytes, BackupRequest], object] | None = None
        """(peer, request for a cut or a page of one); None: this store has no data."""
        self.on_known: Callable[[int, bytes], tuple[int, bytes]] | None = None
        """(cluster, arguments) of the CONTROL command `known`: status and body. None: it knows nobody."""
        self._is_member: Callable[[str], bool] | None = None
        self._partitions: Mapping[int, Partition] = {}
        self._figures: Callable[[], dict[str, Any]] = dict
        self._socket: zmq.Socket[bytes] | None = None
        self._leaving = False
        self._patient = True
        self._stopping = False
        self._refused = False
        self._defect_logged_at = float("-inf")
        self._defect_reference = ""

    def start(
        self,
        socket: zmq.Socket[bytes],
        partitions: Mapping[int, Partition],
        figures: Callable[[], dict[str, Any]],
        is_member: Callable[[str], bool] | None = None,
    ) -> None:
        """Begins to read a bound ROUTER socket. `figures` is what STATUS answers. `is_member`: peers have
        names, and who is none of the cluster may only look.
        """
        self._socket, self._partitions, self._figures = socket, partitions, figures
        self._is_member = is_member
        if is_member is None:
            self._reactor.add_reader(socket, self._on_messages)
        else:
            self._reactor.add_named_reader(socket, self._on_named)

    def _on_map(self, newest: ClusterMap) -> None:
        self.outbox.epoch = newest.epoch

    def stop(self) -> None:
        """Hands leadership over, for at most HAND_OVER_S; then stops reading. The loop ends when all that was
        taken so far is answered, or STOP_GRACE_S later.
        """
        if self._socket is not None and not self._leaving:
            self._leaving = True
            self.driver.hand_over()
            self._reactor.call_later(HAND_OVER_S, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patient = False
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._socket is not None and not self._stopping:
            self._stopping = True
            self._reactor.remove_reader(self._socket)
            self._reactor.call_later(STOP_GRACE_S, self._reactor.stop)

    def end_turn(self) -> None:
        """Sends what was answered; call at the end of each turn, after what answers."""
        needed = self._leaving and self._patient and self.driver.leading
        if self._leaving and not needed:
            self._stop_reading()
        self.outbox.flush()
        if self._stopping and self.driver.idle:
            if needed:  # leadership came here while what had arrived was refused
                self._refused = False
            elif self._refused:
                self._reactor.stop()
            else:
                self._refused = True
                self._refuse_unread()
                self._reactor.call_later(0, _nothing)  # reads take at least a turn of the driver

    def _refuse_unread(self) -> None:
        """Answers what has arrived since `stop`."""
        assert self._socket is not None, "stop() does nothing before start()"
        deadline = self._clock.monotonic() + STOP_DRAIN_S
        while self._clock.monotonic() < deadline and self._socket.poll(STOP_QUIET_MS):
            if self._is_member is None:
                self._on_messages(drain_router(self._socket.recv))
            else:
                self._on_named(*drain_named(self._socket.recv))
            self.outbox.flush()

    def _on_named(self, batch: list[list[bytes]], names: list[str]) -> None:
        assert self._is_member is not None
        taken: list[list[bytes]] = []
        for message, name in zip(batch, names, strict=True):
            if self._is_member(name) or _only_looks(message):
                taken.append(message)
            else:
                self.counters.values[FAULTS_SENT] += 1
                self._send(message[0], messages.encode_fault(f"{name} may look at this store, no more"))
        self._on_messages(taken)

    def _on_messages(self, batch: list[list[bytes]]) -> None:
        arrived = self._clock.monotonic()
        for message in batch:
            try:
                self._on_message(message, arrived)
            except ProtocolError as error:
                self.counters.values[FAULTS_SENT] += 1
                self._send(message[0], messages.encode_fault(error.message))
            except Exception:  # noqa: BLE001 - one message must not cost the others of its batch
                self._send(message[0], messages.encode_fault(self._defect()))

    def _on_message(self, message: list[bytes], arrived: float) -> None:
        if len(message) != 2:
            raise ProtocolError("a message is one frame, this one has more")
        router, frame = message
        request = messages.decode_to_store(frame)
        if isinstance(request, messages.Batch):
            self._serve(router, request.items, arrived)
        elif isinstance(request, messages.MapRequest):
            self._send(router, messages.encode_map_reply(request.token, self._maps.encoded))
        elif isinstance(request, messages.StatusRequest):
            self._send(router, messages.encode_status_reply(request.token, self._figures()))
        elif isinstance(request, messages.Ping):
            self._answer_ping(router, request)
        elif isinstance(request, messages.RouterHello):
            self.routers.hear(request.name, request.front)
        elif isinstance(request, messages.BulkRequest):
            if self.on_bulk is None:
                raise ProtocolError("this store has no snapshots to give")
            self.on_bulk(router, request.body)
        elif isinstance(request, GroupRequest):
            if self.on_group is None:
                self.answer_group(router, request.token, Status.UNSUPPORTED, _NO_GROUPS)
            else:
                self.on_group(router, request)
        elif isinstance(request, ControlRequest) and request.command is ControlCommand.KNOWN:
            self._answer_known(router, request)
        elif isinstance(request, ControlRequest):
            if self.on_control is None:
                self.answer_control(router, request.token, Status.UNSUPPORTED, _NO_CONTROL)
            else:
                self.on_control(router, request)
        elif isinstance(request, BackupRequest):
            if self.on_backup is None:
                self.answer_backup(router, request.token, Status.UNSUPPORTED, _NO_CUTS)
            else:
                self.on_backup(router, request)
        else:  # not answered, or two sides that do not understand each other would go on for ever
            self.counters.values[FAULTS_RECEIVED] += 1

    def _answer_ping(self, router: bytes, ping: messages.Ping) -> None:
        versions = None
        if ping.versions is not None:
            reason = mismatch(ping.versions)
            if reason is not None:
                raise ProtocolError(reason)
            versions = SPOKEN
        self._send(router, messages.encode_pong(ping.token, self._node_id, self._maps.map.epoch, versions))

    def _answer_known(self, router: bytes, request: ControlRequest) -> None:
        if self.on_known is None:
            answer: tuple[int, bytes] = (Status.UNSUPPORTED, _NO_IDENTITY)
        else:
            answer = self.on_known(request.cluster, request.arguments)
        self._send(router, encode_control_reply(request.token, *answer))

    def _serve(self, router: bytes, items: list[messages.Item], arrived: float) -> None:
        counted = self.counters.values
        counted[BATCHES] += 1
        counted[ITEMS] += len(items)
        now = self._clock.monotonic()
        answer = self.outbox.add
        for item in items:
            try:
                self._serve_item(router, item, arrived, now)
            except KVError as error:
                answer(router, item[0], error.status, encode_error(error.message, **error.details))
            except Exception:  # noqa: BLE001 - one item must not cost the others of its message
                answer(router, item[0], Status.INTERNAL, encode_error(self._defect()))

    def _serve_item(self, router: bytes, item: messages.Item, arrived: float, now: float) -> None:
        token, number, timeout_ms, mode, flags, client_id, sequence, acked_below, ops = item
        known = self._maps.map
        partition = self._partitions.get(number) if number < known.partition_count else None
        if partition is None:
            body = encode_error(f"partition {number} is not on this store; its map has epoch {known.epoch}")
            self.outbox.add(router, token, Status.WRONG_REPLICA, body)
            return
        shape = inspect(ops, self._limits)
        deadline = arrived + timeout_ms / 1000
        if shape.writes or (not ops and flags & FLAG_BARRIER):
            if self._stopping and partition.takes_writes:
                self.outbox.add(router, token, Status.UNAVAILABLE, _STOPPING)
                return
            self.counters.values[WRITES] += 1
            partition.propose((router, token), client_id, sequence, acked_below, flags, ops, deadline, now)
        elif now >= deadline:
            self.outbox.add(router, token, Status.TIMEOUT, _TIMEOUT)
        elif not ops:
            self.outbox.add(router, token, Status.INVALID_REQUEST, _EMPTY)
        else:
            self.counters.values[READS] += 1
            partition.read((router, token), ops, mode, deadline, now)

    def _defect(self) -> str:
        """Logs the exception at hand under a reference; returns the text for the other side, which names it.

        Within DEFECT_LOG_INTERVAL_S further ones get the same reference: a defect that every request meets
        must not fill the disk.
        """
        self.counters.values[DEFECTS] += 1
        now = self._clock.monotonic()
        if now >= self._defect_logged_at + DEFECT_LOG_INTERVAL_S:
            self._defect_logged_at = now
            self._defect_reference = secrets.token_hex(4)
            _log.exception("defect", reference=self._defect_reference)
        return (
            f"internal error of the store; its log has the details under reference {self._defect_reference}"
        )

    def send_bulk(self, peer: bytes, body: bytes) -> None:
        """Answers a request for a snapshot."""
        self._send(peer, messages.encode_bulk_reply(body))

    def answer_group(self, peer: bytes, token: int, status: int, body: bytes) -> None:
        """Answers a command for a group."""
        self._send(peer, encode_group_reply(token, status, body))

    def answer_control(self, peer: bytes, token: int, status: int, body: bytes) -> None:
        """Answers a command for the cluster."""
        self._send(peer, encode_control_reply(token, status, body))

    def answer_backup(self, peer: bytes, token: int, status: int, body: bytes) -> None:
        """Answers a request for a cut."""
        self._send(peer, encode_backup_reply(token, status, body))

    def _send(self, router: bytes, frame: bytes) -> None:
        """Queues a frame for a router. One that is gone, or does not read, asks again when it is back: its
        answers are dropped.
        """
        assert self._socket is not None, "nothing is answered before start()"
        try:
            dropped = send_or_drop(self._socket, (router, frame))
        except zmq.ZMQError:  # whoever answers is in the middle of a partition's work, which must go on
            self._defect()
            return
        if dropped is not None:
            self.counters.values[DROPPED_FULL if dropped == "full" else DROPPED_GONE] += 1


def _only_looks(message: list[bytes]) -> bool:
    """Whether a message asks for something that changes nothing; one that is none is refused later."""
    try:
        request = messages.decode_to_store(message[1])
    except ProtocolError:
        return True
    if isinstance(request, ControlRequest):
        return request.command is ControlCommand.SHOW
    return isinstance(request, (messages.MapRequest, messages.StatusRequest, messages.Ping))


def _nothing() -> None:
    """What makes the loop turn once more."""
