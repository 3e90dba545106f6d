"""Compressed blocks (docs/formats.md section 3): round trips, what is compressed where, and its figures."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

import storenode.engine as engine_package
from storenode.engine import Engine, Options, Shared, codec
from storenode.engine.memtable import Memtable
from storenode.engine.table import Cache
from storenode.engine.view import View
from tests.unit.storenode.engine.compressed_tables import (
    LENGTH_MAX,
    LZ4,
    PLAIN,
    PUT,
    ZSTD,
    Versions,
    data_blocks,
    open_table,
    read_varint,
    write_table,
)


def lz4_decoded(payload: bytes) -> bytes:
    """The LZ4 block format, from its description."""
    out, at = bytearray(), 0

    def length(start: int) -> int:
        nonlocal at
        if start == 15:
            while payload[at] == 255:
                start, at = start + 255, at + 1
            start, at = start + payload[at], at + 1
        return start

    while True:
        token = payload[at]
        at += 1
        count = length(token >> 4)
        out += payload[at : at + count]
        at += count
        if at == len(payload):
            return bytes(out)
        back = int.from_bytes(payload[at : at + 2], "little")
        at += 2
        for _ in range(length(token & 15) + 4):
            out.append(out[-back])


def versions_of(count: int, compressible: float, seed: int = 1) -> Versions:
    source = random.Random(seed)
    made: Versions = []
    for number in range(count):
        size = source.choice([0, 10, 100, 100, 100, 1000])
        value = source.randbytes(size) if source.random() >= compressible else b"%d" % number * (size // 3)
        made.append((b"key-%06d" % number, number + 1, PUT, value, 0))
    made.append((b"large-a", count + 1, PUT, source.randbytes(300_000), 0))
    made.append((b"large-b", count + 2, PUT, b"abcdefgh" * 50_000, 0))
    return made


@pytest.mark.parametrize("compression", [PLAIN, LZ4, ZSTD])
@pytest.mark.parametrize("compressible", [0, 0.4, 1])
@pytest.mark.parametrize("cache_bytes", [0, 8 << 20])
def test_round_trips(tmp_path: Path, compression: int, compressible: float, cache_bytes: int) -> None:
    versions = versions_of(1500, compressible)
    path = write_table(tmp_path, versions, compression)
    table = open_table(path, b"key-000000", b"large-b", cache_bytes)
    assert table.verify() == len(versions)
    assert table.entries() == versions
    assert table.entries(reverse=True) == versions[::-1]
    view = View(table_cache := Cache(cache_bytes), str(tmp_path), (Memtable(),), ((table,),))
    assert all(view.get(key, 1 << 50, 0) == value for key, _, _, value, _ in versions)
    blocks = data_blocks(path)
    uncompressed = 0
    for kind, stored in blocks:
        size, payload = read_varint(stored) if kind else (len(stored), stored)
        uncompressed += size
        if kind:
            assert kind == compression
            assert len(stored) <= size - size // 8
        if kind == LZ4:
            assert lz4_decoded(payload) == codec.unpacked_block(LZ4, stored)
        if kind == ZSTD:
            assert payload[:4] == bytes.fromhex("28b52ffd")
    compressed = sum(kind != PLAIN for kind, _ in blocks)
    assert compressed < len(blocks)  # large-a
    if compression == PLAIN:
        assert compressed == 0
    elif compressible:
        assert compressed > 20
    else:
        assert compressed == 1  # large-b
    if cache_bytes:  # what it holds, and is charged for, is uncompressed
        assert table_cache.stats()["bytes"] > uncompressed


def test_a_block_above_the_bound_stays_as_it_is(tmp_path: Path) -> None:
    versions = [(b"a", 1, PUT, bytes(LENGTH_MAX - 100), 0), (b"b", 2, PUT, bytes(LENGTH_MAX), 0)]
    path = write_table(tmp_path, versions, ZSTD)
    assert [kind for kind, _ in data_blocks(path)] == [ZSTD, PLAIN]
    assert open_table(path).entries() == versions


def test_an_eighth_has_to_be_saved(tmp_path: Path) -> None:
    """One block of 4 KiB with a growing part of zeros: it is stored plain until the zeros are an eighth."""
    source = random.Random(3)
    for kind in (LZ4, ZSTD):
        first = 0
        for zeros in range(300, 800, 4):
            value = source.randbytes(4000 - zeros) + bytes(zeros)
            path = write_table(tmp_path, [(b"k", 1, PUT, value, 0)], kind)
            ((stored_as, _),) = data_blocks(path)
            path.unlink()
            if stored_as == kind:
                first = first or zeros
            else:
                assert not first
        assert 500 < first < 560


@pytest.mark.parametrize("compression", [LZ4, ZSTD])
def test_threads_read_at_once(tmp_path: Path, compression: int) -> None:
    versions = versions_of(1000, 1)
    table = open_table(write_table(tmp_path, versions, compression), b"key-000000", b"large-b", 0)
    view = View(Cache(0), str(tmp_path), (Memtable(),), ((table,),))
    expected = {key: value for key, _, _, value, _ in versions}
    wrong: list[bytes] = []

    def read(seed: int) -> None:
        keys = random.Random(seed).sample(sorted(expected), len(expected))
        for at in range(0, len(keys), 50):
            part = keys[at : at + 50]
            found = view.multi_get(part, 1 << 50, 0)
            wrong.extend(key for key, value in zip(part, found, strict=True) if value != expected[key])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


SMALL = {"memtable_bytes": 40_000, "table_bytes": 30_000, "base_bytes": 60_000, "level_ratio": 4}


def open_engine(path: Path, compression: Any, **options: int) -> Engine:
    return engine_package.open(str(path), options=Options(compression=compression, **options))


def fill(engine: Engine, expected: dict[bytes, bytes], seed: int) -> None:
    source = random.Random(seed)
    for _ in range(1500):
        key = b"%05d" % source.randrange(4000)
        value = source.choice([b"value of %s " % key * 6, source.randbytes(60)])
        engine.put(key, value)
        expected[key] = value
    engine.flush()


def compressions(engine: Engine) -> list[set[int]]:
    """Of the tables of each level."""
    return [
        {table.compression for table in engine.tree.tables_of(level)} for level in engine.tree.version.levels
    ]


def test_the_setting_may_change_between_opens(tmp_path: Path) -> None:
    expected: dict[bytes, bytes] = {}
    for seed, compression in enumerate(["none", "lz4", "zstd", "auto", "none", "zstd"]):
        with open_engine(tmp_path, compression, **SMALL) as engine:
            fill(engine, expected, seed)
            assert engine.scan() == sorted(expected.items())
            assert engine.verify() == []
            kinds = set().union(*compressions(engine))
    assert kinds & {LZ4, ZSTD}
    with open_engine(tmp_path, "none", **SMALL) as engine:
        engine.compact()
        assert set().union(*compressions(engine)) == {PLAIN}
        assert engine.scan(reverse=True) == sorted(expected.items(), reverse=True)


@pytest.mark.parametrize(
    ("setting", "level0", "last"),
    [("none", PLAIN, PLAIN), ("lz4", LZ4, LZ4), ("auto", LZ4, LZ4), ("zstd", LZ4, ZSTD)],
)
def test_what_is_compressed_where_and_its_figures(
    tmp_path: Path, setting: str, level0: int, last: int
) -> None:
    with open_engine(tmp_path, setting) as engine:
        fill(engine, {}, 1)
        assert compressions(engine) == [{level0}, *[set()] * 6]
        flushed = engine.stats()
        engine.compact()
        assert compressions(engine) == [*[set()] * 6, {last}]
        stats = engine.stats()
    for before, level, kind in ((None, flushed["levels"][0], level0), (flushed, stats["levels"][-1], last)):
        (counts, base) = (stats, before) if before else (flushed, dict.fromkeys(flushed, 0))
        made = counts["block_bytes"] - base["block_bytes"]
        stored = counts["block_bytes_stored"] - base["block_bytes_stored"]
        assert made > 100_000
        assert (stored < made * 0.8) if kind else (stored == made)
        assert stored < level["bytes"] < stored + 20_000
        assert made * 0.9 < level["raw_bytes"] < made * 1.5
    assert stats["levels"][0]["raw_bytes"] == 0


@pytest.mark.parametrize(("before", "moves"), [("zstd", 0), ("lz4", 1), ("none", 0)])
def test_a_table_only_moves_if_its_new_level_wants_it_so(tmp_path: Path, before: str, moves: int) -> None:
    """One table in level 0 with nothing below it can move to the last level."""
    shared = Shared(str(tmp_path))
    path = str(tmp_path / "p")
    settings: Any = {"zstd": ("zstd", "zstd"), "lz4": ("lz4", "auto"), "none": ("none", "lz4")}[before]
    with engine_package.open(
        path, shared=shared, options=Options(compression=settings[0], level0_trigger=9, level0_slow=9)
    ) as engine:
        expected: dict[bytes, bytes] = {}
        fill(engine, expected, 1)
        assert compressions(engine)[0] == {PLAIN if before == "none" else LZ4}
    with engine_package.open(
        path, shared=shared, options=Options(compression=settings[1], level0_trigger=1)
    ) as engine:
        shared.wait_for(lambda: not engine.tree.version.levels[0])
        assert compressions(engine)[-1] == {ZSTD if before == "zstd" else LZ4}
        assert engine.counters.compaction_moves == moves
        assert engine.scan() == sorted(expected.items())
    shared.close()


def test_an_unknown_setting_is_refused() -> None:
    wrong: Any = "snappy"
    with pytest.raises(ValueError, match="compression must be one of auto, none, lz4, zstd"):
        Options(compression=wrong)
