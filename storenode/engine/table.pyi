"""Tables (docs/formats.md section 4) for reading, and the block cache (native/table.h, native/cache.h)."""

from collections.abc import Callable

from storenode.engine.handles import Handles
from storenode.engine.vfs import File

class Cache:
    """Checked blocks of all tables of a process within `budget` bytes, second chance, oldest first. Any
    thread."""

    def __init__(self, budget: int) -> None: ...
    def stats(self) -> dict[str, int]:
        """budget, bytes (of blocks, data, index and filter alike), pinned_bytes (of them: index and filter
        that stay with their table), map_bytes (beside them); blocks, hits, misses, evictions."""

class Table:
    """An open table. Opening reads and checks the footer: Corruption if it is not the table the manifest
    means."""

    discard: Callable[[], None] | None
    def __init__(
        self,
        cache: Cache,
        file: File,
        number: int,
        file_id: int,
        size: int,
        smallest: bytes,
        largest: bytes,
        handles: Handles | None = None,
        max_sequence: int = ...,
        given_sequence: int = 0,
    ) -> None:
        """Takes the file over. With `handles` its descriptor may be closed and opened again, by path;
        without, it stays open as long as the table. `max_sequence`: no version is newer; without it nobody
        knows. `given_sequence`: of a prepared table, the sequence of all its entries."""
    @property
    def number(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def compression(self) -> int:
        """The type of its compressed blocks (docs/formats.md section 3); 0: it has none."""
    def pin(self) -> None:
        """Have the file open, and keep it so until the table is gone. OSError if it cannot be opened."""
    def properties(self) -> dict[str, int | bytes]:
        """The table's properties by name."""
    def verify(self) -> int:
        """Read all of it, past the cache, and check blocks, the order of keys, that index, filter and bounds
        lead to each, and the properties; the number of entries. Corruption names the first damage."""
    def entries(self, reverse: bool = False) -> list[tuple[bytes, int, int, bytes, int]]:
        """All versions as (key, sequence, kind, value, deadline). For tools and tests: holds them all in
        memory."""
