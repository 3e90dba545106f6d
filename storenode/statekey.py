"""The one key of the control partition, `state`, read and written through this node's replica
(docs/control.md section 1).

Owns the ops and what their answers mean. Must not know what the value says. One call at a time; its outcome
is handed over by `end_turn`, never while the replica is at work. Loop thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from kvclient import protocol
from kvclient.errors import ProtocolError, Status
from shared.clock import Clock
from storenode.replica.replica import Replica

KEY: Final = b"state"
ABSENT: Final = 0
"""The version of a key that is not there."""

CALL_S: Final = 5.0
"""Until a call that is not in the log is given up."""


class Found(NamedTuple):
    """What the key has, of a moment within the call; b"" and ABSENT: it is not there."""

    value: bytes
    version: int


class Written(NamedTuple):
    """The value is in force, with this version."""

    version: int


class Conflict(NamedTuple):
    """Nothing was written: the key has another version."""

    version: int


class NotDone(NamedTuple):
    """The replica's refusal. OUTCOME_UNKNOWN, INTERNAL: a write may be in force all the same; with any other
    status nothing was written.
    """

    status: int
    body: bytes


Outcome = Found | Written | Conflict | NotDone

_route: Final = b""


class StateKey:
    """Of one node. `on_answer` is what the replica answers to."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._token = 0
        self._done: Callable[[Outcome], object] | None = None
        self._answer: NotDone | None = None

    @property
    def busy(self) -> bool:
        """A call is under way."""
        return self._done is not None

    def read(self, replica: Replica, done: Callable[[Outcome], object]) -> None:
        """Linearizable. `done` gets Found or NotDone."""
        now = self._begin(done)
        replica.read(
            (_route, self._token), protocol.encode_get(KEY), protocol.LINEARIZABLE, now + CALL_S, now
        )

    def write(self, replica: Replica, value: bytes, version: int, done: Callable[[Outcome], object]) -> None:
        """If the key has `version`. `done` gets Written, Conflict or NotDone. A retry would meet the version
        that it made itself, so there is no session.
        """
        now = self._begin(done)
        condition = protocol.absent() if version == ABSENT else protocol.version_equals(version)
        ops = protocol.encode_put(KEY, value, None, condition)
        replica.propose((_route, self._token), 0, 0, 0, 0, ops, now + CALL_S, now)

    def _begin(self, done: Callable[[Outcome], object]) -> float:
        assert self._done is None, "one call at a time"
        self._token += 1
        self._done, self._answer = done, None
        return self._clock.monotonic()

    def on_answer(self, router: bytes, token: int, status: int, body: bytes) -> None:
        """Of the replica, once for each call."""
        if token == self._token:
            self._answer = NotDone(status, body)

    def end_turn(self) -> bool:
        """Hands over what has come; whether anything has."""
        done, answer = self._done, self._answer
        if done is None or answer is None:
            return False
        self._done = self._answer = None
        done(_meaning(answer))
        return True


def _meaning(answer: NotDone) -> Outcome:
    if answer.status != Status.OK:
        return answer
    try:
        (result,) = protocol.decode_results(answer.body)
        if result[0] == Status.NOT_FOUND:
            return Found(b"", ABSENT)
        if result[0] == Status.CONDITION_FAILED:
            return Conflict(result[1])
        if result[0] == Status.OK:
            return Found(*result[1:3]) if len(result) > 2 else Written(result[1])
        return NotDone(result[0], protocol.encode_error(str(result[1])))
    except (ProtocolError, ValueError, IndexError, TypeError) as error:
        return NotDone(Status.INTERNAL, protocol.encode_error(f"the replica's answer is none: {error}"))
