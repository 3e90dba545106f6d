"""Fuzzing of what decodes the engine's files: real files are taken apart, changed, and put together again
with right checksums, so that the code behind the checksum is reached.

Run as a program: directory, seed, seconds, and at most how many cases. What a decoder must do with nonsense
is little: answer, or raise Corruption (InvalidRequest for op streams); never anything else, never more memory
than the file has bytes, never for ever. A case is a function of its seed; the last one is in the directory.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import Corruption, InvalidRequest
from storenode.engine import codec
from storenode.engine.iterator import Iterator
from storenode.engine.job import Job
from storenode.engine.memtable import Memtable
from storenode.engine.table import Cache, Table
from storenode.engine.vfs import Vfs
from storenode.engine.view import View

FILE_ID = 9 << 48
"""Of file 0 of engine 9."""

MAGIC = b"rkv-sst\n"
SEQUENCE_MAX = (1 << 56) - 1
PAGES_MAX = 200
"""Of a scan, ten pairs each: more than any file here has entries."""

NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    127,
    128,
    255,
    256,
    4096,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**56,
    2**63,
    2**64 - 1,
]


class Shape(NamedTuple):
    """How the tables are written that cases are made from; the names are those of a job's options."""

    block_bytes: int
    restart_interval: int
    compression: int = 0


SHAPES = [Shape(400, 16), Shape(1, 1), Shape(2000, 100), Shape(400, 16, 1), Shape(2000, 16, 2)]
"""Some blocks of some entries, an entry a block, one restart in a block, and both kinds of compression."""


class Block(NamedTuple):
    """What is stored of a block, without its checksum."""

    content: bytes
    kind: int = 0

    def stored(self, file_id: int, offset: int) -> bytes:
        data = self.content + bytes([self.kind])
        return data + u32(codec.masked_crc32c(u64(file_id) + u64(offset) + data))


class Parts(NamedTuple):
    """A table taken apart: data blocks with the keys that divide them, the blocks behind them, and the
    footer's version and what follows it."""

    data: list[tuple[bytes, Block]]
    filter: Block
    properties: Block
    version: bytes


def u32(number: int) -> bytes:
    return (number & (2**32 - 1)).to_bytes(4, "little")


def u64(number: int) -> bytes:
    return (number & (2**64 - 1)).to_bytes(8, "little")


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def take_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return number, at


