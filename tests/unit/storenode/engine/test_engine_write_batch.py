"""A batch of writes: one entry, encoded as the protocol says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import storenode.engine
from kvclient.protocol import encode_delete, encode_put
from storenode.engine import WriteBatch

SIZES = [0, 1, 31, 32, 255, 256, 65_535, 65_536]


def test_the_stream_of_a_batch_is_that_of_the_protocol() -> None:
    batch = WriteBatch()
    expected = b""
    for size in SIZES:
        key, value = b"k" * min(max(size, 1), 65_535), b"v" * size
        batch.put(key, value)
        batch.delete(key)
        expected += encode_put(key, value) + encode_delete(key)
    assert batch.ops == expected
    assert len(batch) == 2 * len(SIZES)
    batch.clear()
    assert (batch.ops, len(batch)) == (b"", 0)


def test_a_batch_is_one_entry_in_which_later_writes_win(tmp_path: Path) -> None:
    pairs = [(b"%04d" % (number * 7919 % 1000), b"%d" % number) for number in range(3000)]
    batch = WriteBatch()
    batch.put_many(pairs)
    batch.delete(b"0007")
    with storenode.engine.open(str(tmp_path)) as engine:
        engine.write(batch, sync=True)
        assert engine.next_sequence == 3002
    expected = dict(pairs)
    del expected[b"0007"]
    with storenode.engine.open(str(tmp_path)) as engine:
        assert engine.scan() == sorted(expected.items())


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        (b"", b"", ValueError),
        (b"k" * 65_536, b"", ValueError),
        ("k", b"", TypeError),
        (b"k", bytearray(b"v"), TypeError),
        (b"k", bytes((64 << 20) + 1), ValueError),
    ],
    ids=["no key", "long key", "key is text", "value is no bytes", "large value"],
)
def test_what_is_no_key_or_value_is_refused_and_leaves_the_batch_as_it_was(
    key: bytes, value: bytes, error: type[Exception]
) -> None:
    batch = WriteBatch()
    batch.put(b"a", b"1")
    with pytest.raises(error):
        batch.put(key, value)
    assert batch.ops == encode_put(b"a", b"1")


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "the same few"])
def test_puts_of_one_stream_keep_order_and_links_both_ways(tmp_path: Path, order: str) -> None:
    """They are added in groups, whose searches run side by side."""
    source = random.Random(order)
    numbers = [source.randrange(20 if order == "the same few" else 100_000) for _ in range(4000)]
    if order in ("ascending", "descending"):
        numbers.sort(reverse=order == "descending")
    model: dict[bytes, bytes] = {}
    with storenode.engine.open(str(tmp_path)) as engine:
        at = 0
        while at < len(numbers):
            batch = WriteBatch()
            for number in numbers[at : at + source.randrange(1, 60)]:
                pair = b"%08d" % number + b"tail" * (number % 4), b"%d" % at
                batch.put(*pair)
                model[pair[0]] = pair[1]
                at += 1
            engine.write(batch)
        expected = sorted(model.items())
        assert engine.scan() == expected
        assert engine.scan(reverse=True) == expected[::-1]
        assert all(engine.get(key) == value for key, value in expected)
        engine.flush()
        assert engine.scan() == expected
