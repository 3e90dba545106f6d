"""A view: what one reader sees (native/view.h, native/execute.h, native/scan.h)."""

from collections.abc import Iterable

from kvclient.errors import Corruption
from storenode.engine.memtable import Memtable
from storenode.engine.ranges import Ranges
from storenode.engine.reads import Reads
from storenode.engine.table import Cache, Table

class View:
    """Memtables (newest first) over runs of tables (newest first); holds references to all of them.

    `sequence` everywhere: versions above it are not seen. `now_ms`: what has expired by then counts as
    absent. No deletion in `ranges` is newer than a `sequence` that is asked for.
    """

    active: Memtable
    memtables: tuple[Memtable, ...]
    runs: tuple[tuple[Table, ...], ...]
    reads: Reads
    def __init__(
        self,
        cache: Cache,
        directory: str,
        memtables: tuple[Memtable, ...],
        runs: tuple[tuple[Table, ...], ...],
        reads: Reads | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        """`reads`: where its lookups are counted."""
    def apply(
        self, ops: bytes | bytearray | memoryview, first_sequence: int, now_ms: int
    ) -> tuple[bytes, int, Corruption | None]:
        """Execute a logged stream against the first memtable: results, number of ops, and the first damage
        that an op met.

        InvalidRequest, with nothing executed, if the stream is not one. Only one thread at a time; others may
        read meanwhile, with a sequence below `first_sequence`.
        """
    def apply_all(
        self, streams: list[bytes], first_sequence: int, now_ms: int
    ) -> tuple[list[bytes], int, Corruption | None]:
        """As `apply`, of several streams as if they were one: the results of each, the number of all ops.
        InvalidRequest, with nothing executed, if any is none."""
    def read(self, ops: bytes | bytearray | memoryview, sequence: int, now_ms: int) -> bytes:
        """Results of a stream of GET, EXISTS and SCAN."""
    def get(self, key: bytes, sequence: int, now_ms: int, by_clock: bool = False) -> bytes | None:
        """`by_clock`: the time is the wall's, but not before `now_ms`; asked for only where it matters."""
    def multi_get(self, keys: Iterable[bytes], sequence: int, now_ms: int) -> list[bytes | None]: ...
