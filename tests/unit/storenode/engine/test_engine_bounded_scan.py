"""A scan with bounds reads no table that has none of its keys."""

from __future__ import annotations

from pathlib import Path

import pytest

import storenode.engine
from kvclient.errors import Corruption
from storenode.engine import Engine, Options, WriteBatch

PREFIXES = [b"%c-" % letter for letter in b"abcdefgh"]
OPTIONS = Options(
    block_bytes=256,
    table_bytes=4096,
    level0_trigger=100,
    level0_slow=100,
    level0_stop=100,
    compression="none",
)


def fill(engine: Engine) -> None:
    """Level 0 has a table of each prefix."""
    for prefix in PREFIXES:
        batch = WriteBatch()
        batch.put_many((prefix + b"%04d" % number, b"value" * 8) for number in range(300))
        engine.write(batch)
        engine.flush()


def spoil(engine: Engine, directory: Path, start: bytes, stop: bytes) -> int:
    """Make all tables unreadable that hold nothing of [start, stop); how many."""
    spoiled = 0
    for meta in engine.tree.version.tables():
        if meta.largest < start or meta.smallest >= stop:
            with (directory / f"{meta.number:06d}.sst").open("r+b") as file:
                file.write(bytes(meta.size))
            spoiled += 1
    return spoiled


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("prefix", [PREFIXES[0], PREFIXES[3], PREFIXES[-1]])
def test_a_prefix_scan_touches_no_other_files(tmp_path: Path, prefix: bytes, compacted: bool) -> None:
    start, stop = prefix, prefix[:1] + b"."
    with storenode.engine.open(str(tmp_path), options=OPTIONS) as engine:
        fill(engine)
        if compacted:
            engine.compact()
    with storenode.engine.open(str(tmp_path), options=OPTIONS) as engine:
        assert spoil(engine, tmp_path, start, stop) >= len(PREFIXES) - 1
        expected = [(prefix + b"%04d" % number, b"value" * 8) for number in range(300)]
        assert engine.scan(start, stop) == expected
        assert engine.scan(start, stop, reverse=True) == expected[::-1]
        assert engine.scan(start, stop, limit=7) == expected[:7]
        assert engine.multi_get(key for key, _ in expected) == [value for _, value in expected]
        assert [engine.get(prefix + b"%04d." % number) for number in range(299)] == [None] * 299
        with pytest.raises(Corruption):
            engine.scan()
