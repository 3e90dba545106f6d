"""Tables and jobs: golden bytes of docs/formats.md sections 3 and 4, reading back, what a job drops and
where it cuts."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from kvclient.errors import Corruption
from storenode.engine import codec
from storenode.engine.errors import Cancelled
from storenode.engine.job import Job
from storenode.engine.memtable import Memtable
from storenode.engine.table import Cache, Table
from storenode.engine.vfs import Vfs
from storenode.engine.view import View

if TYPE_CHECKING:
    from storenode.engine.job import FinishedTable

PUT, DELETE, PUT_DEADLINE = 1, 0, 2
Version = tuple[bytes, int, int, bytes, int]


def memtable_of(versions: list[Version]) -> Memtable:
    memtable = Memtable()
    for version in versions:
        memtable.add(*version)
    return memtable


class Workshop:
    """Makes tables in a directory."""

    def __init__(self, directory: Path, cache_bytes: int = 1 << 20) -> None:
        self.directory = directory
        self.cache = Cache(cache_bytes)
        self.next_number = 1

    def open(self, finished: FinishedTable) -> Table:
        file = Vfs().open(str(self.directory / f"{finished['number']:06d}.sst"))
        try:
            return Table(
                self.cache,
                file,
                finished["number"],
                finished["file_id"],
                finished["size"],
                finished["smallest"],
                finished["largest"],
            )
        except BaseException:
            file.close()
            raise

    def run(
        self,
        memtables: tuple[Memtable, ...] = (),
        runs: tuple[tuple[Table, ...], ...] = (),
        below: tuple[tuple[Table, ...], ...] = (),
        overlaps: tuple[Table, ...] = (),
        **options: int,
    ) -> list[FinishedTable]:
        defaults = {
            "now_ms": 0,
            "table_bytes": 1 << 30,
            "overlap_bytes_max": 1 << 30,
            "block_bytes": 4096,
            "bits_per_key": 10,
        }
        defaults.update(options)
        job = Job(str(self.directory), memtables, runs, below, overlaps, **defaults)
        finished = []
        while status := job.step():
            if status == 1:
                number = self.next_number
                self.next_number += 1
                file = Vfs().create(str(self.directory / f"{number:06d}.sst"))
                job.open_table(file.fd, number, 5 << 48 | number, 1234)
            else:
                file.close()
                finished.append(job.finished())
        return finished

    def table(self, versions: list[Version], **options: int) -> Table:
        (finished,) = self.run((memtable_of(versions),), **options)
        return self.open(finished)

    def path(self, table: Table) -> Path:
        return self.directory / f"{table.number:06d}.sst"


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def masked(crc: int) -> bytes:
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def stored(block: bytes, file_id: int, offset: int) -> bytes:
    """A block with its trailer."""
    return block + b"\x00" + masked(codec.crc32c(u64(file_id) + u64(offset) + block + b"\x00"))


def test_a_table_has_the_documented_bytes(workshop: Workshop) -> None:
    # A deletion that stays needs something below; the table below takes number 1, so this one is number 2.
    older = workshop.table([(b"apple", 1, PUT, b"old", 0)])
    file_id = 5 << 48 | 2
    (finished,) = workshop.run(
        (
            memtable_of(
                [
                    (b"apple", 7, DELETE, b"", 0),
                    (b"apply", 8, PUT, b"value", 0),
                    (b"b", 9, PUT_DEADLINE, b"v", 500),
                ]
            ),
        ),
        below=((older,),),
    )
    data = (
        bytes([0, 13, 0]) + b"apple" + u64(7 << 8 | DELETE)
        + bytes([4, 9, 5]) + b"y" + u64(8 << 8 | PUT) + b"value"
        + bytes([0, 9, 9]) + b"b" + u64(9 << 8 | PUT_DEADLINE) + u64(500) + b"v"
        + u32(0) + u32(1)
    )  # fmt: skip
    line = bytearray(64)
    for key in (b"apple", b"apply", b"b"):
        g = xxhash.xxh64_intdigest(key) & 0xFFFFFFFF
        for _ in range(6):
            g = g * 0x9E3779B9 & 0xFFFFFFFF
            line[g >> 26] |= 1 << (g >> 23 & 7)
    bloom = bytes(line) + u32(1) + bytes([6, 0, 0, 0])
    index = bytes([0, 1, 2]) + b"c" + bytes([0, len(data)]) + u32(0) + u32(1)
    properties = b""
    restarts = []
    for name, value in [
        (b"created_ms", bytes([0xD2, 0x09])),
        (b"deletions", b"\x01"),
        (b"entries", b"\x03"),
        (b"expiring", b"\x01"),
        (b"largest", b"b"),
        (b"max_sequence", b"\x09"),
        (b"min_sequence", b"\x07"),
        (b"raw_key_bytes", bytes([11 + 24])),
        (b"raw_value_bytes", b"\x06"),
        (b"smallest", b"apple"),
    ]:
        restarts.append(len(properties))
        properties += bytes([0, len(name), len(value)]) + name + value
    properties += b"".join(map(u32, restarts)) + u32(len(restarts))
    content = b""
    offsets = []
    for block in (data, bloom, index, properties):
        offsets.append(len(content))
        content += stored(block, file_id, len(content))
    _, filter_at, index_at, properties_at = offsets
    footer = (
        u64(filter_at) + u32(len(bloom)) + u64(index_at) + u32(len(index)) + u64(properties_at) +
        u32(len(properties)) + u64(file_id) + u32(1) + u32(0)
    )  # fmt: skip
    footer += masked(codec.crc32c(footer)) + b"rkv-sst\n"
    assert len(footer) == 64
    assert (workshop.directory / "000002.sst").read_bytes() == content + footer
    assert finished["size"] == len(content + footer)


def many(count: int, seed: int = 1) -> list[Version]:
    random_source = random.Random(seed)
    keys = random_source.sample(range(10 * count), count)
    return [
        (
            b"key-%06d" % key * random_source.choice([1, 1, 3]),
            sequence,
            PUT,
            random_source.randbytes(sequence % 90),
            0,
        )
        for sequence, key in enumerate(keys, start=1)
    ]


@pytest.mark.parametrize("block_bytes", [1, 100, 4096])
@pytest.mark.parametrize("cache_bytes", [0, 5000, 1 << 20])
def test_what_was_written_is_read_back_both_ways(tmp_path: Path, block_bytes: int, cache_bytes: int) -> None:
    workshop = Workshop(tmp_path, cache_bytes)
    versions = many(1500)
    table = workshop.table(versions, block_bytes=block_bytes)
    assert table.entries() == sorted(versions)
    assert table.entries(reverse=True) == sorted(versions, reverse=True)
    assert table.verify() == 1500
    properties = table.properties()
    assert properties["entries"] == 1500
    assert properties["smallest"] == min(versions)[0]
    assert properties["largest"] == max(versions)[0]
    assert (properties["min_sequence"], properties["max_sequence"]) == (1, 1500)
    assert workshop.cache.stats()["bytes"] <= cache_bytes


def test_the_cache_counts_index_and_filter_and_keeps_its_budget(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, 40_000)
    table = workshop.table(many(3000))
    table.entries()
    stats = workshop.cache.stats()
    assert 30_000 < stats["bytes"] <= 40_000
    assert stats["evictions"] == 0, "who reads everything through pushes nothing out"
    workshop.next_number = 3
    workshop.table(many(20), block_bytes=100).entries()
    assert workshop.cache.stats()["evictions"] > 0, "a short look does"
    everything = Workshop(tmp_path, 1 << 20)
    everything.next_number = 2
    table = everything.table(many(3000))
    table.entries()
    table.verify()
    assert everything.cache.stats()["bytes"] > everything.path(table).stat().st_size - 5000


def test_a_flipped_bit_of_a_table_is_found(workshop: Workshop) -> None:
    (finished,) = workshop.run((memtable_of(many(60)),), block_bytes=300)
    path = workshop.directory / "000001.sst"
    content = path.read_bytes()

    def check() -> None:
        table = workshop.open(finished)
        table.properties()
        table.verify()

    check()
    for offset in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[offset] ^= 0x40
        path.write_bytes(damaged)
        workshop.cache = Cache(1 << 20)
        with pytest.raises(Corruption, match=r"000001\.sst: .*offset \d+"):
            check()


def test_a_flipped_bit_is_not_compacted_into_a_table_with_right_checksums(workshop: Workshop) -> None:
    (finished,) = workshop.run((memtable_of(many(60)),), block_bytes=300)
    path = workshop.directory / "000001.sst"
    content = path.read_bytes()
    data_bytes = int.from_bytes(content[-64:-56], "little")
    assert len(workshop.run((), ((workshop.open(finished),),))) == 1
    for offset in range(0, data_bytes, 7):
        damaged = bytearray(content)
        damaged[offset] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(Corruption, match=r"000001\.sst: .*checksum mismatch \(offset \d+\)"):
            workshop.run((), ((workshop.open(finished),),))


@pytest.mark.parametrize("from_other_file", [False, True])
def test_a_block_in_the_wrong_place_or_file_is_found(workshop: Workshop, from_other_file: bool) -> None:
    versions = [(b"%04d" % number, number + 1, PUT, b"x" * 50, 0) for number in range(100)]
    (finished,) = workshop.run((memtable_of(versions),), block_bytes=1)
    (other,) = workshop.run((memtable_of(versions),), block_bytes=1)
    paths = [workshop.directory / f"{table['number']:06d}.sst" for table in (finished, other)]
    content, source = paths[0].read_bytes(), paths[int(from_other_file)].read_bytes()
    size = 3 + 4 + 8 + 50 + 8 + 5  # one entry a block, restart array, trailer
    source_at = 3 * size if from_other_file else 4 * size
    paths[0].write_bytes(content[: 3 * size] + source[source_at : source_at + size] + content[4 * size :])
    with pytest.raises(Corruption, match=rf"checksum mismatch \(offset {3 * size}\)"):
        workshop.open(finished).verify()


@pytest.mark.parametrize(
    ("at", "text"), [(44, "unknown table version"), (36, "another file id"), (56, "no table footer")]
)
def test_a_footer_that_says_something_else_is_refused(workshop: Workshop, at: int, text: str) -> None:
    (finished,) = workshop.run((memtable_of(many(5)),))
    path = workshop.directory / "000001.sst"
    content = bytearray(path.read_bytes())
    footer = content[-64:]
    footer[at] ^= 2
    footer[52:56] = masked(codec.crc32c(bytes(footer[:52])))
    path.write_bytes(content[:-64] + footer)
    with pytest.raises(Corruption, match=text):
        workshop.open(finished)


def test_an_unknown_block_type_is_refused(workshop: Workshop) -> None:
    (finished,) = workshop.run((memtable_of([(b"k", 1, PUT, b"v", 0)]),))
    path = workshop.directory / "000001.sst"
    content = path.read_bytes()
    size = 3 + 9 + 1 + 8
    block = content[:size] + b"\x01"
    context = u64(finished["file_id"]) + u64(0)
    path.write_bytes(block + masked(codec.crc32c(context + block)) + content[size + 5 :])
    with pytest.raises(Corruption, match="unknown block type"):
        workshop.open(finished).verify()


def random_block(random_source: random.Random) -> bytes:
    """Nonsense that looks a little like a block."""
    entries = b"".join(
        bytes(
            [
                random_source.choice([0, 0, 1, 5, 255]),
                random_source.choice([9, 12, 200]),
                random_source.choice([0, 3, 255]),
            ]
        )
        + random_source.randbytes(random_source.randrange(30))
        for _ in range(random_source.randrange(6))
    )
    restarts = [
        random_source.choice([0, 1, 7, len(entries), 2**32 - 1]) for _ in range(random_source.randrange(1, 4))
    ]
    count = random_source.choice([len(restarts), 0, 2**32 - 1])
    return entries + b"".join(map(u32, restarts)) + u32(count)


def test_nonsense_under_a_right_checksum_is_corruption_and_nothing_worse(workshop: Workshop) -> None:
    random_source = random.Random(8)
    file_id = 5 << 48 | 1
    reader = Workshop(workshop.directory)
    outcomes = set()
    for _ in range(1000):
        content = b""
        footer = b""
        for _ in range(3):
            block = random_block(random_source)
            footer += u64(len(content)) + u32(len(block))
            content += stored(block, file_id, len(content))
        footer += u64(file_id) + u32(1) + u32(0)
        content += footer + masked(codec.crc32c(footer)) + b"rkv-sst\n"
        path = workshop.directory / "000001.sst"
        path.write_bytes(content)
        finished: Any = {
            "number": 1,
            "file_id": file_id,
            "size": len(content),
            "smallest": b"",
            "largest": b"\xff",
        }
        table = reader.open(finished)
        for use in (table.entries, partial(table.entries, reverse=True), table.properties, table.verify):
            try:
                use()
                outcomes.add("read")
            except Corruption:
                outcomes.add("corruption")
    assert outcomes == {"read", "corruption"}


def test_of_each_key_the_newest_version_stays_and_deletions_go_when_nothing_is_below(
    workshop: Workshop,
) -> None:
    old = workshop.table([(b"a", 1, PUT, b"a1", 0), (b"b", 2, PUT, b"b1", 0), (b"c", 3, PUT, b"c1", 0)])
    new = workshop.table([(b"a", 4, PUT, b"a2", 0), (b"b", 6, PUT, b"b2", 0)])
    newest = memtable_of([(b"b", 7, DELETE, b"", 0), (b"d", 8, DELETE, b"", 0), (b"a", 5, PUT, b"a3", 0)])
    (merged,) = workshop.run((newest,), ((new,), (old,)))
    assert workshop.open(merged).entries() == [(b"a", 5, PUT, b"a3", 0), (b"c", 3, PUT, b"c1", 0)]


def test_a_deletion_stays_while_something_older_can_hide_below(workshop: Workshop) -> None:
    levels = (
        (
            workshop.table([(b"a", 1, PUT, b"", 0), (b"c", 2, PUT, b"", 0)]),
            workshop.table([(b"m", 3, PUT, b"", 0)]),
        ),
        (workshop.table([(b"x", 4, PUT, b"", 0), (b"z", 5, PUT, b"", 0)]),),
    )
    deletions = [
        (key, 10 + at, DELETE, b"", 0)
        for at, key in enumerate([b"0", b"a", b"b", b"d", b"m", b"n", b"y", b"zz"])
    ]
    (merged,) = workshop.run((memtable_of(deletions),), below=levels)
    assert [entry[0] for entry in workshop.open(merged).entries()] == [b"a", b"b", b"m", b"y"]


def test_an_expired_version_is_dropped_or_becomes_a_deletion_with_its_sequence(workshop: Workshop) -> None:
    below = workshop.table([(b"b", 1, PUT, b"old", 0)])
    versions = [
        (b"a", 2, PUT_DEADLINE, b"x", 100),
        (b"b", 3, PUT_DEADLINE, b"y", 100),
        (b"c", 4, PUT_DEADLINE, b"z", 101),
    ]
    (merged,) = workshop.run((memtable_of(versions),), below=((below,),), now_ms=100)
    assert workshop.open(merged).entries() == [(b"b", 3, DELETE, b"", 0), (b"c", 4, PUT_DEADLINE, b"z", 101)]
    assert (merged["deletions"], merged["expiring"]) == (1, 1)


def test_nothing_left_makes_no_table(workshop: Workshop) -> None:
    assert workshop.run((memtable_of([(b"a", 1, DELETE, b"", 0)]),)) == []
    assert list(workshop.directory.iterdir()) == []


def test_outputs_are_cut_at_their_size_and_before_they_overlap_too_much(workshop: Workshop) -> None:
    versions = [(b"%04d" % number, number + 1, PUT, bytes(100), 0) for number in range(1000)]
    by_size = workshop.run((memtable_of(versions),), table_bytes=20_000)
    assert 5 <= len(by_size) <= 7
    assert [entry for table in by_size for entry in workshop.open(table).entries()] == versions
    grandparents = tuple(workshop.table(versions[at : at + 100]) for at in range(0, 1000, 100))
    size = max(workshop.path(table).stat().st_size for table in grandparents)
    by_overlap = workshop.run((memtable_of(versions),), overlaps=grandparents, overlap_bytes_max=2 * size)
    assert 3 <= len(by_overlap) <= 5
    assert [entry for table in by_overlap for entry in workshop.open(table).entries()] == versions


def test_a_cancelled_job_stops(workshop: Workshop) -> None:
    job = Job(
        str(workshop.directory),
        (memtable_of(many(10)),),
        (),
        (),
        (),
        now_ms=0,
        table_bytes=1,
        overlap_bytes_max=1,
        block_bytes=1,
        bits_per_key=10,
    )
    job.cancel()
    with pytest.raises(Cancelled):
        job.step()


def test_the_filter_knows_every_key_and_few_others(tmp_path: Path) -> None:
    """Counted through an engine's view: lookups of absent keys inside the range, spared by filters."""
    workshop = Workshop(tmp_path)
    versions = [(b"%08d" % (2 * number), number + 1, PUT, b"v", 0) for number in range(20_000)]
    table = workshop.table(versions)
    view = View(workshop.cache, str(tmp_path), (Memtable(),), ((table,),))
    assert all(view.get(key, 1 << 50, 0) == b"v" for key, *_ in versions)
    assert view.reads.filtered == 0
    assert not any(view.get(b"%08d" % (2 * number + 1), 1 << 50, 0) for number in range(19_999))
    assert 0.98 < view.reads.filtered / 19_999 < 0.995
