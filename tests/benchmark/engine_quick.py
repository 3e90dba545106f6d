"""The engine's rates on this machine, in a minute: `python tests/benchmark/engine_quick.py [ENTRIES]
[DIRECTORY]`.

16-byte keys, 100-byte values. Not a comparison: that is `scripts/bench engine`.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

import storenode.engine
from kvclient import protocol
from storenode.engine import Engine, Shared
from storenode.engine.vfs import Vfs

VALUE_BYTES = 100


def report(name: str, count: int, work: Callable[[], object]) -> None:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(f"{name:<28} {count / seconds:>12,.0f} /s   {seconds * 1e6 / count:>9.2f} us")


def key(number: int) -> bytes:
    return b"%016d" % number


def fdatasyncs(directory: str, count: int) -> None:
    """The bare rate to hold synced puts against: a record appended to a growing file, and synced."""
    file = Vfs().create(os.path.join(directory, "bare"))
    for number in range(count):
        file.write_at(number * 168, bytes(168))
        file.sync()
    file.close()


def write(engine: Engine, numbers: list[int], value: bytes, batch: int) -> None:
    for at in range(0, len(numbers), batch):
        ops = b"".join(protocol.encode_put(key(number), value) for number in numbers[at : at + batch])
        engine.write(ops)


def streams(numbers: list[int], value: bytes, batch: int) -> list[bytes]:
    return [
        b"".join(protocol.encode_put(key(number), value) for number in numbers[at : at + batch])
        for at in range(0, len(numbers), batch)
    ]


def apply_prepared(engine: Engine, prepared: list[bytes]) -> None:
    """What a store does: the log in one call for many entries, then each applied."""
    for at in range(0, len(prepared), 16):
        entries, first = [], engine.next_sequence
        for ops in prepared[at : at + 16]:
            entries.append((first, 1, ops))
            first += 100
        wal = engine.append(entries)
        for sequence, now, ops in entries:
            engine.apply(ops, sequence, now, wal)


def read_all(engine: Engine, numbers: list[int]) -> None:
    for number in numbers:
        engine.get(key(number))


def read_many(engine: Engine, numbers: list[int]) -> None:
    for at in range(0, len(numbers), 100):
        engine.multi_get([key(number) for number in numbers[at : at + 100]])


def measure(directory: str, entries: int) -> None:
    source = random.Random(1)
    value = source.randbytes(VALUE_BYTES)
    numbers = [source.randrange(entries) for _ in range(entries)]
    sample = [source.randrange(entries) for _ in range(min(entries, 200_000))]
    syncs = 1000
    report("bare write and fdatasync", syncs, lambda: fdatasyncs(directory, syncs))
    shared = Shared(directory, cache_bytes=64 << 20)
    engine = storenode.engine.open(os.path.join(directory, "engine"), shared=shared)
    report("put, synced", syncs, lambda: [engine.put(key(n), value, sync=True) for n in range(syncs)])
    report("put, sequential", entries, lambda: [engine.put(key(n), value) for n in range(entries)])
    report("put, random", entries, lambda: [engine.put(key(n), value) for n in numbers])
    report("write batches of 100", entries, lambda: write(engine, numbers, value, 100))
    prepared = streams(numbers, value, 100)
    report("append and apply, prepared", entries, lambda: apply_prepared(engine, prepared))
    report("flush", 1, engine.flush)
    report("get, random", len(sample), lambda: read_all(engine, sample))
    report("get, missing", len(sample), lambda: read_all(engine, [number + entries for number in sample]))
    report("multi_get of 100", len(sample), lambda: read_many(engine, sample))
    report("scan", entries, engine.scan)
    report("scan, reverse", entries, lambda: engine.scan(reverse=True))
    stats = engine.stats()
    print(
        {
            name: stats[name]
            for name in ("flush_bytes", "compaction_bytes_written", "write_amplification", "stalls")
        }
    )
    print("levels", [(level["tables"], level["bytes"]) for level in stats["levels"]])
    report("compact", 1, engine.compact)
    report("get, random, compacted", len(sample), lambda: read_all(engine, sample))
    report("scan, compacted", entries, engine.scan)
    engine.close()
    report("open", 1, lambda: storenode.engine.open(os.path.join(directory, "engine"), shared=shared).close())
    shared.close()
    print("peak resident MiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)


def main() -> None:
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    directory = tempfile.mkdtemp(prefix="engine-quick-", dir=sys.argv[2] if len(sys.argv) > 2 else None)
    try:
        measure(directory, entries)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
