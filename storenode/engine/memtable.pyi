"""The memtable: an arena skip list of versions (native/memtable.h)."""

class Memtable:
    """One memtable; its memory goes with its last reference. `first_wal` is the log that its first entry
    is in."""

    first_wal: int
    def __init__(self, first_wal: int = 0) -> None: ...
    @property
    def memory_bytes(self) -> int:
        """Memory taken from the system for entries; 0 until the first one."""
    @property
    def count(self) -> int:
        """Number of versions."""
    def add(self, key: bytes, sequence: int, kind: int = 1, value: bytes = b"", deadline: int = 0) -> None:
        """Add one version; (key, sequence) must be new. For tools and tests: entries are applied through a
        View."""
    def entries(self, reverse: bool = False) -> list[tuple[bytes, int, int, bytes, int]]:
        """All versions as (key, sequence, kind, value, deadline), keys ascending and newest first, or the
        reverse."""
