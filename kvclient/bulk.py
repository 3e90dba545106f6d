"""get_many, put_many and delete_many: what they send and how their results come together. Shared by both
shells.

A `Bulk` is fed item by item; the shell waits where its batcher is full. Items may be more than fit into
memory: only results and failures are kept. Sans-I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

from kvclient.batching import BATCH_OPS, Batch, Batcher, outcome
from kvclient.calls import Call, Key
from kvclient.errors import BatchError, CodecError, ConnectError, InvalidRequest, KVError

V = TypeVar("V")
K = TypeVar("K", bound=Key)
T = TypeVar("T")

# Requests of up to 512 ops or 1 MiB under way at once: enough to keep every store busy.
REQUESTS_IN_FLIGHT = 8
MISSING = object()


class BatchResult:
    """How a put_many went: `ok` counts the items that were written, `errors` lists (index of the item,
    exception) in order.
    """

    __slots__ = ("errors", "ok")

    def __init__(self, ok: int, errors: list[tuple[int, KVError]]) -> None:
        self.ok = ok
        self.errors = errors

    def raise_for_errors(self) -> None:
        """BatchError if any item failed."""
        if self.errors:
            raise _batch_error(self.ok, self.errors)

    def __repr__(self) -> str:
        return f"BatchResult(ok={self.ok}, errors={len(self.errors)})"


class Bulk(Generic[T]):
    """The outcomes of a series of calls of one kind. `keep(index, result)` is called for every item that
    succeeds, in no order.
    """

    def __init__(
        self,
        start: Callable[[Batch], None],
        make: Callable[..., Call[T]],
        keep: Callable[[int, T], None],
        *,
        timeout: float,
        read_mode: int = 0,
    ) -> None:
        self.ok = 0
        self.batcher = Batcher(
            start,
            self._collect,
            batch=BATCH_OPS,
            max_in_flight=REQUESTS_IN_FLIGHT,
            timeout=timeout,
            read_mode=read_mode,
        )
        self._make = make
        self._keep = keep
        self._count = 0
        self._errors: list[tuple[int, KVError]] = []
        self._items: dict[Batch, list[tuple[int, Call[T]]]] = {}

    def add(self, *arguments: Any) -> None:
        """Add one item; an invalid one becomes an error and is not sent. TypeError goes to the caller."""
        index = self._count
        self._count += 1
        try:
            call = self._make(*arguments)
        except InvalidRequest as error:
            self._errors.append((index, error))
            return
        # The batch may be finished within add() only by a later turn of the shell, so its items are known
        # before.
        batch = self.batcher.add(call)
        self._items.setdefault(batch, []).append((index, call))

    def _collect(self, batch: Batch) -> None:
        for position, (index, call) in enumerate(self._items.pop(batch)):
            try:
                result = outcome(batch, position, call.decode)
            except KVError as error:
                self._errors.append((index, error))
            except Exception as error:  # noqa: BLE001 - a codec of the application's own may raise anything
                unreadable = CodecError(f"the codec cannot read the value: {type(error).__name__}: {error}")
                unreadable.__cause__ = error
                self._errors.append((index, unreadable))
            else:
                self.ok += 1
                self._keep(index, result)

    @property
    def errors(self) -> list[tuple[int, KVError]]:
        """The failures, by index."""
        return sorted(self._errors, key=lambda pair: pair[0])

    @property
    def unreachable(self) -> ConnectError | None:
        """The error to raise when nobody was there for any item."""
        errors = self._errors
        if not self.ok and errors and all(type(error) is ConnectError for _, error in errors):
            return cast(ConnectError, errors[0][1])
        return None

    def raise_for_errors(self, results: object) -> None:
        """If nothing succeeded, the first error; BatchError with `details["results"]` if a part did."""
        if self._errors:
            if not self.ok:
                raise self.errors[0][1]
            raise _batch_error(self.ok, self.errors, results=results)


def _batch_error(ok: int, errors: list[tuple[int, KVError]], **details: Any) -> BatchError:
    first = errors[0][1]
    text = f"{len(errors)} of {ok + len(errors)} ops failed; the first: {first}"
    return BatchError(text, errors=errors, **details)


def pairs(items: Mapping[K, V] | Iterable[tuple[K, V]]) -> Iterable[tuple[K, V]]:
    """The items of a mapping, or the pairs themselves."""
    return items.items() if isinstance(items, Mapping) else items


def found(keys: list[K], values: list[Any]) -> dict[K, Any]:
    """get_many's answer: the keys as they were given, in that order, without the missing ones."""
    return {key: value for key, value in zip(keys, values, strict=True) if value is not MISSING}
