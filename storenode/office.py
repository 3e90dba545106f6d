"""The office of the controller: who leads the control partition runs one (docs/control.md sections 1, 4).

Owns its beginning and its end, its one write under way, and the commands that wait. Must not know what a
controller decides, nor sockets: orders leave through `order`, answers through `answer(peer, token, status,
body)`. Loop thread: `tick` is called several times a second, `end_turn` at the end of each turn.

Invariants
- A controller exists only in the term in which this node leads the control partition and has read its state.
- At most one write is under way, and no step or command is taken meanwhile. What is in force is what was
  read, or written since.
- A command is answered once: after its write, or when it is known that there will be none.
- Nothing that a message or a state holds raises out of here; a controller that fails is begun anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kvclient.errors import ProtocolError, Status
from kvclient.protocol import decode_error, encode_error, pack
from shared import frames, logs
from shared.clock import Clock
from shared.controlmessages import ControlRequest
from shared.messagefields import DRY_RUN
from shared.metrics import Counters
from storenode.control.commands import Refused
from storenode.control.controller import Controller, Order
from storenode.control.reports import Report, decode_report
from storenode.control.state import ControlState
from storenode.maps import Maps
from storenode.raft import Role
from storenode.raft.messages import NOBODY
from storenode.replica.replica import Replica
from storenode.statekey import ABSENT, Conflict, Found, NotDone, Outcome, StateKey, Written

STEP_S: Final = 1.0
NEWS_S: Final = 0.1
"""After a report that changed something: more of them come together."""

SHARE: Final = 10
"""A step is followed by a pause of so many times what it took: the loop serves requests."""

AGAIN_S: Final = 0.2
"""After a read that failed."""
BROKEN_S: Final = 10.0
"""After a state that is none, or a controller that failed: only people can mend that."""

WAITING_MAX: Final = 64
"""Commands that wait for a write; writes take milliseconds."""

BUSY_MS: Final = 100

_COUNTERS: Final = ("steps", "writes", "conflicts", "orders", "commands", "failures")
(STEPS, WRITES, CONFLICTS, ORDERS, COMMANDS, FAILURES) = range(6)

_UNREAD: Final = encode_error("the controller has not read its state yet", retry_after_ms=BUSY_MS)
_CROWDED: Final = encode_error("too many commands wait for the controller", retry_after_ms=BUSY_MS)
_OVERTAKEN: Final = encode_error("another change came first; nothing was done", retry_after_ms=BUSY_MS)
_LATE: Final = encode_error("the deadline passed before the controller came to it; nothing was done")
_FOREIGN: Final = encode_error("this store is of another cluster")
_LOST: Final = encode_error("this may or may not have been done: its store is not the controller any more")

_PASSING: Final = (Status.NOT_LEADER, Status.BUSY, Status.TIMEOUT)
_MAYBE: Final = (Status.OUTCOME_UNKNOWN, Status.INTERNAL)

_log = logs.get("office")


class _Asked(NamedTuple):
    """A command, who gave it, and until when (monotonic)."""

    peer: bytes
    request: ControlRequest
    deadline: float


class _Writing(NamedTuple):
    """The state that is being written; whom to answer what when it is in force."""

    state: ControlState
    asked: _Asked | None
    body: dict[str, Any]


class Office:
    """Of one node. `cluster` is XXH64 of the cluster id; `replica` gives this node's replica of the control
    partition; `in_force` gets each state that was read or written.
    """

    def __init__(
        self,
        node: int,
        cluster: int,
        clock: Clock,
        maps: Maps,
        replica: Callable[[], Replica | None],
        order: Callable[[Order], object],
        answer: Callable[[bytes, int, int, bytes], object],
        in_force: Callable[[ControlState], object],
    ) -> None:
        self.counters = Counters(_COUNTERS)
        self.key = StateKey(clock)
        self._node = node
        self._cluster = cluster
        self._clock = clock
        self._maps = maps
        self._replica = replica
        self._order = order
        self._answer = answer
        self._in_force = in_force
        self._term = 0
        self._controller: Controller | None = None
        self._version = 0
        self._writing: _Writing | None = None
        self._waiting: deque[_Asked] = deque()
        self._read_at = self._step_at = self._rest_until = float("-inf")
        self._broken = ""
        self._hinted = 0

    @property
    def controller(self) -> int:
        """The node of the controller, as far as this one knows; 0: unknown."""
        replica = self._replica()
        if replica is None or replica.failure is not None or not replica.raft.configuration.voters:
            return NOBODY
        return replica.raft.leader

    @property
    def sits(self) -> bool:
        """Whether the controller is here, and knows its state."""
        return self._controller is not None

    # -- what comes

    def hear(self, payload: bytes) -> None:
        """An encoded report of another store. ProtocolError."""
        if self._controller is not None:
            self.hear_report(decode_report(payload))

    def hear_report(self, report: Report) -> None:
        """A report, this store's own among them."""
        if self._controller is None:
            return
        now = self._clock.monotonic()
        try:
            if self._controller.hear(report, now):
                self._step_at = min(self._step_at, now + NEWS_S)
        except Exception:  # noqa: BLE001 - a defect; the loop goes on
            self._fail("hear")

    def on_request(self, peer: bytes, request: ControlRequest) -> None:
        """Takes one command; whatever it says, it is answered."""
        now = self._clock.monotonic()
        asked = _Asked(peer, request, now + request.timeout_ms / 1000)
        replica = self._leading()
        if request.cluster not in (0, self._cluster):
            self._reply(asked, Status.INVALID_REQUEST, _FOREIGN)
        elif replica is None:
            self._reply(asked, Status.NOT_LEADER, self._not_leader())
        elif self._controller is None:
            self._reply(asked, *self._not_yet())
        elif len(self._waiting) >= WAITING_MAX:
            self._reply(asked, Status.BUSY, _CROWDED)
        else:
            self._waiting.append(asked)
            self._proceed(replica, now)

    def tick(self) -> None:
        """Time passes."""
        now = self._clock.monotonic()
        replica = self._leading()
        if replica is None:
            self._leave()
        elif self._controller is not None:
            self._proceed(replica, now)
        elif now >= self._read_at and not self.key.busy:
            self._read_at = now + AGAIN_S
            self.key.read(replica, self._was_read)

    def end_turn(self) -> bool:
        """Takes what the replica has answered; whether there was anything, which it may have to do with."""
        return self.key.end_turn()

    # -- a term of office

    def _leading(self) -> Replica | None:
        """The replica, if it leads in the term of this office; a new term begins a new office."""
        replica = self._replica()
        if replica is None or replica.failure is not None or replica.raft.role is not Role.LEADER:
            return None
        if replica.raft.term != self._term:
            self._leave()
            self._term = replica.raft.term
            self._read_at = float("-inf")
        return replica

    def _leave(self) -> None:
        """There is no controller here any more. A write under way is answered when its replica says how it
        ended.
        """
        if self._controller is not None:
            _log.info("controller_left", term=self._term)
        self._controller = None
        self._broken = ""
        waiting, self._waiting = self._waiting, deque()
        for asked in waiting:
            if self.controller == self._node:
                self._reply(asked, Status.BUSY, _UNREAD)
            else:
                self._reply(asked, Status.NOT_LEADER, self._not_leader())

    def _fail(self, what: str) -> None:
        """The controller met its own defect: another one begins, after a while."""
        _log.exception("controller_failed", what=what)
        self.counters.values[FAILURES] += 1
        self._leave()
        self._broken = "the controller failed; the log of its store says how"
        self._read_at = self._clock.monotonic() + BROKEN_S

    def _was_read(self, outcome: Outcome) -> None:
        replica, now = self._leading(), self._clock.monotonic()
        if replica is None or self._controller is not None:
            return
        if isinstance(outcome, NotDone):
            if outcome.status not in _PASSING:
                self._unreadable(str(decode_error(outcome.body)["message"]))
            return
        assert isinstance(outcome, Found), "a read finds something, or is not done"
        try:
            if outcome.version == ABSENT:
                first = ControlState.first(self._maps.map)
                _log.info("control_state_founded", epoch=first.map.epoch)
                self._write(replica, _Writing(first, None, {}), ABSENT)
            else:
                self._begin(ControlState.decode(outcome.value), outcome.version, now)
        except ProtocolError as error:
            self._unreadable(error.message)
        except Exception:  # noqa: BLE001 - a defect; the loop goes on
            self._fail("begin")

    def _unreadable(self, reason: str) -> None:
        self._broken = f"the control state cannot be read: {reason}"
        self._read_at = self._clock.monotonic() + BROKEN_S
        consequence = "there is no controller; reads and writes go on, but the cluster does not change"
        _log.error("control_state_not_read", reason=reason, consequence=consequence)

    def _begin(self, state: ControlState, version: int, now: float) -> None:
        self._controller = Controller(self._node, state, now)
        self._version = version
        self._broken = ""
        self._step_at = self._rest_until = now
        _log.info("controller", term=self._term, epoch=state.map.epoch, moves=len(state.moves))
        self._in_force(state)

    # -- steps and commands

    def _proceed(self, replica: Replica, now: float) -> None:
        """What waits and can be done now."""
        while self._waiting and not self.key.busy and self._controller is not None:
            asked = self._waiting.popleft()
            if now >= asked.deadline:
                self._reply(asked, Status.TIMEOUT, _LATE)
            else:
                self._carry_out(self._controller, replica, asked, now)
        if now >= max(self._step_at, self._rest_until) and not self.key.busy and self._controller is not None:
            self._step(self._controller, replica, now)

    def _step(self, controller: Controller, replica: Replica, now: float) -> None:
        self._step_at = now + STEP_S
        self.counters.values[STEPS] += 1
        try:
            state, orders = controller.step(now)
            self.counters.values[ORDERS] += len(orders)
            for order in orders:
                self._order(order)
            if state is not None:
                self._write(replica, _Writing(state, None, {}), self._version)
        except Exception:  # noqa: BLE001 - a defect; the loop goes on
            self._fail("step")
        ended = self._clock.monotonic()
        self._rest_until = ended + SHARE * (ended - now)

    def _carry_out(self, controller: Controller, replica: Replica, asked: _Asked, now: float) -> None:
        request = asked.request
        self.counters.values[COMMANDS] += 1
        try:
            given = frames.decode(request.arguments)
            dry_run = bool(request.flags & DRY_RUN)
            outcome = controller.command(request.command, given, dry_run, now)
            if outcome.state is None:
                self._reply(asked, Status.OK, pack(outcome.body))
            else:
                self._write(replica, _Writing(outcome.state, asked, outcome.body), self._version)
        except ProtocolError as error:
            self._reply(asked, Status.INVALID_REQUEST, encode_error(error.message))
        except Refused as refused:
            self._reply(asked, refused.status, pack({"message": str(refused), **refused.details}))
        except Exception:  # noqa: BLE001 - a defect; the loop goes on
            self._reply(asked, Status.INTERNAL, encode_error("a defect of the controller; its log says more"))
            self._fail(request.command)

    # -- the state

    def _write(self, replica: Replica, writing: _Writing, version: int) -> None:
        self._writing = writing
        self.counters.values[WRITES] += 1
        self.key.write(replica, writing.state.encode(), version, self._was_written)

    def _was_written(self, outcome: Outcome) -> None:
        writing, self._writing = self._writing, None
        assert writing is not None, "only what was written is answered"
        if isinstance(outcome, Written):
            self._in_force_now(writing, outcome.version)
        elif isinstance(outcome, Conflict):
            self.counters.values[CONFLICTS] += 1
            self._reply(writing.asked, Status.BUSY, _OVERTAKEN)
            self._leave()  # the state is another than this controller knows
            self._read_at = float("-inf")
        elif isinstance(outcome, NotDone):
            if outcome.status in _MAYBE:
                self._reply(writing.asked, Status.OUTCOME_UNKNOWN, _LOST)
                self._leave()
            elif outcome.status == Status.NOT_LEADER:
                self._reply(writing.asked, Status.NOT_LEADER, self._not_leader())
            else:
                self._reply(writing.asked, outcome.status, outcome.body)

    def _in_force_now(self, writing: _Writing, version: int) -> None:
        now = self._clock.monotonic()
        self._reply(writing.asked, Status.OK, pack(writing.body))
        if self._controller is None:  # the first state of all, or a controller that has left: read it
            self._read_at = now
            return
        try:
            self._version = version
            self._controller.adopt(writing.state)
            self._in_force(writing.state)
            self._step_at = min(self._step_at, now + NEWS_S)
        except Exception:  # noqa: BLE001 - a defect; the loop goes on
            self._fail("adopt")

    # -- answers

    def _not_yet(self) -> tuple[int, bytes]:
        return (Status.UNAVAILABLE, encode_error(self._broken)) if self._broken else (Status.BUSY, _UNREAD)

    def _not_leader(self) -> bytes:
        """Names whom to ask: from a store that is not of the control partition one after the other of those
        that are.
        """
        replica = self._replica()
        leader = self.controller
        if replica is None or not replica.raft.configuration.voters:
            others = [node for node in self._maps.map.control if node != self._node]
            if others:
                self._hinted += 1
                leader = others[self._hinted % len(others)]
        return encode_error("the controller is not on this store", leader=leader)

    def _reply(self, asked: _Asked | None, status: int, body: bytes) -> None:
        if asked is not None:
            self._answer(asked.peer, asked.request.token, status, body)
