"""The engine of `kvcli backup create`: the cuts of partitions, page by page, into files.

Several threads pull a partition each. A page is asked for when the one before is written, so that memory is
bounded here, in the router and in the store; a page that got lost is asked for again. When the store that has
a cut goes away, or has let it go, that partition is begun anew, with another cut from whoever leads then.
Knows no click; raises KVError when patience is over.
"""

from __future__ import annotations

import secrets
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from kvclient.cli.backupfile import Cut, PartitionWriter
from kvclient.cli.backupset import Row
from kvclient.cli.failure import Failure
from kvclient.cli.retrying import Patience, Trouble
from kvclient.errors import Conflict, Exit, KVError, ProtocolError, Unavailable

READ_SECONDS: Final = 30.0
"""For one page, which the store may make wait for its rate limit."""

CLOSE_SECONDS: Final = 1.0
"""The store lets a cut go by itself when nobody reads it for a minute."""

CUTS_PER_PARTITION_MAX: Final = 5
"""A partition is begun anew so often; then something is wrong that another attempt does not mend."""

T = TypeVar("T")


class Stopped(Exception):
    """The job was stopped while this partition was being pulled."""


class _CutGone(Exception):
    """The cut cannot be read any more."""


class Admin(Protocol):
    """What is needed of the client."""

    def __call__(self, command: str, *arguments: Any, timeout: float | None = None) -> Any: ...


class Pace:
    """At most so many bytes a second, of all threads together; None: as many as there are."""

    def __init__(self, bytes_per_second: int | None, stopped: threading.Event) -> None:
        self._rate = bytes_per_second
        self._stopped = stopped
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait as long as these bytes ask for."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            wait = self._free_at - now
        self._stopped.wait(wait)


class Puller:
    """Pulls partitions of `cluster` (its id). `names`: node ids to names. `on_page(records, bytes)` is called
    by any thread, with negative numbers for what is thrown away.
    """

    def __init__(
        self,
        admin: Admin,
        cluster: str,
        names: dict[int, str],
        patience: Patience,
        pace: Pace,
        on_page: Callable[[int, int], None],
    ) -> None:
        self._admin = admin
        self._cluster = cluster
        self._names = names
        self._patience = patience
        self._pace = pace
        self._on_page = on_page

    def pull(self, partition: int, path: Path) -> Row:
        """Write the file of a partition; its row of the manifest, but for the file's name."""
        trouble = self._patience.session()
        why = ""
        for _ in range(CUTS_PER_PARTITION_MAX):
            try:
                return self._once(partition, path, trouble)
            except _CutGone as gone:
                why = str(gone)
        raise Failure(
            Exit.UNAVAILABLE,
            f"partition {partition} was begun {CUTS_PER_PARTITION_MAX} times and never ended: {why}",
        )

    def _once(self, partition: int, path: Path, trouble: Trouble) -> Row:
        number = secrets.randbits(63) | 1
        said = self._ask(trouble, "open", partition, number)
        node = _field(said, "node", int)
        cut = Cut(
            partition,
            self._cluster,
            _field(said, "index", int),
            _field(said, "term", int),
            _field(said, "taken_ms", int),
        )
        writer = PartitionWriter(path, cut)
        try:
            self._pages(writer, node, number, trouble)
            digest = writer.finish()
        except BaseException:
            self._on_page(-writer.records, -writer.raw_bytes)
            raise
        finally:
            writer.close()
            with suppress(KVError):
                self._admin("backup", "close", node, number, timeout=CLOSE_SECONDS)
        return {
            "partition": partition,
            "node": self._names.get(node, str(node)),
            "index": cut.index,
            "term": cut.term,
            "taken_ms": cut.taken_ms,
            "records": writer.records,
            "raw_bytes": writer.raw_bytes,
            "bytes": writer.size,
            "sha256": digest,
        }

    def _pages(self, writer: PartitionWriter, node: int, number: int, trouble: Trouble) -> None:
        start: bytes | None = b""
        while start is not None:
            said = self._page(node, number, start, trouble)
            records = _field(said, "records", bytes)
            following = said.get("next")
            if following is not None and not (type(following) is bytes and following > start):
                raise ProtocolError("a page leads back to where it came from")
            before = writer.records, writer.raw_bytes
            try:
                writer.add(_field(said, "timed", bool), records, _field(said, "count", int))
            except ValueError as error:
                raise ProtocolError(f"a page of node {node} cannot be kept: {error}") from None
            self._on_page(writer.records - before[0], writer.raw_bytes - before[1])
            trouble.over()
            self._pace.take(len(records))
            start = following

    def _page(self, node: int, number: int, start: bytes, trouble: Trouble) -> Any:
        """A page as it was sent."""
        while True:
            try:
                said = self._ask(trouble, "read", node, number, start)
            except Conflict as error:
                raise _CutGone(error.message) from None
            if zlib.crc32(_field(said, "records", bytes)) == _field(said, "crc", int):
                return said
            trouble.wait_or_raise(Unavailable(f"a page of node {node} was damaged on its way"))

    def _ask(self, trouble: Trouble, verb: str, *arguments: Any) -> Any:
        while True:
            if self._patience.stopped.is_set():
                raise Stopped
            try:
                return self._admin("backup", verb, *arguments, timeout=READ_SECONDS)
            except KVError as error:
                trouble.wait_or_raise(error)
                if verb == "read" and isinstance(error, Unavailable):
                    raise _CutGone(error.message) from None


def _field(said: Any, name: str, kind: type[T]) -> T:
    value = said.get(name) if isinstance(said, dict) else None
    if type(value) is not kind:
        raise ProtocolError(f"{name} of the answer is no {kind.__name__}")
    return value
