"""What the engines of a store's replicas say, added up.

Owns what each was last seen to say, and the totals: they only grow, also when a replica leaves, or its engine
is opened anew and counts from 0. A look at one engine costs some 0.1 ms of the loop, so who asks every second
has only AT_ONCE of them looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from storenode.raftframes import CONTROL
from storenode.replica.replica import Replica

AT_ONCE: Final = 32

_COUNTED: Final = (
    "flushes", "flush_bytes", "compactions", "compaction_bytes_read", "compaction_bytes_written",
    "jobs_failed",
)  # fmt: skip


class _Seen(NamedTuple):
    keys: int
    tables: int
    table_bytes: int
    memtable_bytes: int
    pressure: int
    failing: tuple[str, ...]
    damage: str | None
    compaction_debt_bytes: int
    counted: Mapping[str, int]


class EngineFigures:
    """Of one node. Loop thread."""

    def __init__(self) -> None:
        self._seen: dict[Replica, _Seen] = {}
        self._totals = dict.fromkeys((*_COUNTED, "stall_ms", "sessions_evicted"), 0)
        self._cache: Mapping[str, int] = {}
        self._turn = 0

    def look(self, replicas: Collection[Replica], at_most: int) -> None:
        """Look at so many of the engines, each in its turn. Replicas not named any more have left."""
        here = list(replicas)
        if len(self._seen) > len(here) or not self._seen.keys() <= set(here):
            self._seen = {one: self._seen[one] for one in here if one in self._seen}
        first = self._turn % len(here) if len(here) > at_most else 0
        self._turn = first + at_most
        for replica in (here + here)[first : first + min(at_most, len(here))]:
            self._look_at(replica)

    def _look_at(self, replica: Replica) -> None:
        stats = replica.machine.engine.stats()
        counted = {name: stats[name] for name in _COUNTED}
        counted["sessions_evicted"] = replica.machine.sessions.evicted
        counted["stall_ms"] = _stall_ms(stats)
        seen = self._seen.get(replica)
        before = {} if seen is None else seen.counted
        for name, count in counted.items():
            known = before.get(name, 0)
            self._totals[name] += count - known if count >= known else count
        self._cache = stats["cache"]  # one for all engines
        self._seen[replica] = _Seen(
            0 if replica.partition == CONTROL else _keys(stats),
            stats["tables"],
            stats["table_bytes"],
            stats["memtable_bytes"] + stats["memtables_retired_bytes"],
            stats["pressure"],
            tuple(f"{kind}: {failure['error']}" for kind, failure in stats["failures"].items()),
            stats["damage"],
            _debt_bytes(stats),
            counted,
        )

    def snapshot(self) -> dict[str, Any]:
        """Sums and counts since the start, `pressure` of the worst. `failing_jobs` keep flushes and
        compactions from getting done: writes end when that lasts.
        """
        seen = self._seen.values()
        return {
            "keys": sum(one.keys for one in seen),
            "tables": sum(one.tables for one in seen),
            "table_bytes": sum(one.table_bytes for one in seen),
            "memtable_bytes": sum(one.memtable_bytes for one in seen),
            "cache": dict(self._cache),
            **self._totals,
            "compaction_debt_bytes": sum(one.compaction_debt_bytes for one in seen),
            "pressure": max((one.pressure for one in seen), default=0),
            "failing_jobs": sorted({text for one in seen for text in one.failing}),
            "damage": [one.damage for one in seen if one.damage],
        }


def _keys(stats: Mapping[str, Any]) -> int:
    """An estimate: a key counts once for each of its versions that compaction has not merged yet."""
    entries: int = stats["memtable_entries"] + stats["table_entries"] - 2 * stats["table_deletions"]
    return max(0, entries)


def _stall_ms(stats: Mapping[str, Any]) -> int:
    """How long writers were asked to slow down or to stop."""
    reasons = [reason for degree in stats["backlog"].values() for reason in degree.values()]
    seconds: float = sum(reason["seconds"] for reason in reasons)
    return round(1000 * seconds)


def _debt_bytes(stats: Mapping[str, Any]) -> int:
    """What levels hold over the size from which on they are compacted."""
    over = [level for level in stats["levels"] if level["score"] > 1]
    return sum(round(level["bytes"] * (1 - 1 / level["score"])) for level in over)
