"""A process to be killed: writes through the engine's library face, synced, and acknowledges on its
standard output. Arguments: directory, memtable bytes, workers.

Entry n is a function of n alone, and n is also stored in it: so whoever opens the engine afterwards
knows which entries there must be, and whether each is whole.
"""

from __future__ import annotations

import random
import sys

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Engine, Options, Shared

KEYS = 400
ENTRY_KEY = b"entry"

Content = dict[bytes, bytes]


def operations(entry: int) -> list[tuple[bytes, bytes | None]]:
    """Key and value of each op of an entry, its number first; None: deleted."""
    source = random.Random(entry)
    found: list[tuple[bytes, bytes | None]] = [(ENTRY_KEY, b"%d" % entry)]
    for _ in range(source.choice([1, 1, 3, 10])):
        key = b"key-%04d" % source.randrange(KEYS)
        size = source.choice([0, 10, 100, 1000])
        found.append((key, None if source.random() < 0.3 else b"%d-" % entry + b"v" * size))
    return found


def apply_to(content: Content, entry: int) -> None:
    for key, value in operations(entry):
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value


def encoded(entry: int) -> bytes:
    return b"".join(
        protocol.encode_delete(key) if value is None else protocol.encode_put(key, value)
        for key, value in operations(entry)
    )


def opened(directory: str, memtable_bytes: int, workers: int) -> tuple[Shared, Engine]:
    """Small files and levels: it flushes and compacts all the time."""
    options = Options(
        memtable_bytes=memtable_bytes,
        block_bytes=512,
        table_bytes=16 << 10,
        base_bytes=32 << 10,
        level_ratio=2,
        level0_trigger=2,
    )
    shared = Shared(directory, workers=workers)
    return shared, engine_package.open(directory, options=options, shared=shared)


def main() -> None:
    _, engine = opened(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    entry = int(engine.get(ENTRY_KEY) or b"0")
    print("opened", flush=True)
    source = random.Random()
    while True:
        entry += 1
        engine.write(encoded(entry), sync=True)
        print(entry, flush=True)
        chance = source.random()
        if chance < 0.01:
            engine.flush(wait=False)
        elif chance < 0.012:
            engine.compact()


if __name__ == "__main__":
    main()
