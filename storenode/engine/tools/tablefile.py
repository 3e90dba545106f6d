"""A table as bytes: what of it is sound, where the rest lies, and what is wrong with it (docs/formats.md
sections 3 and 4).

Reads one block at a time. Never trusts an offset or a length; raises `Damage` with file and offset, and
nothing else but OSError. A table whose index is gone is still read: its data blocks are found by their
checksums.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from storenode.engine import codec
from storenode.engine.deletions import RangeDeletion, unpack_deletions
from storenode.engine.tools import blocks
from storenode.engine.version import TableMeta, is_prepared
from storenode.engine.vfs import Vfs

Version = tuple[bytes, int, int, bytes, int]
"""(key, sequence, kind, value without deadline, deadline)."""

FOOTER_BYTES = 64
MAGIC = b"rkv-sst\n"
VERSION = 1
TRAILER_BYTES = 5
KINDS = ("delete", "put", "put-deadline")
"""Names of the kinds by number."""

BLOCK_BYTES_MAX = 64 << 20
"""No block is larger: the largest value a cluster takes is 8 MiB. A length above it is damage, not memory to
take."""

RESYNC_BYTES = 1 << 20
"""How far the end of a block is searched at each offset behind a damaged one, with no index to tell: blocks
are cut at 4 KiB, larger ones hold one large value."""

BLOCK_BEGINS = re.compile(rb"\0|[\x80-\xff](?=[\x01-\x7f])", re.DOTALL)
"""A block has the zero of its first entry first, a compressed one its length: of two bytes below 16 KiB, and
more than is stored."""

SCAN_BYTES = 16 << 20
"""The window in which blocks without an index are searched: a usual table as a whole."""

NUMBERS = (
    "created_ms",
    "deletions",
    "entries",
    "expiring",
    "max_sequence",
    "min_sequence",
    "raw_key_bytes",
    "raw_value_bytes",
)
SEQUENCES = ("max_sequence", "min_sequence")
KEYS = ("largest", "smallest")
RANGES = "range_deletions"


class Damage(Exception):
    """What is wrong, in which file, and where."""

    def __init__(self, path: str, offset: int, what: str) -> None:
        super().__init__(f"{path}: {what} (offset {offset})")
        self.path = path
        self.offset = offset
        self.what = what


class Handle(NamedTuple):
    """Where a block lies; `size` is without the trailer."""

    offset: int
    size: int


class Footer(NamedTuple):
    filter_block: Handle
    index_block: Handle
    properties_block: Handle
    file_id: int


class Block(NamedTuple):
    """A data block by the index: no key of it is above `separator`."""

    handle: Handle
    separator: bytes


class DataBlock(NamedTuple):
    """A data block as it was read: its sound versions in order, and what is wrong with it."""

    handle: Handle
    versions: list[Version]
    damage: Damage | None
    separator: bytes | None


class TableFile:
    """An open table file; use as a context manager. `engine_id` and `number` are what the file's id should
    be, unless it is a prepared table's."""

    def __init__(
        self, vfs: Vfs, path: str, number: int, engine_id: int | None, meta: TableMeta | None = None
    ) -> None:
        """`engine_id` None: whatever the footer says. `meta`: what is known of the table; without it the
        entries of a prepared one have sequence 0."""
        self.path = path
        self.number = number
        self._file = vfs.open(path)
        self.size = os.fstat(self._file.fd).st_size
        self.file_id = meta.file_id if meta else (engine_id or 0) << 48 | number
        self._given_sequence = meta.given_sequence if meta else 0
        self._engine_known = engine_id is not None
        self._footer: Footer | None = None
        self.search_ended = False
        """Whether a search without an index came to the filter: then it saw all that there was."""

    def __enter__(self) -> TableFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def footer(self) -> Footer:
        if self._footer is None:
            self._footer = self._read_footer()
        return self._footer

    def _read_footer(self) -> Footer:
        if self.size < FOOTER_BYTES:
            raise Damage(self.path, 0, f"{self.size} bytes are too short for a table")
        at = self.size - FOOTER_BYTES
        raw = self._read(at, FOOTER_BYTES)
        if raw[56:] != MAGIC:
            raise Damage(self.path, at, "no table footer")
        if codec.masked_crc32c(raw[:52]) != _u32(raw, 52):
            raise Damage(self.path, at, "footer checksum mismatch")
        if _u32(raw, 44) != VERSION:
            raise Damage(self.path, at, f"unknown table version {_u32(raw, 44)}")
        file_id = _u64(raw, 36)
        is_expected = file_id == self.file_id or (is_prepared(file_id) and not is_prepared(self.file_id))
        if self._engine_known and not is_expected:
            raise Damage(self.path, at, f"the table of another engine or number: {show_file_id(file_id)}")
        self.file_id = file_id
        return Footer(
            Handle(_u64(raw, 0), _u32(raw, 8)),
            Handle(_u64(raw, 12), _u32(raw, 20)),
            Handle(_u64(raw, 24), _u32(raw, 32)),
            file_id,
        )

    def block(self, handle: Handle) -> bytes:
        """The content of a block whose checksum holds."""
        end = handle.offset + handle.size + TRAILER_BYTES
        if handle.size > BLOCK_BYTES_MAX or end > self.size:
            raise Damage(self.path, handle.offset, f"a block of {handle.size} bytes lies outside of the file")
        raw = self._read(handle.offset, handle.size + TRAILER_BYTES)
        crc = codec.crc32c(raw[:-4], context(self.file_id, handle.offset))
        if mask(crc) != _u32(raw, handle.size + 1):
            raise Damage(self.path, handle.offset, "block checksum mismatch")
        try:
            return codec.unpacked_block(raw[handle.size], raw[:-TRAILER_BYTES])
        except ValueError as error:
            raise Damage(self.path, handle.offset, f"{error} (type {raw[handle.size]})") from error

    def filter(self) -> bytes:
        handle = self.footer().filter_block
        content = self.block(handle)
        if not blocks.filter_is_sound(content):
            raise Damage(self.path, handle.offset, "malformed filter")
        return content

    def properties(self) -> dict[str, int | bytes]:
        """By name; all that every table has are there."""
        handle = self.footer().properties_block
        entries, sound = blocks.plain_entries(self.block(handle))
        found: dict[str, int | bytes] = {}
        for key, value in entries:
            name = key.decode("ascii", "backslashreplace")
            if name in (*KEYS, RANGES):
                found[name] = value
                continue
            number, end = varint(value, 0)
            if end:
                found[name] = number | (self._given_sequence if name in SEQUENCES else 0)
        missing = [name for name in (*NUMBERS, *KEYS) if name not in found]
        if not sound or missing:
            what = f"malformed properties{': no ' + ', '.join(missing) if missing else ''}"
            raise Damage(self.path, handle.offset, what)
        return found

    def range_deletions(self) -> tuple[RangeDeletion, ...]:
        """Those that were in force when the table was written."""
        packed = self.properties().get(RANGES, b"")
        assert isinstance(packed, bytes)
        try:
            return unpack_deletions(packed)
        except ValueError as error:
            offset = self.footer().properties_block.offset
            raise Damage(self.path, offset, f"malformed range deletions: {error}") from error

    def index(self) -> list[Block]:
        """The data blocks in order; they fill the file from its beginning."""
        handle = self.footer().index_block
        entries, sound = blocks.plain_entries(self.block(handle))
        if not sound:
            raise Damage(self.path, handle.offset, "malformed index block")
        found: list[Block] = []
        following = 0
        for separator, value in entries:
            offset, at = varint(value, 0)
            size, end = varint(value, at) if at else (0, 0)
            if not end:
                raise Damage(self.path, handle.offset, "malformed index entry")
            if offset != following:
                what = f"the index has a block at {offset}, the one before it ends at {following}"
                raise Damage(self.path, handle.offset, what)
            following = offset + size + TRAILER_BYTES
            found.append(Block(Handle(offset, size), separator))
        return found

    def data(self) -> Iterator[DataBlock]:
        """All data blocks in order; without an index, those that their checksums show.

        What is wrong with footer or index comes first, as a block without versions.
        """
        try:
            index = self.index()
        except Damage as damage:
            yield DataBlock(Handle(damage.offset, 0), [], damage, None)
            yield from self._search()
            return
        for block in index:
            yield self.data_block(block)

    def data_block(self, block: Block) -> DataBlock:
        try:
            return self._decoded(block.handle, self.block(block.handle), block.separator)
        except Damage as damage:
            return DataBlock(block.handle, [], damage, block.separator)

    def _decoded(self, handle: Handle, content: bytes, separator: bytes | None) -> DataBlock:
        versions, sound = blocks.data_entries(content)
        if self._given_sequence:
            versions = [(version[0], self._given_sequence, *version[2:]) for version in versions]
        damage = None if sound and versions else Damage(self.path, handle.offset, "malformed block")
        return DataBlock(handle, versions, damage, separator)

    def _search(self) -> Iterator[DataBlock]:
        """Data blocks without an index: they lie one behind the other from the beginning of the file on.

        Ends with the first sound block that holds no versions in order: the filter, which follows them.
        """
        at, last_key = 0, b""
        window, begins = b"", 0
        while at + TRAILER_BYTES < self.size:
            if at + RESYNC_BYTES > begins + len(window) and begins + len(window) < self.size:
                window, begins = self._read(at, min(SCAN_BYTES, self.size - at)), at
            size = blocks.block_size(window, at - begins, context(self.file_id, at))
            if not size:
                found = self._resync(window, at - begins, begins)
                if found is None:
                    return
                handle = Handle(at, found - at)
                yield DataBlock(handle, [], Damage(self.path, at, "no sound block begins here"), None)
                at = found
                continue
            handle = Handle(at, size)
            try:
                block = self._decoded(handle, self.block(handle), None)
            except Damage:
                return
            if block.damage is not None or block.versions[0][0] < last_key:
                self.search_ended = True
                return
            yield block
            last_key = block.versions[-1][0]
            at += size + TRAILER_BYTES

    def _resync(self, window: bytes, start: int, begins: int) -> int | None:
        """Where in the file the next sound block begins; compressed ones of a large value are passed over."""
        for found in BLOCK_BEGINS.finditer(window, start + 1, min(len(window), start + RESYNC_BYTES)):
            at = found.start()
            longest = RESYNC_BYTES if window[at] == 0 else varint(window, at)[0]
            size = blocks.block_size(window[at : at + longest], 0, context(self.file_id, begins + at))
            if size and self._holds_versions(Handle(begins + at, size)):
                return begins + at
        return None

    def _holds_versions(self, handle: Handle) -> bool:
        """Tells a block from bytes whose checksum fits by chance: of millions that are tried some do."""
        try:
            return self._decoded(handle, self.block(handle), None).damage is None
        except Damage:
            return False

    def _read(self, offset: int, size: int) -> bytes:
        content = b""
        while len(content) < size:
            part = os.pread(self._file.fd, size - len(content), offset + len(content))
            if not part:
                raise Damage(self.path, offset + len(content), "the file ends too early")
            content = content + part if content else part
        return content


def context(file_id: int, offset: int) -> int:
    """The CRC-32C that a checksum with this context begins with."""
    return codec.crc32c(file_id.to_bytes(8, "little") + offset.to_bytes(8, "little"))


def mask(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends; an end of 0 if it is not whole."""
    number = shift = 0
    for position in range(at, min(at + 10, len(data))):
        number |= (data[position] & 0x7F) << shift
        if data[position] < 0x80:
            return number & (1 << 64) - 1, position + 1
        shift += 7
    return 0, 0


def show_file_id(file_id: int) -> str:
    if is_prepared(file_id):
        return f"prepared, {file_id & (1 << 48) - 1:012x}"
    return f"engine {file_id >> 48}, number {file_id & (1 << 48) - 1}"


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _u64(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")
