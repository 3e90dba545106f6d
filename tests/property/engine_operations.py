"""Operation files for the metamorphic tests of the engine: making one from a seed, writing it down, and what
its history must be.

A file is a list of steps, one Python literal a line. It knows nothing of options, files or threads: whatever
an engine is told when it is opened, the same file must give the same history. The expected history comes from
a sorted dict (test_engine_model.py has its rules).
"""

from __future__ import annotations

import ast
import itertools
import random
from pathlib import Path
from typing import Any

from kvclient import protocol
from tests.property.test_engine_model import (
    ENCODERS,
    Model,
    Operation,
    Stored,
    execute,
    expected_scan,
    live,
    writable,
)

Step = tuple[Any, ...]

FIRST_NOW_MS = 1 << 42
"""The year 2109: `get` and `scan` also look at the machine's clock, and must find that it is earlier."""

SNAPSHOTS_MAX = 4

MALFORMED = b"\x93\x02\xc4\x01k"
"""A stream that is refused as a whole: a PUT without its value."""

KEYS = [b"key-%04d" % number for number in range(200)]
KEYS += [b"shared-prefix-of-many-keys/%03d/x" % number for number in range(60)]
KEYS += [b"a", b"a\x00", b"ab", b"abc", b"\x00", b"\xff", b"\xff\xff", b"counter", b"p" * 300, b"q" * 4096]

WEIGHTS = {
    "entries": 30,
    "run_of_keys": 6,
    "delete_range": 4,
    "malformed": 1,
    "read": 12,
    "multi_get": 6,
    "scan": 10,
    "pairs": 6,
    "snapshot": 3,
    "snapshot_read": 8,
    "snapshot_close": 1,
    "flush": 3,
    "ingest": 2,
    "compact": 1,
    "compact_range": 2,
    "reopen": 2,
}


def generate(seed: int, length: int) -> list[Step]:
    """The steps of a seed; the same on every machine."""
    source = random.Random(seed)
    names = source.choices(list(WEIGHTS), list(WEIGHTS.values()), k=length)
    return [_step(source, name) for name in names]


def dump(steps: list[Step], path: Path) -> None:
    path.write_text("".join(f"{step!r}\n" for step in steps))


def load(path: Path) -> list[Step]:
    return [ast.literal_eval(line) for line in path.read_text().splitlines()]


def encode(operations: list[Operation]) -> bytes:
    return b"".join(ENCODERS[name](*rest) for name, *rest in operations)


def _step(source: random.Random, name: str) -> Step:
    if name == "entries":  # each: time passed, sequences left out, ops
        return (name, [_entry(source) for _ in range(source.choice([1, 1, 1, 2, 5]))])
    if name == "run_of_keys":
        first, count = source.randrange(180), source.randrange(1, 80)
        size = source.choice([0, 20, 200, 2000])
        deleted = source.random() < 0.3
        operations: list[Operation] = [
            ("delete", key, None) if deleted else ("put", key, bytes([97 + index % 26]) * size, None, None)
            for index, key in enumerate(KEYS[first : first + count])
        ]
        return ("entries", [(0, 0, operations)])
    if name == "delete_range":
        low, high = sorted([*source.sample(KEYS, 2)])
        stop = None if source.random() < 0.1 else high
        return ("entries", [(0, 0, [("delete_range", source.choice([low, low, b""]), stop)])])
    if name == "read":
        keys = _keys(source, 6)
        return (
            name,
            source.choice([0, 0, 1, 30, 10_000]),
            [(source.choice(["get", "exists"]), k) for k in keys],
        )
    if name == "multi_get":
        return (name, _keys(source, 20))
    if name == "scan":
        return (name, *_bounds(source), source.randrange(8), source.choice([0, 0, 5, 100]))
    if name == "pairs":
        return (name, *_bounds(source), source.random() < 0.5)
    if name == "snapshot_read":
        return (
            name,
            source.randrange(SNAPSHOTS_MAX),
            *_bounds(source),
            source.random() < 0.5,
            _keys(source, 4),
        )
    if name == "compact_range":
        return (name, *_bounds(source)[:2])
    if name == "ingest":  # tables that do not overlap, of (key, value or None, time to live)
        keys = sorted({source.choice(KEYS) for _ in range(source.choice([1, 5, 60]))})
        entries = [(key, *_prepared(source)) for key in keys]
        cut = source.randrange(len(entries) + 1)
        return (name, [part for part in (entries[cut:], entries[:cut]) if part])
    if name in ("snapshot", "snapshot_close"):
        return (name, source.randrange(SNAPSHOTS_MAX))
    return (name,)


def _keys(source: random.Random, most: int) -> list[bytes]:
    keys = [source.choice(KEYS) for _ in range(source.randrange(1, most + 1))]
    return [key + b"-absent" if source.random() < 0.15 else key for key in keys]


def _bounds(source: random.Random) -> tuple[bytes, bytes | None, int]:
    """Start, stop (also one before the start) and limit."""
    start = source.choice([b"", *_keys(source, 3)])
    stop = source.choice([None, *_keys(source, 3)])
    return start, stop, source.choice([1, 2, 7, 50, 10_000])


