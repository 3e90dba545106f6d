"""Scans and snapshots: pages, bounds of work, and states that stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Engine, EngineClosed, Options

SMALL = Options(
    memtable_bytes=1 << 14, table_bytes=1 << 14, base_bytes=1 << 15, level_ratio=2, level0_trigger=2
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with engine_package.open(str(tmp_path / "engine")) as opened:
        yield opened


def run(engine: Engine, *ops: bytes, now: int = 1000) -> list[list[Any]]:
    stream, first = b"".join(ops), engine.next_sequence
    wal = engine.append([(first, now, stream)])
    return protocol.decode_results(engine.apply(stream, first, now, wal))


def read(engine: Engine, *ops: bytes, now: int = 1000) -> list[list[Any]]:
    return protocol.decode_results(engine.read(b"".join(ops), now))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("where", ["memtable", "table", "both"])
def test_a_scan_page_holds_at_most_4_mib_and_goes_on_where_it_ended(
    engine: Engine, reverse: bool, where: str
) -> None:
    expected = []
    for number in range(12):
        key, value = b"%02d" % number, bytes([number]) * (1 << 20)
        run(engine, protocol.encode_put(key, b"older"))
        if where != "memtable":
            engine.flush()
        run(engine, protocol.encode_put(key, value))
        expected.append((key, value))
        if where == "table":
            engine.flush()
    found: list[tuple[bytes, bytes | None]] = []
    start, stop, pages = b"", None, 0
    while True:
        op = protocol.encode_scan(start, stop, 10_000, protocol.SCAN_REVERSE if reverse else 0)
        ((_, count, entries, *resume),) = read(engine, op)
        assert len(entries) <= protocol.SCAN_PAGE_BYTES_MAX
        page = list(protocol.decode_entries(entries))
        assert 0 < len(page) == count
        found += [(entry.key, entry.value) for entry in page]
        pages += 1
        if not resume:
            break
        start, stop = (start, resume[0]) if reverse else (resume[0], stop)
    assert found == (expected[::-1] if reverse else expected)
    assert pages == 4


def test_a_page_over_many_deleted_keys_ends_early_and_the_scan_still_ends(tmp_path: Path) -> None:
    engine = engine_package.open(str(tmp_path), options=Options(memtable_bytes=1 << 30))
    for at in range(0, 210_000, 5000):
        keys = [b"%08d" % number for number in range(at, at + 5000)]
        run(
            engine,
            *(protocol.encode_put(key, b"") for key in keys),
            *(protocol.encode_delete(key) for key in keys),
        )
    run(engine, protocol.encode_put(b"99999999", b"end"))
    for flags in (0, protocol.SCAN_REVERSE):
        start, stop, pages, found = b"", None, 0, []
        while True:
            ((_, _, entries, *resume),) = read(engine, protocol.encode_scan(start, stop, 10_000, flags))
            found += [entry.key for entry in protocol.decode_entries(entries)]
            pages += 1
            if not resume:
                break
            start, stop = (start, resume[0]) if flags else (resume[0], stop)
        assert found == [b"99999999"]
        assert 2 <= pages <= 4
    engine.close()


def test_a_key_with_very_many_versions_scans_as_one(engine: Engine) -> None:
    run(engine, protocol.encode_put(b"a", b""), protocol.encode_put(b"z", b"x" * 100_000))
    for _ in range(30):
        run(engine, *(protocol.encode_increment(b"n", 1) for _ in range(9000)))
        run(engine, *(protocol.encode_touch(b"z", 10**6) for _ in range(100)))
    expected = [(b"a", b""), (b"n", b"270000"), (b"z", b"x" * 100_000)]
    assert engine.scan() == expected
    assert engine.scan(reverse=True) == expected[::-1]
    assert engine.tree.active.memory_bytes < 60 << 20, "touching shares the value"


def test_a_snapshot_stays_as_it_is_through_everything(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path), options=SMALL) as engine:
        for number in range(500):
            engine.put(b"%04d" % number, b"old")
        snapshot = engine.snapshot()
        expected = engine.scan()
        for number in range(0, 1000, 2):
            engine.put(b"%04d" % number, b"new")
            engine.delete(b"%04d" % (number // 2))
        assert snapshot.scan() == expected
        engine.compact()
        assert snapshot.scan() == expected
        assert snapshot.scan(reverse=True, limit=3) == expected[:-4:-1]
        assert snapshot.get(b"0001") == b"old"
        assert engine.get(b"0001") is None
    assert snapshot.scan(b"0100", b"0102") == [(b"0100", b"old"), (b"0101", b"old")]
    snapshot.close()
    with pytest.raises(EngineClosed):
        snapshot.get(b"0001")


def test_replaced_files_go_when_the_last_snapshot_goes(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path), options=SMALL) as engine:
        engine.put(b"a", b"1")
        engine.flush()
        first = set(tmp_path.glob("*.sst"))
        snapshot = engine.snapshot()
        engine.put(b"a", b"2")
        engine.compact()
        assert first <= set(tmp_path.glob("*.sst"))
        snapshot.close()
        del snapshot
    assert not first & set(tmp_path.glob("*.sst"))
    assert len(list(tmp_path.glob("*.sst"))) == 1


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_of_many_native_pages_leaves_no_pair_out(engine: Engine, reverse: bool) -> None:
    """Of 16 pairs, then 32 and so on, at last of 512: see iterator.pyx."""
    pairs = [(b"%06d" % number, b"v") for number in range(2600)]
    for key, value in pairs:
        engine.put(key, value)
    for limit in (None, 16, 17, 48, 1009, len(pairs)):
        expected = pairs[::-1][:limit] if reverse else pairs[:limit]
        assert engine.scan(limit=limit, reverse=reverse) == expected
