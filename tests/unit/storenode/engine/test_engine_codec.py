"""Checksums, hash and log records: published values, and the golden bytes of docs/formats.md section 2."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import xxhash

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import codec


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_crc32c_gives_the_published_values(data: bytes, expected: int) -> None:
    assert codec.crc32c(data) == expected
    assert codec.crc32c_portable(data) == expected


def test_both_ways_to_compute_crc32c_agree_at_every_length_and_can_be_continued() -> None:
    data = random.Random(1).randbytes(300)
    for length in range(300):
        assert codec.crc32c(data[:length]) == codec.crc32c_portable(data[:length])
        assert codec.crc32c(data[length:], codec.crc32c(data[:length])) == codec.crc32c(data)


def test_the_stored_checksum_is_masked() -> None:
    crc = 0xE3069283
    assert codec.masked_crc32c(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_hash64_is_xxh64() -> None:
    data = random.Random(2).randbytes(300)
    for length in range(300):
        assert codec.hash64(data[:length]) == xxhash.xxh64_intdigest(data[:length])


HEADER = bytes.fromhex(
    "726b762d77616c0a"  # magic
    "01000000"  # version
    "03000000"  # engine id
    "0700000000000000"  # number
    "0500000000000000"  # previous
    "e803000000000000"  # previous length
    "00000000"
)
RECORD = bytes.fromhex(
    "06000000"  # length
    "0900000000000000"  # first sequence
    "e803000000000000"  # now
    "3000000000000000"  # synced
    "9201c4026b31"  # GET k1
)


def masked(crc: int) -> bytes:
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def test_the_log_header_has_the_documented_bytes() -> None:
    assert codec.wal_header(3, 7, 5, 1000) == HEADER + masked(codec.crc32c(HEADER))


def test_the_header_of_a_log_behind_one_that_need_not_be_durable_has_the_documented_bytes() -> None:
    header = HEADER[:8] + b"\x02" + HEADER[9:40] + (600).to_bytes(4, "little")
    assert codec.wal_header(3, 7, 5, 1000, 600) == header + masked(codec.crc32c(header))


def test_a_log_record_has_the_documented_bytes() -> None:
    file_id = 3 << 48 | 7
    context = file_id.to_bytes(8, "little") + (48).to_bytes(8, "little")
    expected = masked(codec.crc32c(context + RECORD)) + RECORD + bytes(2)
    assert codec.wal_records([(9, 1000, b"\x92\x01\xc4\x02k1")], file_id, 48, 48) == expected
    assert len(expected) % 8 == 0


def test_an_engine_writes_header_record_and_mark(tmp_path: Path) -> None:
    ops = protocol.encode_put(b"hello", b"world")
    with engine_package.open(str(tmp_path), engine_id=3) as engine:
        engine.apply(ops, 1, 5, engine.append([(1, 5, memoryview(ops))]))
    content = (tmp_path / "000001.wal").read_bytes()
    record = codec.wal_records([(1, 5, ops)], 3 << 48 | 1, 48, 0)
    mark = codec.wal_records([(0, 0, b"")], 3 << 48 | 1, 48 + len(record), 48 + len(record))
    assert content == codec.wal_header(3, 1, 0, 0) + record + mark


def test_records_are_read_back_and_bound_to_their_place() -> None:
    entries = [(1, 10, b"abc"), (2, 11, b""), (3, 12, b"x" * 1000)]
    content = bytes(48) + codec.wal_records(entries, 77, 48, 0)
    assert codec.wal_scan(content, 77, 48) == (entries, len(content))
    assert codec.wal_scan(content, 78, 48) == ([], 48), "the record of another file"
    assert codec.wal_scan(bytes(8) + content, 77, 56) == ([], 56), "a record that was moved"


def test_proof_is_a_later_record_that_saw_the_bad_one_durable() -> None:
    first = codec.wal_records([(1, 0, b"abc")], 77, 48, 0)
    second_at = 48 + len(first)
    unaware = codec.wal_records([(2, 0, b"def")], 77, second_at, 48)
    aware = codec.wal_records([(2, 0, b"def")], 77, second_at, second_at)
    bad = bytes(48) + bytes(len(first))
    assert codec.wal_proof(bad + unaware, 77, 48) == 0
    assert codec.wal_proof(bad + aware, 77, 48) == second_at
