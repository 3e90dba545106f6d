"""Files that an engine does not take in: what is no prepared table, damaged, or wrong under right checksums.
Nothing of them is there afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient.errors import Corruption
from storenode.engine import Engine, Options, TableWriter, codec
from tests.unit.storenode.engine.test_engine_ingest import prepared


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with engine_package.open(str(tmp_path / "engine")) as opened:
        yield opened


def refused(engine: Engine, error: type[Exception], text: str, *paths: str) -> None:
    """Nothing of them is there afterwards, neither in the engine nor on the disk."""
    before = engine.scan(), engine.next_sequence, sorted(os.listdir(engine.directory))
    with pytest.raises(error, match=text):
        engine.ingest(paths, move=True)
    assert (engine.scan(), engine.next_sequence, sorted(os.listdir(engine.directory))) == before
    assert all(os.path.exists(path) for path in paths if not path.endswith("missing"))


def test_tables_that_share_keys_are_refused(tmp_path: Path, engine: Engine) -> None:
    first = prepared(tmp_path / "first", {b"a": b"", b"m": b""})
    second = prepared(tmp_path / "second", {b"m": b"", b"z": b""})
    refused(engine, ValueError, r"first \(up to key b'm'\) and .*second \(from key b'm'\)", second, first)
    refused(engine, ValueError, "share keys", first, first)
    engine.ingest([first])
    engine.ingest([second])
    engine.ingest([first])
    assert engine.verify() == []


def test_what_is_no_prepared_table_is_refused(tmp_path: Path, engine: Engine) -> None:
    good = prepared(tmp_path / "good", {b"a": b""})
    refused(engine, FileNotFoundError, "missing", good, str(tmp_path / "missing"))
    engine.put(b"k", b"v")
    engine.flush()
    (own,) = Path(engine.directory).glob("*.sst")
    refused(engine, ValueError, r"000\d+\.sst is a table of engine 0; only what TableWriter", good, str(own))
    (tmp_path / "text").write_bytes(b"text" * 40)
    refused(engine, Corruption, "text: no whole table footer", good, str(tmp_path / "text"))
    (tmp_path / "empty").write_bytes(b"")
    refused(engine, Corruption, "empty: no whole table footer", good, str(tmp_path / "empty"))


def test_every_flipped_bit_of_a_prepared_table_is_refused(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "p"
    prepared(path, {b"%04d" % number: b"x" * (number % 90) for number in range(60)})
    content = path.read_bytes()
    for offset in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        refused(engine, Corruption, "p: .*offset", str(path))
    path.write_bytes(content)
    engine.ingest([str(path)])


def resealed(path: Path, old: bytes, new: bytes, at: int, size: int) -> None:
    """Replaces bytes in the block at `at`, and makes its checksum fit."""
    content = path.read_bytes()
    block = content[at : at + size + 1]
    assert block.count(old) == 1
    block = block.replace(old, new)
    context = content[-28:-20] + at.to_bytes(8, "little")
    sealed = block + codec.masked_crc32c(context + block).to_bytes(4, "little")
    path.write_bytes(content[:at] + sealed + content[at + len(sealed) :])


def section(path: Path, position: int) -> tuple[int, int]:
    """Offset and size of filter, index or properties (0, 1, 2)."""
    footer = path.read_bytes()[-64:][position * 12 :]
    return int.from_bytes(footer[:8], "little"), int.from_bytes(footer[8:12], "little")


def test_a_sound_file_that_is_wrong_is_refused(tmp_path: Path, engine: Engine) -> None:
    """Under right checksums: order, sequences, counts, filter, index."""

    def made(name: str) -> Path:
        path = tmp_path / name
        with TableWriter(str(path), options=Options(restart_interval=1, compression="none")) as table:
            table.add_many([(b"key-a", b"1"), (b"key-b", b"2"), (b"key-c", b"3")])
        return path

    data_size = section(made("probe"), 0)[0] - 5
    path = made("order")
    resealed(path, b"key-b", b"key-z", 0, data_size)
    refused(engine, Corruption, "order: keys out of order|the filter hides|above what the index", str(path))
    path = made("sequence")
    resealed(path, b"key-b" + bytes([1]) + bytes(7), b"key-b" + bytes([1, 9]) + bytes(6), 0, data_size)
    refused(engine, Corruption, "max_sequence is 9, the properties say 0", str(path))
    path = made("entries")
    at, size = section(path, 2)
    resealed(path, b"entries\x03", b"entries\x04", at, size)
    refused(engine, Corruption, "entries is 3, the properties say 4", str(path))
    path = made("largest")
    at, size = section(path, 2)
    resealed(path, b"key-c", b"key-d", at, size)
    refused(engine, Corruption, "largest is b'key-c'", str(path))
    path = made("index")
    at, size = section(path, 1)
    resealed(path, b"l\x00", b"a\x00", at, size)
    refused(engine, Corruption, "a key above what the index says", str(path))
    path = made("filter")
    at, size = section(path, 0)
    content = path.read_bytes()
    resealed(path, content[at : at + size - 8], bytes(size - 8), at, size)
    refused(engine, Corruption, "the filter hides a key", str(path))
