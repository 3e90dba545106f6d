"""What is written and asked for: 16-byte keys, 100-byte values that compress to a half, as db_bench's do.

Everything is a function of (count, workload, round): all engines get the same keys in the same order. Stored
keys have even numbers; odd ones are absent and lie between them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

KEY_BYTES = 16
VALUE_BYTES = 100
ENTRY_BYTES = KEY_BYTES + VALUE_BYTES

_POOL = 9973
"""Distinct values, a prime: neighbours differ, and no block of any engine holds one of them twice."""


def key(number: int) -> bytes:
    return b"%016d" % (2 * number)


def missing_key(number: int) -> bytes:
    return b"%016d" % (2 * number + 1)


def value_pool() -> list[bytes]:
    source = random.Random(1)
    return [source.randbytes(VALUE_BYTES // 2) * 2 for _ in range(_POOL)]


POOL = value_pool()


def value(number: int, generation: int = 0) -> bytes:
    """The value of a key; each generation of writes has other ones."""
    return POOL[(number + 31 * generation) % _POOL]


def numbers(seed: str, count: int, space: int) -> list[int]:
    """`count` draws from 0..space-1, with replacement."""
    source = random.Random(seed)
    return [int(source.random() * space) for _ in range(count)]


def shuffled(seed: str, count: int) -> list[int]:
    """Each number of 0..count-1 once."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def keys(drawn: list[int], make: Callable[[int], bytes] = key) -> list[bytes]:
    return [make(number) for number in drawn]
