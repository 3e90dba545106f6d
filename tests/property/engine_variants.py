"""Option sets for the metamorphic tests, from tiny to huge, and an engine that runs operation files under
one of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import attrs

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import InvalidRequest
from storenode.engine import Options, Shared, Snapshot, TableWriter
from tests.property.engine_operations import FIRST_NOW_MS, MALFORMED, Step, encode
from tests.property.test_engine_model import Operation

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Variant(NamedTuple):
    """How an engine is opened. Without its own options it flushes and compacts all the time."""

    name: str
    options: dict[str, Any]
    cache_bytes: int = 64 * KIB
    budget_bytes: int = 64 * MIB
    workers: int = 2

    def opened_with(self) -> Options:
        small = {
            "memtable_bytes": 16 * KIB,
            "table_bytes": 16 * KIB,
            "base_bytes": 32 * KIB,
            "level0_trigger": 2,
            "level_ratio": 2,
        }
        return Options(**(small | self.options))


HUGE = {
    "memtable_bytes": GIB,
    "block_bytes": 16 * MIB,
    "bits_per_key": 100,
    "table_bytes": GIB,
    "level0_trigger": 100,
    "level0_slow": 200,
    "level0_stop": 300,
    "base_bytes": GIB,
    "level_ratio": 100,
}

TINY = {"memtable_bytes": 1, "block_bytes": 1, "table_bytes": 1 * KIB, "base_bytes": 1, "level0_trigger": 1}

STANDARD = [
    Variant("small", {}),
    Variant("defaults", {field.name: field.default for field in attrs.fields(Options)}, cache_bytes=32 * MIB),
    Variant("one worker", {}, workers=1),
    Variant("three workers", {}, workers=3),
    Variant("no cache", {}, cache_bytes=0),
    Variant("cache of one block", {}, cache_bytes=4 * KIB),
    *(Variant(f"restart interval {n}", {"restart_interval": n}) for n in (1, 2, 16, 64)),
    Variant("one restart a block", {"restart_interval": 1 << 30, "block_bytes": 64 * KIB}),
    *(Variant(f"{n} bits per key", {"bits_per_key": n}) for n in (1, 5, 20, 100)),
    *(Variant(f"compression {name}", {"compression": name}) for name in ("none", "lz4", "zstd")),
    Variant("an entry a block", {"block_bytes": 1}),
    Variant("blocks of 64 bytes", {"block_bytes": 64}, cache_bytes=0),
    Variant("blocks of 1 MiB", {"block_bytes": MIB}),
    Variant("an entry a memtable", {"memtable_bytes": 1}),
    Variant("memtables of 4 KiB", {"memtable_bytes": 4 * KIB, "level0_trigger": 4}),
    Variant("tables of 1 KiB", {"table_bytes": KIB}),
    Variant("levels of one table", {"base_bytes": 1, "table_bytes": 4 * KIB, "level0_trigger": 1}),
    Variant("flat", {"base_bytes": GIB, "level_ratio": 100}),
    Variant("no compaction", {"level0_trigger": 1000, "level0_slow": 1000, "level0_stop": 1000}),
    Variant("no budget", {"memtable_bytes": MIB}, budget_bytes=1),
    Variant("tiny", TINY, cache_bytes=0, budget_bytes=1),
    Variant("huge", HUGE, cache_bytes=GIB, budget_bytes=GIB, workers=3),
]


def random_variant(source: random.Random) -> Variant:
    """Anything, also what nobody would choose."""
    trigger = source.choice([1, 1, 2, 4, 20])
    slow = trigger + source.choice([0, 1, 30])
    options = {
        "memtable_bytes": 1 << source.randrange(25),
        "block_bytes": 1 << source.randrange(21),
        "restart_interval": source.choice([1, 2, 3, 16, 64, 1000]),
        "bits_per_key": source.choice([1, 2, 10, 15, 64]),
        "compression": source.choice(["auto", "none", "lz4", "zstd"]),
        "table_bytes": 1 << source.randrange(8, 25),
        "level0_trigger": trigger,
        "level0_slow": slow,
        "level0_stop": slow + source.choice([0, 5]),
        "base_bytes": 1 << source.randrange(25),
        "level_ratio": source.choice([2, 3, 10]),
    }
    return Variant(
        "random",
        options,
        cache_bytes=source.choice([0, 1, 4 * KIB, MIB]),
        budget_bytes=1 << source.randrange(25),
        workers=source.choice([1, 2, 3]),
    )


class Subject:
    """An engine that executes steps: each answers in the form of engine_operations.Expected."""

    def __init__(self, directory: Path, variant: Variant) -> None:
        self._directory = str(directory)
        self._variant = variant
        self._now = FIRST_NOW_MS
        self._snapshots: dict[int, Snapshot] = {}
        self._open()

    def run(self, step: Step) -> Any:
        name, *arguments = step
        return getattr(self, f"_{name}")(*arguments)

    def close(self) -> list[str]:
        """Closes everything; what is wrong with the files, or went wrong meanwhile."""
        stats = self._engine.stats()
        problems = self._engine.verify()
        problems += [f"{what}: {stats[what]}" for what in ("failures", "broken", "damage") if stats[what]]
        self._shut()
        for snapshot in self._snapshots.values():
            snapshot.close()
        return problems

    def _open(self) -> None:
        variant = self._variant
        self._shared = Shared(
            self._directory,
            cache_bytes=variant.cache_bytes,
            memtable_bytes=variant.budget_bytes,
            workers=variant.workers,
        )
        self._engine = engine_package.open(
            self._directory, options=variant.opened_with(), shared=self._shared, engine_id=7
        )

    def _shut(self) -> None:
        self._engine.close()
        self._shared.close()

    def _reopen(self) -> None:
        self._shut()
        self._open()

    def _entries(self, entries: list[tuple[int, int, list[Operation]]]) -> list[Any]:
        sequence, logged = self._engine.next_sequence, []
        for passed, left_out, operations in entries:
            self._now += passed
            logged.append((sequence + left_out, self._now, encode(operations)))
            sequence += left_out + len(operations)
        wal = self._engine.append(logged)
        results = []
        for first, now_ms, ops in logged:
            results += _results(self._engine.apply(ops, first, now_ms, wal))
        return results

    def _malformed(self) -> str:
        sequence = self._engine.next_sequence
        wal = self._engine.append([(sequence, self._now, MALFORMED)])
        try:
            self._engine.apply(MALFORMED, sequence, self._now, wal)
        except InvalidRequest:
            return "refused"
        return "executed"

    def _read(self, later: int, operations: list[Operation]) -> list[Any]:
        return _results(self._engine.read(encode(operations), self._now + later))

    def _multi_get(self, keys: list[bytes]) -> list[bytes | None]:
        return self._engine.multi_get(keys)

    def _scan(
        self, start: bytes, stop: bytes | None, limit: int, flags: int, later: int
    ) -> tuple[int, list[tuple[bytes, bytes | None, int]]]:
        count, entries = 0, []
        while True:
            ops = protocol.encode_scan(start, stop, limit, flags)
            ((_, found, page, *resume),) = protocol.decode_results(self._engine.read(ops, self._now + later))
            count += found
            entries += [tuple(entry) for entry in protocol.decode_entries(page)]
            if not resume:
                return count, entries
            if flags & protocol.SCAN_REVERSE:
                (stop,) = resume
            else:
                (start,) = resume

    def _pairs(
        self, start: bytes, stop: bytes | None, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        return self._engine.scan(start, stop, limit, reverse)

    def _snapshot(self, slot: int) -> None:
        self._snapshot_close(slot)
        self._snapshots[slot] = self._engine.snapshot()

    def _snapshot_read(
        self, slot: int, start: bytes, stop: bytes | None, limit: int, reverse: bool, keys: list[bytes]
    ) -> Any:
        snapshot = self._snapshots.get(slot)
        if snapshot is None:
            return None
        return snapshot.scan(start, stop, limit, reverse), [snapshot.get(key) for key in keys]

    def _snapshot_close(self, slot: int) -> None:
        snapshot = self._snapshots.pop(slot, None)
        if snapshot is not None:
            snapshot.close()

    def _ingest(self, tables: list[list[tuple[bytes, bytes | None, int | None]]]) -> int:
        paths = [f"{self._directory}/prepared-{number}" for number in range(len(tables))]
        for path, entries in zip(paths, tables, strict=True):
            with TableWriter(path, options=self._variant.opened_with()) as table:
                for key, value, ttl in entries:
                    if value is None:
                        table.delete(key)
                    else:
                        table.add(key, value, None if ttl is None else self._now + ttl)
        self._engine.ingest(paths, move=True)
        return self._engine.next_sequence

    def _flush(self) -> None:
        self._engine.flush()

    def _compact(self) -> None:
        self._engine.compact()

    def _compact_range(self, start: bytes, stop: bytes | None) -> None:
        self._engine.compact_range(start, stop)


def _results(body: bytes) -> list[list[Any]]:
    """Decoded, without the texts of errors."""
    return [result[:1] if result[0] > 2 else result for result in protocol.decode_results(body)]
