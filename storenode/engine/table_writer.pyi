"""Prepared tables, for `Engine.ingest`."""

from collections.abc import Iterable
from types import TracebackType

from storenode.engine.options import Options
from storenode.engine.vfs import Vfs

class TableWriter:
    """Writes one prepared table to the new file `path`. As a context manager it finishes the table at the
    end, and removes the file if there was an error.

        with TableWriter("prepared.sst") as table:
            table.add(b"a", b"1")
            table.delete(b"b")
        engine.ingest(["prepared.sst"])

    Keys come in strictly ascending order, one entry a key; ValueError names both keys otherwise, and has
    added nothing. OSError while writing: the file is removed, and the writer is of no further use. Of
    `options` only those of blocks, filter and compression are used. One thread.
    """

    path: str
    def __init__(self, path: str, *, options: Options | None = None, vfs: Vfs | None = None) -> None:
        """FileExistsError if there is such a file."""
    @property
    def entries(self) -> int:
        """How many were added."""
    def add(self, key: bytes, value: bytes, deadline_ms: int | None = None) -> None:
        """A value; absent from `deadline_ms` (since 1970) on."""
    def add_many(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Many values without a deadline, in one call. Those before one that is refused are added."""
    def delete(self, key: bytes) -> None:
        """That the key is absent, whatever the engine has."""
    def finish(self) -> None:
        """End the table; it is durable on return. ValueError if nothing was added."""
    def discard(self) -> None:
        """Give up, and remove the file."""
    def __enter__(self) -> TableWriter: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