def index_block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A block of which every entry is a restart."""
    content, restarts = b"", b""
    for key, value in entries:
        restarts += u32(len(content))
        content += varint(0) + varint(len(key)) + varint(len(value)) + key + value
    return content + (restarts or u32(0)) + u32(max(len(entries), 1))


def take_apart(content: bytes) -> Parts:
    """Of a sound table."""
    footer = content[-64:]

    def block(offset: int, size: int) -> Block:
        return Block(content[offset : offset + size], content[offset + size])

    def handle(at: int) -> Block:
        offset, size = footer[at : at + 8], footer[at + 8 : at + 12]
        return block(int.from_bytes(offset, "little"), int.from_bytes(size, "little"))

    filter_block, index, properties = (handle(at) for at in (0, 12, 24))
    assert index.kind == 0, "this program reads no compressed index"
    data, at = [], 0
    end = len(index.content) - 4 - 4 * int.from_bytes(index.content[-4:], "little")
    while at < end:
        _, at = take_varint(index.content, at)
        key_size, at = take_varint(index.content, at)
        value_size, at = take_varint(index.content, at)
        key, value = index.content[at : at + key_size], index.content[at + key_size :][:value_size]
        at += key_size + value_size
        offset, rest = take_varint(value, 0)
        size, _ = take_varint(value, rest)
        data.append((key, block(offset, size)))
    return Parts(data, filter_block, properties, footer[44:52])


def put_together(parts: Parts, source: random.Random | None = None) -> bytes:
    """A table with right checksums; with a source, index and footer are sometimes changed, too."""
    content, entries = b"", []
    for key, block in parts.data:
        entries.append((key, varint(len(content)) + varint(len(block.content))))
        content += block.stored(FILE_ID, len(content))
    index = Block(index_block(entries))
    if source and source.random() < 0.3:
        index = Block(mutated(source, index.content), index.kind)
    footer = b""
    for block in (parts.filter, index, parts.properties):
        footer += u64(len(content)) + u32(len(block.content))
        content += block.stored(FILE_ID, len(content))
    if source and source.random() < 0.1:
        at = source.choice([0, 8, 12, 20, 24, 32])
        size = 8 if at in (0, 12, 24) else 4
        number = source.choice([*NUMBERS, len(content), len(content) - 5])
        footer = footer[:at] + u64(number)[:size] + footer[at + size :]
    footer += u64(FILE_ID) + parts.version
    return content + footer + u32(codec.masked_crc32c(footer)) + MAGIC


def mutated(source: random.Random, data: bytes) -> bytes:
    """Some small changes, of the kinds that lengths, offsets and counts suffer from."""
    changed = bytearray(data)
    for _ in range(source.choice([1, 1, 2, 4])):
        size = len(changed)
        at = (
            source.choice([source.randrange(size), source.randrange(min(size, 8)), max(size - 8, 0)])
            if size
            else 0
        )
        piece = source.choice([1, 1, 2, 4, 8, 40])
        kind = source.randrange(7)
        if kind == 0 and size:
            changed[at] ^= 1 << source.randrange(8)
        elif kind == 1 and size:
            changed[at] = source.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
        elif kind == 2:
            changed[at : at + 4] = u32(source.choice([*NUMBERS, size, size - 4, size - 8]))
        elif kind == 3:
            changed[at:at] = varint(source.choice(NUMBERS))
        elif kind == 4:
            del changed[at : at + piece]
        elif kind == 5:
            changed[at:at] = changed[source.randrange(size + 1) :][:piece]
        else:
            del changed[at:]
            changed += source.randbytes(source.randrange(5))
    return bytes(changed)


def mutated_block(source: random.Random, block: Block) -> Block:
    kind = source.choice([0, 1, 2, 255]) if source.random() < 0.1 else block.kind
    return Block(mutated(source, block.content), kind)


class Fuzz:
    """The files that cases are made from, and what is done with each case."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._vfs = Vfs()
        self._smallest: list[bytes] = []
        numbers = range(1, len(SHAPES) + 1)
        self._sound = [self._make_table(number) for number in numbers]
        self._parts = [take_apart(self._path(number).read_bytes()) for number in numbers]
        self._streams = [self._stream(random.Random(number)) for number in range(30)]

    def run(self, seed: str) -> str:
        """One case: how it ended."""
        source = random.Random(seed)
        kind: Callable[[random.Random], str] = source.choices([self._table, self._log, self._ops], [6, 3, 1])[
            0
        ]
        return kind(source)

    # Tables

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:06d}.sst"

    def _open(self, number: int, file_id: int, size: int, smallest: bytes, largest: bytes) -> Table:
        file = self._vfs.open(str(self._path(number)))
        try:
            return Table(Cache(1 << 16), file, number, file_id, size, smallest, largest)
        except BaseException:
            file.close()
            raise

    def _make_table(self, number: int) -> Table:
        source = random.Random(number)
        memtable = Memtable()
        for entry in range(60):
            key = b"key-%03d" % (entry * 3 + number) + b"x" * source.randrange(4)
            kind, deadline = source.choice([(0, 0), (1, 0), (1, 0), (2, 5000)])
            value = source.randbytes(source.choice([0, 3, 60])) * 2 if kind else b""
            memtable.add(key, entry + 1, kind, value, deadline)
        self._smallest.append(memtable.entries()[0][0])
        (table,) = self._compacted((memtable,), (), number, SHAPES[number - 1])
        return table

    def _compacted(
        self, memtables: tuple[Memtable, ...], tables: tuple[Table, ...], number: int, shape: Shape
    ) -> list[Table]:
        """What a job makes of its inputs: one table, or none."""
        job = Job(
            str(self._directory),
            memtables,
            tuple((table,) for table in tables),
            (),
            (),
            now_ms=0,
            table_bytes=1 << 30,
            overlap_bytes_max=1 << 30,
            bits_per_key=10,
            **shape._asdict(),
        )
        with suppress(FileNotFoundError):
            os.unlink(self._path(number))
        file = self._vfs.create(str(self._path(number)))
        try:
            while status := job.step():
                if status == 1:
                    job.open_table(file.fd, number, FILE_ID | number, 1)
            if not file_size(file.fd):
                return []
            made = job.finished()
        finally:
            file.close()
        return [self._open(number, made["file_id"], made["size"], made["smallest"], made["largest"])]

    def _table(self, source: random.Random) -> str:
        at = source.randrange(len(self._parts))
        parts = self._parts[at]
        data = list(parts.data)
        for _ in range(source.choice([0, 1, 1, 2])):
            block = source.randrange(len(data))
            data[block] = (data[block][0], mutated_block(source, data[block][1]))
        if source.random() < 0.2:
            source.shuffle(data)
        changed = parts._replace(data=data)
        if source.random() < 0.3:
            changed = changed._replace(filter=mutated_block(source, parts.filter))
        if source.random() < 0.3:
            changed = changed._replace(properties=mutated_block(source, parts.properties))
        content = put_together(changed, source)
        self._path(0).write_bytes(content)
        try:
            smallest = source.choice([self._smallest[at], b""])
            table = self._open(0, FILE_ID, len(content), smallest, b"key-9")
        except Corruption:
            return "table: refused"
        uses = [
            table.entries,
            lambda: table.entries(reverse=True),
            table.properties,
            lambda: self._compacted((), (table, self._sound[0]), 9, SHAPES[0]),
            *self._uses_of_view(source, table),
        ]
        _answers(table.verify)  # it refuses more than reading does, so it does not count
        corrupt = sum(not _answers(use) for use in uses)
        return "table: corruption" if corrupt else "table: read"

    def _uses_of_view(self, source: random.Random, table: Table) -> list[Callable[[], Any]]:
        memtable = Memtable()
        runs = source.choice([((table,),), ((self._sound[1],), (table,)), ((table,), (self._sound[1],))])
        view = View(Cache(source.choice([0, 1 << 16])), str(self._directory), (memtable,), runs)
        keys = [b"key-%03d" % source.randrange(200) + b"x" * source.randrange(3) for _ in range(6)]
        stream = source.choice(self._streams)
        start, stop = sorted([source.choice([b"", *keys]), source.choice([b"z", *keys])])
        return [
            lambda: [view.get(key, SEQUENCE_MAX, 1) for key in keys],
            lambda: view.multi_get(keys, SEQUENCE_MAX, 1),
            lambda: _scan(view, start, stop, 0),
            lambda: _scan(view, start, stop, 1),
            lambda: view.apply(stream, 1000, 1),
        ]

    # Op streams

    def _stream(self, source: random.Random) -> bytes:
        ops = []
        for _ in range(source.randrange(1, 8)):
            key = b"key-%03d" % source.randrange(200)
            condition = source.choice(
                [None, protocol.absent(), protocol.version_equals(3), protocol.value_equals(b"")]
            )
            ops.append(
                source.choice(
                    [
                        protocol.encode_put(key, source.randbytes(9), source.choice([None, 5]), condition),
                        protocol.encode_delete(key, condition),
                        protocol.encode_increment(key, source.choice([1, -(2**63)])),
                        protocol.encode_touch(key, source.choice([None, 9])),
                        protocol.encode_get(key),
                        protocol.encode_exists(key),
                        _transaction(source, key),
                    ]
                )
            )
        return b"".join(ops)

    def _ops(self, source: random.Random) -> str:
        scan = protocol.encode_scan(b"key-", source.choice([None, b"key-1"]), 10, source.randrange(8))
        stream = mutated(source, source.choice([*self._streams, scan]))
        view = View(Cache(1 << 16), str(self._directory), (Memtable(),), ((self._sound[0],),))
        outcome = "read"
        for use in (lambda: view.read(stream, SEQUENCE_MAX, 1), lambda: view.apply(stream, 100, 1)[0]):
            try:
                protocol.decode_results(use())
            except InvalidRequest:
                outcome = "refused"
        return f"ops: {outcome}"

    # Logs

    def _log(self, source: random.Random) -> str:
        content = self._log_content(source)
        at = source.randrange(len(content) + 1)
        codec.wal_scan(content, FILE_ID | 1, source.choice([48, at, len(content) + 9]))
        codec.wal_proof(content, FILE_ID | 1, at)
        place = self._directory / "engine"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "000001.wal").write_bytes(content)
        try:
            engine = engine_package.open(str(place), engine_id=9)
        except Corruption:
            return "log: refused"
        with engine:
            engine.put(b"key-", b"more")
            found = engine.scan()
            engine.flush()
            assert engine.scan() == found
        with engine_package.open(str(place), engine_id=9) as engine:
            assert engine.scan() == found, "another content after reopening"
            assert engine.verify() == []
        return "log: read"

    def _log_content(self, source: random.Random) -> bytes:
        content = bytearray(codec.wal_header(9, 1, 0, 0))
        if source.random() < 0.05:
            content[:44] = mutated(source, bytes(content[:44])).ljust(44, b"\0")[:44]
            content[44:] = u32(codec.masked_crc32c(bytes(content[:44])))
        sequence = 1
        for _ in range(source.randrange(1, 7)):
            stream = source.choice(self._streams)
            if source.random() < 0.2:
                stream = mutated(source, stream)
            fields = [len(stream), sequence, 1000, source.choice([0, len(content)])]
            if source.random() < 0.15:
                fields[source.randrange(4)] = source.choice([*NUMBERS, len(stream) + 1, len(content)])
            sequence += 8
            record = u32(fields[0]) + b"".join(map(u64, fields[1:])) + stream
            if source.random() < 0.03:
                record = mutated(source, record)
            checksum = codec.masked_crc32c(u64(FILE_ID | 1) + u64(len(content)) + record)
            content += u32(checksum) + record
            content += bytes(-len(content) % 8)
        if source.random() < 0.2:
            del content[source.randrange(len(content)) :]
        return bytes(content)


