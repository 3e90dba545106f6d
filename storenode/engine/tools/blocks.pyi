"""Blocks, filters and a writer of tables for tools that must go on where an engine stops (native/block.h,
bloom.h, table_writer.h)."""

from storenode.engine.job import FinishedTable
from storenode.engine.vfs import File

def data_entries(block: bytes) -> tuple[list[tuple[bytes, int, int, bytes, int]], bool]:
    """The versions (key, sequence, kind, value, deadline) of a data block up to the first that is malformed,
    and whether there is none."""

def plain_entries(block: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
    """The same for a block of index or properties: (key, value)."""

def filter_is_sound(content: bytes) -> bool:
    """Whether a filter's lines fill it. Ask before `filter_knows`."""

def filter_knows(content: bytes, key: bytes) -> bool:
    """False: the filter says that the key is not in the table."""

def block_size(content: bytes, start: int, context: int) -> int:
    """The size of the sound block that begins at `start`, found by its checksum alone; 0 if there is none.

    `context`: CRC-32C of the 16 bytes `file id | offset of the block` (docs/formats.md, Checksums).
    """

class TableWriter:
    """Writes one table of versions in order, all of them: unlike a Job it drops nothing."""

    def __init__(
        self,
        file: File,
        number: int,
        file_id: int,
        created_ms: int,
        *,
        block_bytes: int = 4096,
        restart_interval: int = 16,
        bits_per_key: int = 10,
    ) -> None: ...
    @property
    def size(self) -> int:
        """Bytes so far."""
    def add(self, key: bytes, sequence: int, kind: int, value: bytes, deadline: int) -> None:
        """Corruption if the version does not come behind the one before it."""
    def finish(self) -> FinishedTable:
        """End the table, which has an entry at least; it is not synced."""
