"""What is written and asked for: 16-byte keys, 100-byte values that compress to a half, as in the engine's
bench.

The load walks through the keys with a step that visits each of them once before any comes again: requests
under way at the same time never meet at a key.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvclient.protocol import encode_get, encode_put
from tests.benchmark.engine_bench.data import key, value

__all__ = ["KEYS", "entries", "key", "op_streams", "value"]

KEYS = 100_000
_STEP = 7919
"""A prime that does not divide KEYS."""


def entries() -> Iterator[tuple[bytes, bytes]]:
    """Keys and values in the order of the load, for ever; values differ from round to round."""
    generation = 0
    while True:
        generation += 1
        for number in range(KEYS):
            drawn = number * _STEP % KEYS
            yield key(drawn), value(drawn, generation)


def op_streams(workload: str) -> list[tuple[bytes, bool]]:
    """One op each, and whether it writes; every key once, in the order of the load."""
    order = [number * _STEP % KEYS for number in range(KEYS)]
    if workload == "put":
        return [(encode_put(key(number), value(number, 1)), True) for number in order]
    if workload == "mixed":
        return [
            (encode_put(key(number), value(number, 1)), True) if at % 2 else (encode_get(key(number)), False)
            for at, number in enumerate(order)
        ]
    return [(encode_get(key(number)), False) for number in order]
