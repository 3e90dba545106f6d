"""A replica whose node has left its group goes for good; what the node has promised stays (docs/raft.md
section 9).

Owns the order, which a crash may end at any step:

1. nothing reaches the replica any more; its engine is closed;
2. the engine is set aside, durably;
3. one batch makes the log forget the group and remember its term and vote;
4. the engine is removed.

A start takes 2 back unless 3 is durable, and otherwise does 4 (`storenode.founding.open_groups`). So the data
never comes back without the log that belongs to it, and no vote is ever forgotten. Must not know who asks, or
whether the replica may go: `storenode.replica.membership`. Loop thread; disks are waited for beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from shared import logs
from storenode.beside import Beside
from storenode.groups import Groups
from storenode.raft.messages import HardState
from storenode.replica.replica import Replica

OnErased = Callable[[str | None], object]
"""Gets None when it is done, or why it is not."""

_log = logs.get("erasing")


class Engines(Protocol):
    """What is needed of `storenode.engines.Engines`."""

    def end_jobs(self, group: int) -> None: ...
    def close(self, group: int) -> None: ...
    def set_aside(self, group: int) -> None: ...
    def remove(self, group: int) -> None: ...


class _Erasure:
    """Of one group. `again`: how it goes on after the disk has refused; None: it is under way."""

    __slots__ = ("again", "group", "promised", "waiting")

    def __init__(self, group: int, promised: HardState, done: OnErased) -> None:
        self.group = group
        self.promised = promised
        self.waiting = [done]
        self.again: Callable[[], object] | None = None


class Erasing:
    """Of one node."""

    def __init__(self, groups: Groups, engines: Engines, beside: Beside) -> None:
        self._groups = groups
        self._engines = engines
        self._beside = beside
        self._erasures: dict[int, _Erasure] = {}

    def under_way(self, group: int) -> bool:
        """It has begun and is not at its end, perhaps since the disk refuses."""
        return group in self._erasures

    def erase(self, replica: Replica, done: OnErased) -> None:
        """`done` follows when nothing is left of the replica but its promises."""
        raft, group = replica.raft, replica.partition
        self._groups.withdraw(replica)
        replica.retire("the replica is being erased: its node left the group")
        erasure = _Erasure(group, HardState(raft.term, raft.vote, 0), done)
        self._erasures[group] = erasure
        _log.info("erasing", partition=group, applied=raft.applied_index, term=raft.term)
        self._do(erasure, self._engines.end_jobs, self._close)

    def join(self, group: int, done: OnErased) -> None:
        """Waits for one that has begun, which is tried again where it stood still."""
        erasure = self._erasures[group]
        erasure.waiting.append(done)
        if erasure.again is not None:
            again, erasure.again = erasure.again, None
            again()

    def _do(
        self, erasure: _Erasure, work: Callable[[int], object], then: Callable[[_Erasure], object]
    ) -> None:
        def ended(outcome: object) -> None:
            if isinstance(outcome, Exception):
                erasure.again = partial(self._do, erasure, work, then)
                self._tell(erasure, f"its data cannot be removed: {outcome}")
            else:
                then(erasure)

        self._beside(partial(work, erasure.group), ended)

    def _close(self, erasure: _Erasure) -> None:
        self._engines.close(erasure.group)
        self._do(erasure, self._engines.set_aside, self._forget)

    def _forget(self, erasure: _Erasure) -> None:
        self._groups.forget(
            erasure.group,
            erasure.promised,
            lambda: self._do(erasure, self._engines.remove, self._end),
        )

    def _end(self, erasure: _Erasure) -> None:
        del self._erasures[erasure.group]
        self._tell(erasure, None)

    def _tell(self, erasure: _Erasure, reason: str | None) -> None:
        if reason is None:
            _log.info("erased", partition=erasure.group)
        else:
            _log.error("erase_failed", partition=erasure.group, reason=reason)
        waiting, erasure.waiting = erasure.waiting, []
        for done in waiting:
            done(reason)
