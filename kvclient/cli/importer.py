"""The engine of `kvcli import`: batches in flight, acknowledged in the order of the file.

The main thread reads and cuts batches; `IN_FLIGHT` threads send them, each through its own connection of the
client. What is recorded as done is the longest prefix of the file of which every record is acknowledged or
rejected; a continued import begins right behind it, so only the batches that were in flight can be sent a
second time. Two batches with a key in common are never in flight together: the last record of a key in the
file wins, as if the file had been loaded line by line. Knows no click; raises KVError when patience is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from kvclient.cli.records import REJECT_BYTES_SHOWN, FormatError, Item, Mark, Reader, Reject
from kvclient.cli.retrying import Patience, is_transient
from kvclient.errors import InvalidRequest, KVError

# A request of this size keeps client, router and store busy without delaying anybody else for long.
BATCH_RECORDS = 1000
BATCH_BYTES = 1 << 20

# Enough to hide the round trip and the fsync; bounds memory (4 MiB and rejects) and what a continued import
# sends again.
IN_FLIGHT = 4


class PutResult(Protocol):
    @property
    def errors(self) -> list[tuple[int, KVError]]: ...


class Puts(Protocol):
    """What is needed of the client: puts everything, and lists (index, error) of what failed."""

    def __call__(self, items: dict[bytes, bytes], /) -> PutResult: ...


class Batch:
    """A stretch of the file: its puts, its bad records, and the mark behind it."""

    __slots__ = ("items", "lines", "mark", "offset", "records", "rejects", "size")

    def __init__(self) -> None:
        self.items: dict[bytes, bytes] = {}
        self.lines: dict[bytes, int] = {}
        self.rejects: list[Reject] = []
        self.records = 0
        self.size = 0
        self.offset = 0
        self.mark: Mark = {}

    def add(self, item: Item, line: int) -> None:
        if isinstance(item, Reject):
            self.rejects.append(item._replace(record=item.record[: REJECT_BYTES_SHOWN + 1]))
            self.size += len(self.rejects[-1].record)
            return
        key, value = item
        self.items[key] = value
        self.lines[key] = line
        self.size += len(key) + len(value)
        self.records += 1

    @property
    def is_full(self) -> bool:
        return self.records + len(self.rejects) >= BATCH_RECORDS or self.size >= BATCH_BYTES


def batches(reader: Reader) -> Iterator[Batch]:
    """Cut what the reader yields into batches. A FormatError comes behind the batch of what was readable."""
    batch = Batch()
    bad_end = None
    try:
        for item in reader:
            batch.add(item, reader.line)
            if batch.is_full:
                yield _sealed(batch, reader)
                batch = Batch()
    except FormatError as error:
        bad_end = error
    if batch.records or batch.rejects:
        yield _sealed(batch, reader)
    if bad_end is not None:
        raise bad_end


def _sealed(batch: Batch, reader: Reader) -> Batch:
    batch.mark = reader.mark()
    batch.offset = reader.offset
    return batch


class RejectFile:
    """The bad records, one JSON line each; made when the first one comes. Continued at the size that the
    state file knows.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        self._file: FileIO | None = None

    def write(self, rejects: list[Reject]) -> None:
        if not rejects:
            return
        data = memoryview(b"".join([reject.to_line() for reject in rejects]))
        try:
            if self._file is None:
                self._file = open(self.path, "r+b" if self.size else "wb", buffering=0)  # noqa: SIM115
            # Also what a write that failed half-way has left goes.
            self._file.truncate(self.size)
            self._file.seek(self.size)
            rest = data
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            error.filename = str(self.path)
            raise
        self.size += len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Done:
    """What is acknowledged, as it is written to the state file."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.mark: Mark = state.get("mark", {})
        self.imported: int = state.get("imported", 0)
        self.rejected: int = state.get("rejected", 0)
        self.offset: int = state.get("offset", 0)
        self.rejects_size: int = state.get("rejects_size", 0)
        self.finished: bool = state.get("finished", False)

    def state(self) -> dict[str, Any]:
        return dict(vars(self))


class Importer:
    """One run. `on_done` is called on the main thread after every acknowledged batch; `held` puts off
    interrupts (nothing, in a test).
    """

    def __init__(
        self,
        put_many: Puts,
        patience: Patience,
        done: Done,
        rejects: RejectFile,
        on_done: Callable[[Done], None],
        held: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._held = held
        self._put_many = put_many
        self._patience = patience
        self.done = done
        self._rejects = rejects
        self._on_done = on_done
        self._flying: deque[tuple[Batch, Future[list[Reject]]]] = deque()

    def run(self, reader: Reader) -> None:
        """Send everything. However it ends, `done` is right: batches in flight are waited for (each call has
        a deadline), not retried.
        """
        executor = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="import")
        try:
            bad_end = None
            try:
                for batch in batches(reader):
                    self._make_room(batch)
                    self._flying.append((batch, executor.submit(self._send, batch)))
            except FormatError as error:
                bad_end = error
            while self._flying:
                self._acknowledge_first()
            if bad_end is not None:
                raise bad_end
        except BaseException:
            self._patience.stop()
            self._acknowledge_what_arrives()
            raise
        finally:
            executor.shutdown(wait=True)

    def _make_room(self, batch: Batch) -> None:
        while self._flying and self._flying[0][1].done():
            self._acknowledge_first()
        while len(self._flying) >= IN_FLIGHT or any(
            not batch.items.keys().isdisjoint(other.items) for other, _ in self._flying
        ):
            self._acknowledge_first()

    def _acknowledge_first(self) -> None:
        batch, future = self._flying[0]
        refused = future.result()
        rejects = sorted(batch.rejects + refused)
        done = self.done
        with self._held():
            self._rejects.write(rejects)
            self._flying.popleft()
            done.mark = batch.mark
            done.offset = batch.offset
            done.imported += batch.records - len(refused)
            done.rejected += len(rejects)
            done.rejects_size = self._rejects.size
            self._on_done(done)

    def _acknowledge_what_arrives(self) -> None:
        try:
            while self._flying:
                self._acknowledge_first()
        except (KVError, OSError):
            return

    def _send(self, batch: Batch) -> list[Reject]:
        """Put a batch until every record is in or refused for good; gives the refused ones. KVError when
        patience is over.
        """
        items = batch.items
        refused: list[Reject] = []
        trouble = self._patience.session()
        while items:
            try:
                errors = self._put_many(items).errors
            except InvalidRequest as error:
                if len(items) > 1:
                    return refused + self._send_singly(batch, items)
                return [*refused, *(_refusal(batch, key, error) for key in items)]
            except KVError as error:
                trouble.wait_or_raise(error)
                continue
            keys = list(items)
            bad = [(keys[index], cause) for index, cause in errors if isinstance(cause, InvalidRequest)]
            again = [(keys[index], cause) for index, cause in errors if not isinstance(cause, InvalidRequest)]
            refused += [_refusal(batch, key, cause) for key, cause in bad]
            if again:
                if len(again) < len(items):
                    trouble.over()
                trouble.wait_or_raise(_worst([cause for _, cause in again]))
            items = {key: items[key] for key, _ in again}
        return refused

    def _send_singly(self, batch: Batch, items: dict[bytes, bytes]) -> list[Reject]:
        """One request was refused as a whole: find out which records are to blame."""
        refused: list[Reject] = []
        for key, value in items.items():
            single = Batch()
            single.items = {key: value}
            single.lines = {key: batch.lines[key]}
            refused += self._send(single)
        return refused


def _refusal(batch: Batch, key: bytes, error: KVError) -> Reject:
    return Reject(batch.lines[key], f"refused by the cluster: {error.message}", key)


def _worst(errors: list[KVError]) -> KVError:
    """The one to report: a permanent error before a transient one."""
    return next((error for error in errors if not is_transient(error)), errors[0])
