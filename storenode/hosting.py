"""Partitions that this node hosts beyond those that it founded: it becomes ready to join their groups.

Owns the order: engine, then log, then the answer. Loop thread. Must not know who asks.

A replica made here has promised nothing, and has no vote until its group says so; it may wait for ever. What
was hosted once is opened again by each start, for the log knows the group from now on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from kvclient.errors import KVError
from shared import logs
from storenode.engine import EngineError
from storenode.founding import Founder
from storenode.replica.statemachine import EngineFace

OnHosted = Callable[[str | None], object]

_log = logs.get("hosting")


class Hosting:
    """Of one node. `open_engine` opens, or makes, the engine of a partition; each replica has a `random`."""

    def __init__(
        self,
        founder: Founder,
        open_engine: Callable[[int], EngineFace],
        random: Callable[[], Random] = Random,
    ) -> None:
        self._founder = founder
        self._random = random
        self._open_engine = open_engine
        self._waiting: dict[int, list[OnHosted]] = {}

    def host(self, partition: int, done: OnHosted) -> None:
        """`done` gets None when the replica lives, or why there is none. The partition has none yet."""
        waiting = self._waiting.get(partition)
        if waiting is not None:
            waiting.append(done)
            return
        try:
            engine = self._open_engine(partition)
        except (EngineError, KVError, OSError, ValueError) as error:
            _log.error("cannot_host", partition=partition, error=str(error))
            done(f"its engine cannot be opened: {type(error).__name__}: {error}")
            return
        self._waiting[partition] = [done]
        self._founder.join(partition, engine, self._random(), partial(self._lives, partition))

    def _lives(self, partition: int) -> None:
        _log.info("hosting", partition=partition)
        for done in self._waiting.pop(partition):
            done(None)
