"""Checksums, hash, log records and compressed blocks (docs/formats.md sections 1 to 3)."""

from collections.abc import Iterable

def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C of `data`, continuing `crc`."""

def crc32c_portable(data: bytes, crc: int = 0) -> int:
    """The same without the CPU's instruction; for tests."""

def masked_crc32c(data: bytes) -> int:
    """What is stored: docs/formats.md, Checksums."""

def hash64(data: bytes) -> int:
    """XXH64 with seed 0."""

def unpacked_block(type: int, stored: bytes) -> bytes:
    """A block as it was before it was compressed (docs/formats.md section 3). ValueError: it is not one."""

def wal_header(engine_id: int, number: int, previous: int, previous_length: int, unsynced: int = 0) -> bytes:
    """The 48 bytes that a log begins with. `unsynced`: of the previous log's bytes, the last ones, which need
    not be durable."""

def wal_records(
    entries: Iterable[tuple[int, int, bytes | bytearray | memoryview]], file_id: int, offset: int, synced: int
) -> bytes:
    """The records of (first_sequence, now_ms, ops), to be written at `offset`."""

def wal_scan(content: bytes, file_id: int, start: int) -> tuple[list[tuple[int, int, bytes]], int]:
    """The entries of all sound records from `start` on (marks left out), and the offset where they end."""

def wal_proof(content: bytes, file_id: int, bad: int) -> int:
    """The offset of a record that proves that what lies at `bad` was durable; 0 if there is none."""
