"""From any message of a client to parts under way, or to an answer: the general case, one request at a time.

Owns what is checked and in which order: one frame, a request, a known kind, the budget, the deadline, the
map. Requests that come before the map wait here. Must not know what becomes of parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import inf
from typing import NamedTuple

from kvclient.errors import InvalidRequest, ProtocolError, Status, Unsupported
from kvclient.protocol import (
    FLAG_BARRIER,
    FLAG_RETRY,
    LINEARIZABLE,
    RETRY_WINDOW_MS,
    SCAN_COUNT,
    Kind,
    Request,
    decode_request,
    pack,
)
from router import figures as figure
from router.admin import StatusRounds, decode_command
from router.backupcommands import BackupCommands
from router.backupcommands import Command as BackupCommand
from router.controlcommands import Command as ControlCommand
from router.controlcommands import ControlCommands
from router.dispatch import Dispatch
from router.errands import Asker
from router.figures import Figures
from router.flight import NOT_SENT, Flight, Part
from router.groupcommands import Command as GroupCommand
from router.groupcommands import GroupCommands
from router.responses import Responses
from router.scatter import BarrierGather, CountGather, Gather, OpsGather, ScanGather, partition_scan
from router.topology import Topology
from shared.messages import Item
from shared.opstream import Limits, Split, scan_fields, split

# The router gives up this much before its caller does, so that the reason arrives in time: an eighth of short
# deadlines, 50 ms of long ones.
MARGIN_MS = 50
MARGIN_SHORT = 8
# Longer deadlines are cut to this: stores can tell whether a write was applied for this long, and we must not
# send it again later.
TIMEOUT_MS_MAX = RETRY_WINDOW_MS
# What a client is told to wait when the budget is full: some turns of the loop, in each of which hundreds of
# requests end.
BUSY_RETRY_MS = 50

_KIND_UNKNOWN = 0

FIGURES = pack(("figures",))
"""The one ADMIN command that is answered without a map."""


class Budget(NamedTuple):
    """What may be under way at once; beyond, BUSY."""

    parts: int
    bytes: int


class Caller(NamedTuple):
    """Who asked, with what, and until when: a checked request before it becomes parts."""

    client: bytes
    request: Request
    size: int
    arrived: float
    deadline: float


class Intake:
    """Takes requests in. `early` are those that wait for the first map, oldest first."""

    def __init__(
        self,
        *,
        name: str,
        version: str,
        limits: Limits,
        budget: Budget,
        topology: Topology,
        flight: Flight,
        dispatch: Dispatch,
        status: StatusRounds,
        groups: GroupCommands,
        control: ControlCommands,
        backups: BackupCommands,
        responses: Responses,
        figures: Figures,
    ) -> None:
        self.early: list[Caller] = []
        self.early_due = inf  # when the first of them has to be answered
        self.stale_until = -inf  # what comes before then may have been overtaken by its own retry
        self._name = name
        self._version = version
        self._limits = limits
        self._budget = budget
        self._topology = topology
        self._flight = flight
        self._dispatch = dispatch
        self._status = status
        self._groups = groups
        self._control = control
        self._backups = backups
        self._responses = responses
        self._figures = figures
        self._counters = figures.counters.values

    def accept(self, message: list[bytes], now: float) -> None:
        """Any message at all: [client, frame] becomes a request under way or is answered; never raises."""
        client = message[0]
        kind, request_id = _KIND_UNKNOWN, 0
        try:
            request = decode(message)
            kind, request_id = request.kind, request.request_id
            if now < self.stale_until and request.client_id and request.sequence:
                request = request._replace(flags=request.flags | FLAG_RETRY)
            deadline = now + answer_within_ms(request.timeout_ms) / 1000
            self._admit(Caller(client, request, len(message[1]), now, deadline), now)
        except ProtocolError as error:
            self._counters[figure.REQUESTS_REFUSED] += 1
            self._responses.refuse_for(client, kind, error.request_id or request_id, error.code, error)
        except InvalidRequest as error:
            self._counters[figure.REQUESTS_REFUSED] += 1
            self._responses.refuse_for(client, kind, request_id, error.status, error)
        except Exception:  # noqa: BLE001 - a defect of ours must not stop the others' requests
            self._responses.defect(client, kind, request_id)

    def _admit(self, caller: Caller, now: float) -> None:
        client, request, size, _, deadline = caller
        kind, request_id = request.kind, request.request_id
        if kind == Kind.PING:
            self._counters[figure.REQUESTS_PING] += 1
            about = pack((self._name, self._version, self._topology.epoch))
            self._responses.give(client, kind, request_id, Status.OK, about)
        elif kind not in (Kind.OPS, Kind.ADMIN, Kind.MAP):
            raise Unsupported(f"this router does not serve requests of kind {kind}")
        elif (kind == Kind.OPS or self._topology.map is None) and self._is_full():
            self._refuse_busy(caller)
        elif deadline <= now:
            reason = "the deadline had passed already; nothing was applied"
            self._responses.refuse(client, kind, request_id, Status.TIMEOUT, reason)
        elif self._topology.map is None and not (kind == Kind.ADMIN and request.body == FIGURES):
            self.early.append(caller)
            self._flight.bytes_held += size
            self.early_due = min(self.early_due, deadline)
        else:
            self._start(caller, now)

    def _is_full(self) -> bool:
        under_way = len(self._flight.parts) + len(self.early)
        return under_way >= self._budget.parts or self._flight.bytes_held >= self._budget.bytes

    def _refuse_busy(self, caller: Caller) -> None:
        self._counters[figure.REQUESTS_BUSY] += 1
        reason = f"router {self._name} has too much under way"
        kind, request_id = caller.request.kind, caller.request.request_id
        self._responses.refuse(caller.client, kind, request_id, Status.BUSY, reason, BUSY_RETRY_MS)

    # -- requests that came before the map

    def start_early(self, now: float) -> None:
        """The first map is here."""
        early, self.early = self.early, []
        self.early_due = inf
        for caller in early:
            self._flight.bytes_held -= caller.size
            kind, request_id = caller.request.kind, caller.request.request_id
            try:
                self._start(caller, now)
            except InvalidRequest as error:
                self._counters[figure.REQUESTS_REFUSED] += 1
                self._responses.refuse_for(caller.client, kind, request_id, error.status, error)
            except Exception:  # noqa: BLE001 - as in accept()
                self._responses.defect(caller.client, kind, request_id)

    def expire_early(self, now: float, why: str) -> None:
        """Answer those that cannot wait longer."""
        if now < self.early_due:
            return
        late = [caller for caller in self.early if caller.deadline <= now]
        self.early = [caller for caller in self.early if caller.deadline > now]
        self.early_due = min((caller.deadline for caller in self.early), default=inf)
        for caller in late:
            self._flight.bytes_held -= caller.size
            kind, request_id = caller.request.kind, caller.request.request_id
            self._responses.refuse(caller.client, kind, request_id, Status.UNAVAILABLE, why)

    # -- by kind

    def _start(self, caller: Caller, now: float) -> None:
        kind = caller.request.kind
        if kind == Kind.OPS:
            self._counters[figure.REQUESTS_OPS] += 1
            self._start_ops(caller, now)
        elif kind == Kind.ADMIN:
            self._counters[figure.REQUESTS_ADMIN] += 1
            self._start_admin(caller, now)
        else:
            self._counters[figure.REQUESTS_MAP] += 1
            self._answer(caller, self._topology.encoded_map)

    def _answer(self, caller: Caller, body: bytes) -> None:
        request = caller.request
        self._responses.give(caller.client, request.kind, request.request_id, Status.OK, body)

    def _start_ops(self, caller: Caller, now: float) -> None:
        request = caller.request
        if request.flags & ~(FLAG_RETRY | FLAG_BARRIER):
            raise Unsupported(f"this router does not know all of the flags {request.flags:#x}")
        if request.flags & FLAG_BARRIER:
            if request.body:
                raise InvalidRequest("a barrier goes with an empty op stream")
            self._start_barrier(caller, b"", now)
            return
        pieces = split(request.body, self._topology.bits, self._limits)
        if pieces.scan:
            self._start_scan(caller, now)
        elif not pieces.parts:
            self._answer(caller, b"")
        else:
            self._start_pieces(caller, pieces, now)

    def accept_split(self, caller: Caller, pieces: Split, now: float) -> None:
        """An admitted op stream, split already, that is no scan and not empty; never raises."""
        self._counters[figure.REQUESTS_OPS] += 1
        try:
            self._start_pieces(caller, pieces, now)
        except Exception:  # noqa: BLE001 - as in accept()
            self._responses.defect(caller.client, caller.request.kind, caller.request.request_id)

    def _start_pieces(self, caller: Caller, pieces: Split, now: float) -> None:
        client, request, size, arrived, deadline = caller
        self._figures.ops[pieces.writes] += pieces.count
        if len(pieces.parts) == 1:
            item = _item(request, *pieces.parts[0])
            self._flight.bytes_held += size
            part = Part(NOT_SENT, client, request.request_id, arrived, deadline, size, item, pieces.writes)
            self._dispatch.place(part, now)
        else:
            gather = OpsGather(client, request.kind, request.request_id, arrived, size, pieces)
            self._scatter(gather, caller, pieces.parts, now)

    def _start_scan(self, caller: Caller, now: float) -> None:
        client, request, size, arrived, _ = caller
        count = len(self._topology.leaders)
        gather_class = CountGather if scan_fields(request.body)[3] & SCAN_COUNT else ScanGather
        gather = gather_class(client, request.kind, request.request_id, arrived, size, count, request.body)
        ops = partition_scan(request.body, count)
        self._scatter(gather, caller, ((partition, ops) for partition in range(count)), now)

    def _start_barrier(self, caller: Caller, body_when_ok: bytes, now: float) -> None:
        client, request, size, arrived, _ = caller
        count = len(self._topology.leaders)
        gather = BarrierGather(client, request.kind, request.request_id, arrived, size, count, body_when_ok)
        barrier = request._replace(
            read_mode=LINEARIZABLE, flags=FLAG_BARRIER, client_id=0, sequence=0, acked_below=0
        )
        nothing = ((partition, b"") for partition in range(count))
        self._scatter(gather, caller._replace(request=barrier), nothing, now)

    def _start_admin(self, caller: Caller, now: float) -> None:
        command = decode_command(caller.request.body)
        asker = Asker(caller.client, caller.request.request_id, caller.deadline)
        if isinstance(command, GroupCommand):
            self._groups.start(asker, command, now)
        elif isinstance(command, ControlCommand):
            self._control.start(asker, command, now)
        elif isinstance(command, BackupCommand):
            self._backups.start(asker, command, now)
        elif command.name == "route":
            self._status.route(asker, command.key, now)
        elif command.name == "status":
            self._status.status(asker, now)
        elif command.name == "healthy":
            self._status.healthy(asker, now)
        elif command.name == "figures":
            self._answer(caller, pack(self._all_figures()))
        else:
            self._status.ready(asker, now, partial(self._prove_ready, caller))

    def _all_figures(self) -> dict[str, object]:
        """What the monitor asks once a second."""
        topology, flight = self._topology, self._flight
        return {
            "name": self._name,
            "version": self._version,
            "epoch": topology.epoch,
            "stores_up": sorted(topology.queues),
            "in_flight_parts": len(flight.parts),
            "in_flight_bytes": flight.bytes_held,
            **self._figures.everything(),
        }

    def _prove_ready(self, caller: Caller, now: float) -> None:
        if self._is_full():
            self._refuse_busy(caller)
            return
        topology = self._topology
        ready = {"router": self._name, "epoch": topology.epoch, "partitions": len(topology.leaders)}
        self._start_barrier(caller, pack(ready), now)

    def _scatter(
        self, gather: Gather, caller: Caller, pieces: Iterable[tuple[int, bytes]], now: float
    ) -> None:
        self._flight.bytes_held += gather.size
        for index, (partition, ops) in enumerate(pieces):
            item = _item(caller.request, partition, ops)
            until, op = caller.deadline, gather.op
            part = Part(NOT_SENT, b"", 0, caller.arrived, until, 0, item, op, NOT_SENT, gather, index)
            self._dispatch.place(part, now)


def decode(message: list[bytes]) -> Request:
    """The request in [client, frame]; ProtocolError when it is none, or not so framed."""
    if len(message) != 2:
        raise ProtocolError(f"a message is one frame, this one has {len(message) - 1}")
    return decode_request(message[1])


def answer_within_ms(timeout_ms: int) -> int:
    """How long the router itself may take for a caller that waits `timeout_ms`."""
    timeout_ms = min(timeout_ms, TIMEOUT_MS_MAX)
    return timeout_ms - min(timeout_ms // MARGIN_SHORT, MARGIN_MS)


def _item(request: Request, partition: int, ops: bytes) -> Item:
    """An item without token and timeout: they are filled in when it is sent."""
    return Item(
        NOT_SENT,
        partition,
        0,
        request.read_mode,
        request.flags,
        request.client_id,
        request.sequence,
        request.acked_below,
        ops,
    )
