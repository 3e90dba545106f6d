"""Commands on their way: to the store that can carry one out, or to its successor, until one has answered.

Owns the commands under way and their attempts. Must not know sockets, what a command does, nor who can carry
it out: subclasses say that. `now` is handed in, monotonic seconds.

Invariants: a command is with one store, or waits for its next attempt. It is answered once. It may be sent
again after any loss: stores answer OK to what is the case already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf
from typing import Final, Generic, NamedTuple, TypeVar

from kvclient.errors import ProtocolError, Status
from kvclient.protocol import Kind, decode_error, encode_error
from router.topology import Topology
from shared.hashing import xxh64
from shared.messagefields import UINT32_MAX

COMMANDS_MAX: Final = 64  # operators, not traffic
HOPS_MAX: Final = 2  # attempts that go at once where a refusal points to: see router/retries.py
PAUSE_SECONDS: Final = 0.1  # an election takes a few of them
# The store gives up this much before its router does, so that its reason arrives: an eighth of what is left.
MARGIN_MS: Final = 50
NOBODY: Final = 0

_PASSING = frozenset({Status.BUSY, Status.NOT_LEADER, Status.WRONG_REPLICA})
# What a store says of the attempt that it has seen only.
_VERDICTS = frozenset({Status.CONDITION_FAILED, Status.INVALID_REQUEST})

Respond = Callable[[bytes, int, int, int, bytes], None]  # client, kind, request id, status, body
Then = Callable[[int, bytes, float], None]  # status, body, and when that came


class Asker(NamedTuple):
    """Who gave a command, and until when the answer is of use."""

    client: bytes
    request_id: int
    deadline: float


class Command(NamedTuple):
    """What errands need to know of any command."""

    name: str
    harmless: bool  # it changes nothing


What = TypeVar("What")
Request = TypeVar("Request")


class _Errand(Generic[What]):
    __slots__ = ("at", "command", "deadline", "due", "hops", "refusal", "sent", "then", "what")

    def __init__(self, what: What, command: Command, deadline: float, then: Then) -> None:
        self.what = what
        self.command = command
        self.deadline = deadline
        self.then = then
        self.at = NOBODY  # the store that has it
        self.due = inf  # the next attempt, while no store has it
        self.hops = 0
        self.sent = False  # an attempt was lost with its store, and may have been carried out
        self.refusal = ""


class Errands(ABC, Generic[What, Request]):
    """Those of one router. `outbox`: (node id, request) to send."""

    def __init__(self, topology: Topology, respond: Respond) -> None:
        self.outbox: list[tuple[int, Request]] = []
        self._topology = topology
        self._respond = respond
        self._under_way: dict[int, _Errand[What]] = {}
        self._token = 0

    # -- what subclasses know

    @abstractmethod
    def _where(self, what: What) -> tuple[int, str]:
        """The node to send to, or NOBODY and why."""

    @abstractmethod
    def _redirected(self, what: What, node: int, named: int, now: float) -> bool:
        """`node` cannot carry it out, and names who can (NOBODY: it knows nobody, or is not to be followed
        now). Whether another one that is up is known now.
        """

    @abstractmethod
    def _request(self, what: What, token: int, cluster: int, timeout_ms: int) -> Request:
        """The message to the store."""

    # -- in and out

    @property
    def pending(self) -> bool:
        """Whether any command has not been answered yet."""
        return bool(self._under_way)

    def is_with(self, node: int) -> bool:
        """Whether the node has a command that it has not answered."""
        return any(errand.at == node for errand in self._under_way.values())

    def _give(self, asker: Asker, status: int, body: bytes, _now: float) -> None:
        self._respond(asker.client, Kind.ADMIN, asker.request_id, status, body)

    def _start(self, what: What, command: Command, deadline: float, then: Then, now: float) -> None:
        if len(self._under_way) >= COMMANDS_MAX:
            then(Status.BUSY, encode_error("too many commands at once", retry_after_ms=100), now)
        else:
            self._place(_Errand(what, command, deadline, then), now)

    def on_reply(self, node: int, token: int, status: int, body: bytes, now: float) -> None:
        """A store's answer; that to an attempt that was given up is ignored."""
        errand = self._under_way.get(token)
        if errand is None or errand.at != node:
            return
        del self._under_way[token]
        if status not in _PASSING:
            self._end(errand, status, body, now)
            return
        message, leader, retry_after_ms = _read(body)
        errand.refusal = message
        pause = PAUSE_SECONDS
        if status == Status.BUSY:
            pause = retry_after_ms / 1000 if retry_after_ms else pause
        else:
            at_once = errand.hops < HOPS_MAX
            if self._redirected(errand.what, node, leader if at_once else NOBODY, now) and at_once:
                errand.hops += 1
                self._place(errand, now)
                return
        self._later(errand, now + pause)

    def on_unsent(self, node: int, token: int, now: float) -> None:
        """The socket of the node did not take it."""
        errand = self._under_way.get(token)
        if errand is not None and errand.at == node:
            del self._under_way[token]
            errand.refusal = f"the link to {self._topology.describe(node)} takes nothing"
            self._later(errand, now + PAUSE_SECONDS)

    def on_down(self, node: int, now: float) -> None:
        """The node went down with what it had: what becomes of that, its successor knows."""
        for token in [token for token, errand in self._under_way.items() if errand.at == node]:
            errand = self._under_way.pop(token)
            errand.sent = True
            errand.refusal = f"{self._topology.describe(node)} went away"
            self._later(errand, now + PAUSE_SECONDS)

    def on_tick(self, now: float) -> None:
        """What is late ends; what is due is sent once more."""
        for token, errand in list(self._under_way.items()):
            if errand.deadline <= now:
                del self._under_way[token]
                self._give_up(errand, now)
            elif errand.due <= now:
                del self._under_way[token]
                self._place(errand, now)

    def next_due(self) -> float:
        """When `on_tick` has to be called next."""
        return min((min(errand.due, errand.deadline) for errand in self._under_way.values()), default=inf)

    # -- attempts

    def _place(self, errand: _Errand[What], now: float) -> None:
        known = self._topology.map
        assert known is not None
        node, why = self._where(errand.what)
        if node == NOBODY:
            errand.refusal = why
            self._later(errand, now + PAUSE_SECONDS)
            return
        left_ms = max(1, int((errand.deadline - now) * 1000))
        timeout_ms = min(UINT32_MAX, left_ms - min(left_ms // 8, MARGIN_MS))
        errand.at, errand.due = node, inf
        token = self._track(errand)
        cluster = xxh64(known.cluster_id.encode())
        self.outbox.append((node, self._request(errand.what, token, cluster, timeout_ms)))

    def _later(self, errand: _Errand[What], due: float) -> None:
        errand.at, errand.due, errand.hops = NOBODY, due, 0
        self._track(errand)

    def _track(self, errand: _Errand[What]) -> int:
        self._token += 1
        self._under_way[self._token] = errand
        return self._token

    # -- the end

    def _end(self, errand: _Errand[What], status: int, body: bytes, now: float) -> None:
        if errand.sent and status in _VERDICTS and not errand.command.harmless:
            text = f"an earlier attempt may have been carried out; the next one was refused: {_read(body)[0]}"
            status, body = Status.OUTCOME_UNKNOWN, encode_error(text)
        errand.then(status, body, now)

    def _give_up(self, errand: _Errand[What], now: float) -> None:
        status, text = Status.UNAVAILABLE, f"{errand.refusal}; nothing was changed"
        if (errand.at != NOBODY or errand.sent) and not errand.command.harmless:
            why = errand.refusal if errand.sent else f"{self._topology.describe(errand.at)} did not answer"
            text = f"{why}; {errand.command.name} may have been done, or may go on"
            status = Status.OUTCOME_UNKNOWN
        elif errand.at != NOBODY:
            text = f"{self._topology.describe(errand.at)} did not answer within the deadline"
            status = Status.TIMEOUT
        errand.then(status, encode_error(text), now)


def _read(body: bytes) -> tuple[str, int, int]:
    """What a refusal says: message, leader, pause in milliseconds; 0 if it does not say."""
    try:
        details = decode_error(body)
    except ProtocolError:
        return "refused by the store, which gave no reason", NOBODY, 0
    return details["message"], details.get("leader", NOBODY), max(0, details.get("retry_after_ms", 0))
