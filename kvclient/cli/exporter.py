"""The engine of `kvcli export`: pages of a scan into a file that appears under its name only when it is
complete.

The bytes go to FILE.partial, which is renamed at the end; a state file records how many bytes and keys of it
are good, and the key to go on from. Writing to a pipe or a device is direct, and cannot be continued. An
export is not a snapshot: each page is a consistent cut of its partitions, and writes that happen meanwhile
may be in it or not. Knows no click.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kvclient.cli.records import Reject, Writer
from kvclient.cli.retrying import Patience
from kvclient.errors import KVError

# Keys per write to the file; with values at their limit the scan's own page limit is what bounds memory.
PAGE_KEYS = 1000
PAGE_BYTES = 4 << 20


class ScannedEntry(Protocol):
    @property
    def key(self) -> bytes: ...
    @property
    def value(self) -> bytes | None: ...


class Sink(Protocol):
    """A binary file, or stdout."""

    def write(self, data: bytes, /) -> object: ...
    def flush(self) -> object: ...


class Scan(Protocol):
    """What is needed of the client: entries from `start` on, in key order."""

    def __call__(self, start: bytes) -> Iterable[ScannedEntry]: ...


class Exported:
    """How far it has come, as it is written to the state file. `next_key` in hex."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.keys: int = state.get("keys", 0)
        self.skipped: int = state.get("skipped", 0)
        self.size: int = state.get("size", 0)
        self.next_key: str = state.get("next_key", "")
        self.writer: dict[str, int] = state.get("writer", {})
        self.finished: bool = state.get("finished", False)

    def state(self) -> dict[str, Any]:
        return dict(vars(self))


class Exporter:
    """One run. `on_page` is called after every page written; `on_reject` for every entry that the format
    cannot hold; `held` puts off interrupts.
    """

    def __init__(
        self,
        scan: Scan,
        writer: Writer,
        patience: Patience,
        done: Exported,
        on_page: Callable[[Exported], None],
        on_reject: Callable[[Reject], None],
        held: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._held = held
        self._scan = scan
        self._writer = writer
        self._patience = patience
        self.done = done
        self._on_page = on_page
        self._on_reject = on_reject

    def run(self, out: Sink) -> None:
        """Write everything from where `done` is. Afterwards, or after an exception, `done` says what of `out`
        is good.
        """
        done = self.done
        if done.size:
            self._writer.restore(done.writer)
        else:
            head = self._writer.head()
            out.write(head)
            done.size += len(head)
            done.writer = self._writer.state()
        trouble = self._patience.session()
        while True:
            try:
                for page in pages(self._scan(bytes.fromhex(done.next_key))):
                    self._write(out, page)
                    trouble.over()
                break
            except KVError as error:
                trouble.wait_or_raise(error)
        tail = self._writer.tail()
        out.write(tail)
        done.size += len(tail)

    def _write(self, out: Sink, page: list[tuple[bytes, bytes]]) -> None:
        data, rejects = self._writer.page(page)
        out.write(data)
        out.flush()
        for reject in rejects:
            self._on_reject(reject)
        done = self.done
        with self._held():
            done.keys += len(page) - len(rejects)
            done.skipped += len(rejects)
            done.size += len(data)
            done.writer = self._writer.state()
            # The first key that could follow.
            done.next_key = (page[-1][0] + b"\0").hex()
            self._on_page(done)


def pages(entries: Iterable[ScannedEntry]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Cut a scan into pages, bounded by keys and bytes."""
    page: list[tuple[bytes, bytes]] = []
    size = 0
    for entry in entries:
        value = entry.value or b""
        page.append((entry.key, value))
        size += len(entry.key) + len(value)
        if len(page) >= PAGE_KEYS or size >= PAGE_BYTES:
            yield page
            page = []
            size = 0
    if page:
        yield page


class BadPartial(ValueError):
    """FILE.partial is not what the state file speaks of."""


def open_partial(path: Path, size: int) -> BinaryIO:
    """FILE.partial, cut back to the bytes that are known to be good; BadPartial if they are not there."""
    try:
        file = open(path, "r+b" if size else "wb")  # noqa: SIM115 - the caller closes it
    except FileNotFoundError:
        if not size:
            raise
        raise BadPartial(f"{path} is gone, the state file knows of {size} bytes of it") from None
    there = file.seek(0, os.SEEK_END)
    if there < size:
        file.close()
        raise BadPartial(f"{path} is {there} bytes, the state file knows of {size}")
    file.truncate(size)
    file.seek(size)
    return file


def publish(partial: Path, path: Path) -> None:
    """Give the finished file its name, durably."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
