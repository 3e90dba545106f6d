"""Linearizable reads: heartbeat rounds of a leader, and questions that a follower has sent to its leader.

Owns contexts, what waits for them, and when they were sent. Must not know messages, quorums or the log.

A context is given once: the answer to an old heartbeat, however late it is found, confirms nothing newer
(etcd#20418). Dissertation 6.4.
"""

from __future__ import annotations

from collections import deque
from typing import Final

NEVER: Final = float("-inf")


class LeaderReads:
    """The rounds of one leadership. Contexts count up from 1; the term tells leaderships apart."""

    __slots__ = ("_rounds", "_sent", "confirmed", "context", "lease_start")

    def __init__(self) -> None:
        self.context = 0
        self.confirmed = 0
        self.lease_start = NEVER
        """When the newest heartbeat was sent that a quorum has answered."""
        self._rounds: deque[tuple[int, int, list[object]]] = deque()  # context, index, tokens
        self._sent: deque[tuple[int, float]] = deque()  # context, when

    def begin(self, now: float, index: int, tokens: list[object]) -> int:
        """A heartbeat leaves; returns its context. `tokens` may read at `index` once a quorum answers."""
        self.context += 1
        self._sent.append((self.context, now))
        if tokens:
            self._rounds.append((self.context, index, tokens))
        return self.context

    def confirm(self, context: int) -> list[tuple[int, list[object]]]:
        """A quorum has answered `context` or later ones: (index, tokens) of all rounds up to it."""
        self.confirmed = context
        sent = self._sent
        while sent and sent[0][0] <= context:
            self.lease_start = sent.popleft()[1]
        ready = []
        while self._rounds and self._rounds[0][0] <= context:
            _, index, tokens = self._rounds.popleft()
            ready.append((index, tokens))
        return ready

    def void_lease(self) -> None:
        """What has been sent until now promises no lease any more."""
        self._sent.clear()
        self.lease_start = NEVER

    def abandon(self) -> list[object]:
        """Leadership is lost: all tokens that wait."""
        tokens = [token for _, _, tokens in self._rounds for token in tokens]
        self._rounds.clear()
        return tokens


class ForwardedReads:
    """A follower's questions to its leader. `number` must begin where no earlier process of this node has
    been: an answer to that one must not pass for one to this.
    """

    __slots__ = ("_asked", "_number")

    def __init__(self, number: int) -> None:
        self._number = number
        self._asked: dict[int, tuple[int, list[object]]] = {}  # number -> tick, tokens

    @property
    def waiting(self) -> bool:
        return bool(self._asked)

    def ask(self, tick: int, tokens: list[object]) -> int:
        """The number to ask with, for all of `tokens`."""
        self._number += 1
        self._asked[self._number] = tick, tokens
        return self._number

    def answered(self, number: int) -> list[object]:
        """The tokens that were asked for with `number`; none if it is not waited for."""
        return self._asked.pop(number, (0, []))[1]

    def late(self, before_tick: int) -> list[object]:
        """The tokens of questions older than that: given up, for the question or its answer was lost."""
        tokens: list[object] = []
        for number in [number for number, (tick, _) in self._asked.items() if tick < before_tick]:
            tokens += self._asked.pop(number)[1]
        return tokens

    def abandon(self) -> list[object]:
        """The leader is gone: all tokens that wait."""
        tokens = [token for _, tokens in self._asked.values() for token in tokens]
        self._asked.clear()
        return tokens
