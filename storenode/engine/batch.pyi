"""An op stream in the making: what `Engine.write` applies as one entry (docs/protocol.md section 2)."""

from collections.abc import Iterable

class WriteBatch:
    """Writes that are made together or not at all, in order; a later one wins over an earlier one. May be
    written more than once. TypeError, ValueError: what is no key or value is not taken, the batch stays as it
    was."""

    ops: bytes
    """The op stream."""
    def __len__(self) -> int:
        """Ops so far."""
    def put(self, key: bytes, value: bytes) -> None: ...
    def put_many(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Many puts with one call; those before one that is refused are in."""
    def delete(self, key: bytes) -> None: ...
    def clear(self) -> None: ...
