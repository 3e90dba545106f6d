"""storenode/enginefigures.py: sums that are right, counts that never fall, and a bounded look."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from storenode.enginefigures import EngineFigures


class Engine:
    """What a replica's engine says, and how often it was looked at."""

    def __init__(self, flushes: int = 0, entries: int = 0) -> None:
        self.flushes, self.entries, self.looks = flushes, entries, 0

    def stats(self) -> dict[str, Any]:
        self.looks += 1
        counts = dict.fromkeys(
            (
                "flush_bytes",
                "compactions",
                "compaction_bytes_read",
                "compaction_bytes_written",
                "jobs_failed",
            ),
            0,
        )
        levels = dict.fromkeys(
            ("memtable_bytes", "memtables_retired_bytes", "tables", "table_bytes", "table_entries",
             "table_deletions"), 0,
        )  # fmt: skip
        state = {
            "pressure": 0, "failures": {}, "damage": None, "cache": {"hits": self.looks},
            "backlog": {"slow": {"memory": {"times": 1, "seconds": 0.25}}, "stop": {}},
            "levels": [{"score": 0.5, "bytes": 100}, {"score": 2.0, "bytes": 1000}],
        }  # fmt: skip
        return {**counts, **levels, **state, "flushes": self.flushes, "memtable_entries": self.entries}


def replica(partition: int, engine: Engine) -> Any:
    return SimpleNamespace(
        partition=partition, machine=SimpleNamespace(engine=engine, sessions=SimpleNamespace(evicted=0))
    )


def hashable(*engines: Engine) -> list[Any]:
    class One(SimpleNamespace):
        __hash__ = object.__hash__

    return [One(**vars(replica(number, engine))) for number, engine in enumerate(engines)]


def test_counts_do_not_fall_when_a_replica_leaves_or_its_engine_begins_anew() -> None:
    first, second = Engine(flushes=5, entries=10), Engine(flushes=7, entries=1)
    replicas, figures = hashable(first, second), EngineFigures()
    figures.look(replicas, 10)
    assert (figures.snapshot()["flushes"], figures.snapshot()["keys"]) == (12, 11)
    assert (figures.snapshot()["stall_ms"], figures.snapshot()["compaction_debt_bytes"]) == (500, 1000)
    second.flushes = 2
    figures.look(replicas, 10)
    assert figures.snapshot()["flushes"] == 14
    figures.look(replicas[1:], 10)
    assert (figures.snapshot()["flushes"], figures.snapshot()["keys"]) == (14, 1)


def test_of_many_only_so_many_are_looked_at_and_all_in_their_turn() -> None:
    engines = [Engine(entries=1) for _ in range(10)]
    replicas, figures = hashable(*engines), EngineFigures()
    for _ in range(5):
        before = sum(engine.looks for engine in engines)
        figures.look(replicas, 4)
        assert sum(engine.looks for engine in engines) == before + 4
    assert [engine.looks for engine in engines] == [2] * 10
    assert figures.snapshot()["keys"] == 10