def _entry(source: random.Random) -> tuple[int, int, list[Operation]]:
    operations = [
        _transaction(source) if source.random() < 0.03 else _write(source)
        for _ in range(source.choice([1, 1, 2, 4, 12]))
    ]
    return source.choice([0, 0, 1, 7, 60, -20]), source.choice([0, 0, 0, 0, 3]), operations


def _write(source: random.Random) -> Operation:
    key = b"counter" if source.random() < 0.05 else source.choice(KEYS)
    ttl = source.choice([None, None, None, 1, 10, 300])
    name = source.choices(["put", "delete", "increment", "touch", "get", "exists"], [50, 20, 8, 8, 7, 7])[0]
    if name == "put":
        return (name, key, _value(source), ttl, _condition(source))
    if name == "delete":
        return (name, key, _condition(source))
    if name == "increment":
        return (name, key, source.choice([1, -7, 2**62, -(2**63)]))
    return (name, key, ttl) if name == "touch" else (name, key)


def _transaction(source: random.Random) -> Operation:
    compares = [(key, _condition(source) or (1,)) for key in _keys(source, 2)]
    then, otherwise = (writable([_inner(source) for _ in range(source.choice([1, 4, 20]))]) for _ in range(2))
    return ("txn", compares, then, otherwise)


def _inner(source: random.Random) -> Operation:
    name, key, *rest = _write(source)
    return (name, key, *rest[:-1], None) if name in ("put", "delete") else (name, key, *rest)


def _prepared(source: random.Random) -> tuple[bytes | None, int | None]:
    if source.random() < 0.3:
        return None, None
    return _value(source), source.choice([None, None, 0, 1, 300])


def _value(source: random.Random) -> bytes:
    if source.random() < 0.2:
        return b"%d" % source.randrange(-(10**6), 10**6)
    size = source.choice([0, 1, 8, 30, 30, 300, 300, 5000] if source.random() < 0.99 else [70_000])
    return source.randbytes(min(size, 16)) * (size // 16 + 1) if size else b""


def _condition(source: random.Random) -> Operation | None:
    if source.random() < 0.7:
        return None
    return source.choice([(1,), (2,), (3, source.randrange(1, 400)), (4, b""), (4, b"-7")])


class Expected:
    """A sorted dict that executes steps: each answers what an engine must."""

    def __init__(self) -> None:
        self._model: Model = {}
        self._now = FIRST_NOW_MS
        self._clock = 0
        self._next = 1
        self._snapshots: dict[int, tuple[Model, int]] = {}

    def run(self, step: Step) -> Any:
        name, *arguments = step
        answer = getattr(self, f"_{name}", None)
        return answer(*arguments) if answer else None

    def _entries(self, entries: list[tuple[int, int, list[Operation]]]) -> list[Any]:
        results = []
        for passed, left_out, operations in entries:
            self._now += passed
            self._clock = max(self._clock, self._now)
            self._next += left_out
            for operation in operations:
                results.append(execute(self._model, operation, self._next, self._clock))
                self._next += 1
        return results

    def _ingest(self, tables: list[list[tuple[bytes, bytes | None, int | None]]]) -> int:
        for key, value, ttl in itertools.chain.from_iterable(tables):
            if value is None:
                self._model.pop(key, None)
            else:
                self._model[key] = Stored(value, self._next, None if ttl is None else self._now + ttl)
        self._next += 1
        return self._next

    def _malformed(self) -> str:
        return "refused"

    def _read(self, later: int, operations: list[Operation]) -> list[Any]:
        at = max(self._clock, self._now + later)
        return [execute(self._model, operation, 0, at) for operation in operations]

    def _multi_get(self, keys: list[bytes]) -> list[bytes | None]:
        return _values(self._model, keys, self._clock)

    def _scan(
        self, start: bytes, stop: bytes | None, limit: int, flags: int, later: int
    ) -> tuple[int, list[Any]]:
        del limit  # it cuts pages, and all pages are read
        at = max(self._clock, self._now + later)
        found = expected_scan(self._model, at, start, stop, bool(flags & protocol.SCAN_REVERSE))
        if flags & protocol.SCAN_COUNT:
            return len(found), []
        with_values = not flags & protocol.SCAN_KEYS_ONLY
        return len(found), [(key, one.value if with_values else None, one.version) for key, one in found]

    def _pairs(
        self, start: bytes, stop: bytes | None, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        return _pairs(self._model, self._clock, start, stop, limit, reverse)

    def _snapshot(self, slot: int) -> None:
        self._snapshots[slot] = (dict(self._model), self._clock)

    def _snapshot_read(
        self, slot: int, start: bytes, stop: bytes | None, limit: int, reverse: bool, keys: list[bytes]
    ) -> Any:
        if slot not in self._snapshots:
            return None
        model, clock = self._snapshots[slot]
        return _pairs(model, clock, start, stop, limit, reverse), _values(model, keys, clock)

    def _snapshot_close(self, slot: int) -> None:
        self._snapshots.pop(slot, None)


def _pairs(
    model: Model, now: int, start: bytes, stop: bytes | None, limit: int, reverse: bool
) -> list[tuple[bytes, bytes]]:
    return [(key, one.value) for key, one in expected_scan(model, now, start, stop, reverse)[:limit]]


def _values(model: Model, keys: list[bytes], now: int) -> list[bytes | None]:
    found = (live(model, key, now) for key in keys)
    return [one.value if one else None for one in found]
