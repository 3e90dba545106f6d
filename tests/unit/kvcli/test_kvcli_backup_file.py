"""The file of a partition in a backup: what goes in comes out, and every damage is found and placed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from kvclient.cli.backupfile import (
    HEAD_BYTES,
    HEADER_BYTES,
    RECORDS_BYTES_MAX,
    BadBackup,
    Block,
    Cut,
    PartitionReader,
    PartitionWriter,
    Record,
    decode_records,
)

CUT = Cut(7, "0123456789abcdef", 1234, 5, 1_700_000_000_000)
PLAIN = [Record(b"\x00", b"", 1, 0), Record(b"a" * 4096, b"a" * 5000, 1 << 40, 0)]
TIMED = [Record(b"b", b"\xff\x00\n", 3, 1_800_000_000_123), Record(b"c", b"for ever", 4, 0)]
NOISE = [Record(b"d%d" % number, random.Random(number).randbytes(60), number, 0) for number in range(10)]


def packed(records: list[Record], timed: bool) -> bytes:
    return b"".join(msgpack.packb(field) for record in records for field in record[: 4 if timed else 3])


def write(path: Path, cut: Cut = CUT) -> tuple[int, str]:
    """Three blocks: one that compresses, one with a TTL, one that does not compress."""
    writer = PartitionWriter(path, cut)
    try:
        for records, timed in ((PLAIN, False), (TIMED, True), (NOISE, False)):
            writer.add(timed, packed(records, timed), len(records))
        digest = writer.finish()
        assert writer.records == 14
        return writer.size, digest
    finally:
        writer.close()


def read(path: Path, size: int, cut: Cut = CUT) -> list[Block]:
    return list(PartitionReader(path, cut, size).blocks())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "partition-0007.rkb"


def regions(path: Path, size: int) -> list[int]:
    """Where header, blocks and trailer begin, and the end."""
    blocks = read(path, size)
    return [0, *(block.offset for block in blocks), blocks[-1].end, size]


def test_what_was_written_is_read(path: Path) -> None:
    size, digest = write(path)
    assert size == path.stat().st_size
    reader = PartitionReader(path, CUT, size)
    blocks = list(reader.blocks())
    assert [block.records for block in blocks] == [PLAIN, TIMED, NOISE]
    assert blocks[0].offset == HEADER_BYTES
    assert reader.digest.hexdigest() == digest
    assert size < HEADER_BYTES + 4 * HEAD_BYTES + 4500 + 1000, "what compresses is compressed"


def test_an_empty_partition_has_a_file(path: Path) -> None:
    writer = PartitionWriter(path, CUT)
    writer.add(False, b"", 0)
    writer.finish()
    writer.close()
    assert writer.size == HEADER_BYTES + HEAD_BYTES
    assert read(path, writer.size) == []


def test_every_flipped_bit_is_found_at_its_place(path: Path) -> None:
    size, _ = write(path)
    edges = regions(path, size)
    whole = path.read_bytes()
    assert whole[size - HEAD_BYTES :] == whole[edges[-2] :]
    for at in range(size):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(BadBackup) as found:
                read(path, size)
            assert found.value.offset == max(edge for edge in edges if edge <= at), (at, bit, found.value)
            assert found.value.path == path


def test_every_truncation_is_found(path: Path) -> None:
    size, _ = write(path)
    edges = regions(path, size)
    whole = path.read_bytes()
    for left in range(size):
        path.write_bytes(whole[:left])
        with pytest.raises(BadBackup, match="in the middle of") as found:
            read(path, size)
        assert found.value.offset == max(edge for edge in edges if edge <= left)


def test_bytes_behind_the_end_are_found(path: Path) -> None:
    size, _ = write(path)
    with open(path, "ab") as file:
        file.write(b"\0")
    with pytest.raises(BadBackup, match="trailer ends here") as found:
        read(path, size)
    assert found.value.offset == size


def test_a_block_that_is_lost_doubled_or_swapped_is_found(path: Path) -> None:
    size, _ = write(path)
    whole = path.read_bytes()
    _, one, two, three, trailer, _ = regions(path, size)
    head, first, second, third, end = (
        whole[:one],
        whole[one:two],
        whole[two:three],
        whole[three:trailer],
        whole[trailer:],
    )
    for parts in (
        [head, first, third, end],
        [head, first, first, second, third, end],
        [head, second, first, third, end],
        [head, end],
    ):
        path.write_bytes(b"".join(parts))
        with pytest.raises(BadBackup):
            read(path, size)


def test_a_block_of_another_file_is_found(path: Path, tmp_path: Path) -> None:
    size, _ = write(path)
    other = tmp_path / "other"
    write(other, replace(CUT, index=1235))
    path.write_bytes(path.read_bytes()[:HEADER_BYTES] + other.read_bytes()[HEADER_BYTES:])
    with pytest.raises(BadBackup, match="checksum") as found:
        read(path, size)
    assert found.value.offset == HEADER_BYTES


@pytest.mark.parametrize(
    "other",
    [
        replace(CUT, partition=8),
        replace(CUT, cluster="fedcba9876543210"),
        replace(CUT, index=1),
        replace(CUT, term=6),
        replace(CUT, taken_ms=0),
    ],
)
def test_the_file_of_another_cut_is_refused(path: Path, other: Cut) -> None:
    size, _ = write(path, other)
    with pytest.raises(BadBackup, match="another partition or backup"):
        read(path, size)


def test_reading_goes_on_at_a_block(path: Path) -> None:
    size, _ = write(path)
    for start in regions(path, size)[1:-1]:
        blocks = list(PartitionReader(path, CUT, size).blocks(start))
        assert [block.offset for block in blocks] == [at for at in regions(path, size)[1:-2] if at >= start]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadBackup):
        list(PartitionReader(path, CUT, size).blocks(HEADER_BYTES))


def test_a_writer_takes_no_page_that_is_none(path: Path) -> None:
    writer = PartitionWriter(path, CUT)
    writer.add(False, packed(PLAIN, False), 2)
    before = writer.size
    for records, timed, count in (
        (packed(NOISE, False), False, 9),
        (packed(NOISE, False), True, 10),
        (packed(NOISE, False)[:-1], False, 10),
        (packed(PLAIN, False), False, 2),  # not behind what there is
        (packed(NOISE[::-1], False), False, 10),
        (packed([NOISE[0], NOISE[0]], False), False, 2),
        (b"\xc1", False, 1),
        (msgpack.packb("text") + b"\xc4\x00\x01", False, 1),
        (b"\xc4\x00\xc4\x00\x01", False, 1),
        (b"\xc4\x01z\xc0\x01", False, 1),
    ):
        with pytest.raises(ValueError, match=r"record|key"):
            writer.add(timed, records, count)
    assert (writer.size, writer.records) == (before, 2)
    writer.close()


def test_hostile_records_are_a_value_error() -> None:
    dice = random.Random(11)
    good = packed(TIMED, True)
    for _ in range(2000):
        data = bytearray(good)
        data[dice.randrange(len(data))] = dice.randrange(256)
        del data[dice.randrange(len(data)) + 1 :]
        try:
            found = decode_records(True, bytes(data), 2)
        except ValueError:
            continue
        assert all(type(record.key) is bytes for record in found)


def test_a_record_of_the_largest_value_fits(path: Path) -> None:
    record = Record(b"k" * 4096, random.Random(1).randbytes(8 << 20), 1, 1)
    data = packed([record], True)
    assert len(data) < RECORDS_BYTES_MAX
    writer = PartitionWriter(path, CUT)
    writer.add(True, data, 1)
    writer.finish()
    writer.close()
    (block,) = read(path, writer.size)
    assert block.records == [record]
