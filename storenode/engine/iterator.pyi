"""The pairs of a range as one sequence, of one moment."""

from __future__ import annotations

from storenode.engine.view import View

class Iterator:
    """(key, value) pairs of [start, stop), `limit` at most, ascending or descending, as they were at
    `sequence`; what had expired at `now_ms` is absent. It keeps what it reads until it is closed or comes to
    its end. One thread at a time. Corruption, OSError: a block could not be read; the iterator is at its end
    then."""

    def __init__(
        self,
        view: View,
        start: bytes,
        stop: bytes | None,
        limit: int,
        reverse: bool,
        sequence: int,
        now_ms: int,
    ) -> None: ...
    def __iter__(self) -> Iterator: ...
    def __next__(self) -> tuple[bytes, bytes]: ...
    def close(self) -> None:
        """Let go of what it reads; it is at its end then."""