def file_size(fd: int) -> int:
    return os.fstat(fd).st_size


def _answers(use: Callable[[], Any]) -> bool:
    try:
        use()
    except Corruption:
        return False
    return True


def _transaction(source: random.Random, key: bytes) -> bytes:
    """Of that key and two others."""
    ops = [
        protocol.encode_put(key, source.randbytes(source.choice([9, 40])), source.choice([None, 5])),
        protocol.encode_touch(b"key-%03d" % source.randrange(100), 7),
        protocol.encode_increment(b"n", 1),
        protocol.encode_get(key),
    ]
    compares = [(key, source.choice([protocol.absent(), protocol.present(), protocol.value_equals(b"x")]))]
    return protocol.encode_txn(compares, source.sample(ops, 3), source.sample(ops, source.randrange(4)))


def _scan(view: View, start: bytes, stop: bytes | None, flags: int) -> None:
    for seen, _ in enumerate(Iterator(view, start, stop, SEQUENCE_MAX, bool(flags), SEQUENCE_MAX, 1)):
        assert seen < 10 * PAGES_MAX, "the scan does not end"


def main() -> None:
    directory, seed = Path(sys.argv[1]), sys.argv[2]
    deadline, most = time.monotonic() + float(sys.argv[3]), int(sys.argv[4])
    fuzz = Fuzz(directory)
    outcomes: Counter[str] = Counter()
    for number in count():
        if number == most or time.monotonic() > deadline:
            break
        (directory / "case").write_text(f"{seed}/{number}")
        outcomes[fuzz.run(f"{seed}/{number}")] += 1
    print(dict(sorted(outcomes.items())))


if __name__ == "__main__":
    main()
