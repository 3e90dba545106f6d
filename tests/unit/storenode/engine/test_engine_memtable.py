"""The memtable: order, newest first, both directions, memory only when used."""

from __future__ import annotations

import random

from storenode.engine.memtable import Memtable

PUT, DELETE, PUT_DEADLINE = 1, 0, 2


def test_an_empty_memtable_costs_nothing_and_has_nothing() -> None:
    memtable = Memtable(7)
    assert (memtable.memory_bytes, memtable.count, memtable.first_wal) == (0, 0, 7)
    assert memtable.entries() == memtable.entries(reverse=True) == []


def test_versions_are_in_key_order_and_newest_first() -> None:
    memtable = Memtable()
    memtable.add(b"b", 1, PUT, b"one")
    memtable.add(b"a", 2, PUT_DEADLINE, b"two", 99)
    memtable.add(b"b", 3, DELETE)
    memtable.add(b"", 4, PUT, b"empty key")
    memtable.add(b"b\x00", 5, PUT, b"")
    expected = [
        (b"", 4, PUT, b"empty key", 0),
        (b"a", 2, PUT_DEADLINE, b"two", 99),
        (b"b", 3, DELETE, b"", 0),
        (b"b", 1, PUT, b"one", 0),
        (b"b\x00", 5, PUT, b"", 0),
    ]
    assert memtable.entries() == expected
    assert memtable.entries(reverse=True) == expected[::-1]


def test_keys_that_share_their_first_eight_bytes_or_end_in_zeros_keep_their_order() -> None:
    keys = [
        b"\x00",
        b"\x00\x00",
        b"a",
        b"a\x00",
        b"prefix--",
        b"prefix--\x00",
        b"prefix--a",
        b"\xff" * 7,
        b"\xff" * 9,
    ]
    memtable = Memtable()
    for sequence, key in enumerate(random.Random(3).sample(keys, len(keys)), start=1):
        memtable.add(key, sequence)
    assert [entry[0] for entry in memtable.entries()] == sorted(keys)


def test_many_random_keys_in_any_order_with_large_values() -> None:
    random_source = random.Random(5)
    memtable = Memtable()
    model = {}
    for sequence in range(1, 5000):
        key = b"%05d" % random_source.randrange(2000)
        value = random_source.randbytes(random_source.choice([0, 5, 100]))
        memtable.add(key, sequence, PUT, value)
        model[key, -sequence] = value
    memtable.add(b"huge", 5000, PUT, bytes(3 << 20))
    found = [(key, -sequence, value) for key, sequence, _, value, _ in memtable.entries()]
    assert found[-1] == (b"huge", -5000, bytes(3 << 20))
    assert found[:-1] == [(*key, value) for key, value in sorted(model.items())]
    assert memtable.count == 5000
    used = sum(len(key) + len(value) for key, _, value in found)
    assert used < memtable.memory_bytes < used + 5000 * 110 + (2 << 20)
