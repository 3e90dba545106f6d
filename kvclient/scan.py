"""Scans: a range of keys, page by page, in key order.

`Cursor` is the sans-I/O part: it says what to ask next and takes pages in. `Scan` and `AsyncScan` are
iterators over it. A page is a consistent cut of each partition; the pages of one scan are not taken at one
moment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Generic, TypeVar

from kvclient import protocol
from kvclient.calls import Calls, Entry, Key, encode_key
from kvclient.errors import InvalidRequest, ProtocolError, from_result

V = TypeVar("V")

PAGE_DEFAULT = 1000


def successor(prefix: bytes) -> bytes | None:
    """The first key after all keys with this prefix; None if there is none (empty, or all 0xFF)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def key_range(
    calls: Calls[Any], prefix: Key, start: Key | None, stop: Key | None
) -> tuple[bytes, bytes | None]:
    """The full keys [start, stop) of a prefix within a namespace; start and stop narrow it."""
    whole = calls.prefix + _bound(prefix)
    first, last = whole, successor(whole)
    if start is not None:
        first = max(first, calls.prefix + _bound(start))
    if stop is not None:
        end = calls.prefix + _bound(stop)
        last = end if last is None else min(last, end)
    return first, last


def _bound(key: Key) -> bytes:
    if isinstance(key, str):
        key = encode_key(key)
    if not isinstance(key, bytes):
        raise TypeError(f"a key is bytes or str, not {type(key).__name__}")
    if len(key) > protocol.KEY_BYTES_MAX:
        raise InvalidRequest(f"a bound of {len(key)} bytes is longer than any key ({protocol.KEY_BYTES_MAX})")
    return key


class Cursor(Generic[V]):
    """Where a scan is: the range that is left, and what it wants."""

    def __init__(
        self,
        calls: Calls[V],
        bounds: tuple[bytes, bytes | None],
        *,
        reverse: bool,
        limit: int | None,
        keys_only: bool,
        page: int,
    ) -> None:
        if not 1 <= page <= protocol.SCAN_LIMIT_MAX:
            raise InvalidRequest(f"page={page} is not in 1..{protocol.SCAN_LIMIT_MAX}")
        if limit is not None and limit < 0:
            raise InvalidRequest(f"limit={limit} is below 0")
        self._calls = calls
        self._start, self._stop = bounds
        self._reverse = reverse
        self._left = limit
        self._keys_only = keys_only
        self._page = page
        self._flags = protocol.SCAN_REVERSE * reverse | protocol.SCAN_KEYS_ONLY * keys_only
        self.done = limit == 0 or (self._stop is not None and self._start >= self._stop)
        # The end of the range was met, as opposed to the caller's limit.
        self.exhausted = self.done and limit != 0

    @staticmethod
    def count_op(bounds: tuple[bytes, bytes | None]) -> bytes:
        """The op that counts a whole range."""
        return protocol.encode_scan(*bounds, protocol.SCAN_LIMIT_MAX, protocol.SCAN_COUNT)

    @staticmethod
    def counted(result: list[Any]) -> int:
        """The result of a `count_op`."""
        if result[0] != 0:
            raise from_result(result)
        if len(result) < 2 or type(result[1]) is not int:
            raise ProtocolError("malformed answer: a count is missing")
        return result[1]

    def next_op(self) -> bytes:
        """The op that asks for the next page."""
        count = self._page if self._left is None else min(self._page, self._left)
        return protocol.encode_scan(self._start, self._stop, count, self._flags)

    def feed(self, result: list[Any]) -> list[Entry[V]]:
        """Take a page in; the cursor stands behind it."""
        if result[0] != 0:
            raise from_result(result)
        if len(result) < 3 or type(result[2]) is not bytes:
            raise ProtocolError("malformed answer: a page's entries are missing")
        skip = len(self._calls.prefix)
        decode = self._calls.decode_value
        if self._keys_only:
            entries: list[Entry[Any]] = [
                Entry(key[skip:], None, version) for key, _, version in protocol.decode_entries(result[2])
            ]
        else:
            entries = [
                Entry(key[skip:], decode(value), version)  # type: ignore[arg-type]
                for key, value, version in protocol.decode_entries(result[2])
            ]
        resume = result[3] if len(result) > 3 else None
        if self._left is not None:
            self._left -= len(entries)
        if resume is None:
            self.done = self.exhausted = True
        else:
            self._move(resume)
            self.done = self._left is not None and self._left <= 0
        return entries

    def _move(self, resume: bytes) -> None:
        moved = resume < self._stop if self._reverse and self._stop is not None else resume > self._start
        if not moved and not (self._reverse and self._stop is None):
            raise ProtocolError("a scan's resume key does not move on")
        if self._reverse:
            self._stop = resume
        else:
            self._start = resume

    def after_page(self) -> bytes | None:
        """The bound to go on with behind the pages taken in; None at the end."""
        bound = self._stop if self._reverse else self._start
        return None if self.exhausted or bound is None else bound[len(self._calls.prefix) :]

    def after_key(self, last: bytes) -> bytes | None:
        """The bound to go on with behind one entry; None if no key can follow."""
        if self._reverse:
            return last
        room = len(self._calls.prefix) + len(last) < protocol.KEY_BYTES_MAX
        return last + b"\0" if room else successor(last)


class _Pages(Generic[V]):
    """What both iterators share: the page that is being given out."""

    def __init__(self, cursor: Cursor[V]) -> None:
        self._cursor = cursor
        self._page: list[Entry[V]] = []
        self._position = 0

    @property
    def resume(self) -> bytes | None:
        """Where another scan of the same prefix goes on after the entries given out so far: its `start`, or
        in reverse its `stop`. None once the range is used up.
        """
        if self._position < len(self._page):
            return self._cursor.after_key(self._page[self._position - 1].key)
        return self._cursor.after_page()

    def _take(self, entries: list[Entry[V]]) -> None:
        self._page = entries
        self._position = 0


class Scan(_Pages[V], Iterator[Entry[V]]):
    """The entries of a range, in key order. Iterate it, or take whole pages with `pages()`.

    A page is a consistent cut of each partition; the pages of one scan are not taken at one moment.
    """

    def __init__(self, cursor: Cursor[V], fetch: Callable[[bytes], list[Any]]) -> None:
        super().__init__(cursor)
        self._fetch = fetch

    def __next__(self) -> Entry[V]:
        while self._position >= len(self._page):
            if self._cursor.done:
                raise StopIteration
            self._take(self._cursor.feed(self._fetch(self._cursor.next_op())))
        self._position += 1
        return self._page[self._position - 1]

    def pages(self) -> Iterator[list[Entry[V]]]:
        """The rest, as lists of entries; `resume` stands behind the page given out."""
        rest = self._page[self._position :]
        self._position = len(self._page)
        if rest:
            yield rest
        while not self._cursor.done:
            self._take(self._cursor.feed(self._fetch(self._cursor.next_op())))
            self._position = len(self._page)
            if self._page:
                yield self._page


class AsyncScan(_Pages[V], AsyncIterator[Entry[V]]):
    """The entries of a range, in key order. Iterate it with `async for`, or take whole pages with `pages()`.

    A page is a consistent cut of each partition; the pages of one scan are not taken at one moment.
    """

    def __init__(self, cursor: Cursor[V], fetch: Callable[[bytes], Awaitable[list[Any]]]) -> None:
        super().__init__(cursor)
        self._fetch = fetch

    async def __anext__(self) -> Entry[V]:
        while self._position >= len(self._page):
            if self._cursor.done:
                raise StopAsyncIteration
            self._take(self._cursor.feed(await self._fetch(self._cursor.next_op())))
        self._position += 1
        return self._page[self._position - 1]

    async def pages(self) -> AsyncIterator[list[Entry[V]]]:
        """The rest, as lists of entries; `resume` stands behind the page given out."""
        rest = self._page[self._position :]
        self._position = len(self._page)
        if rest:
            yield rest
        while not self._cursor.done:
            self._take(self._cursor.feed(await self._fetch(self._cursor.next_op())))
            self._position = len(self._page)
            if self._page:
                yield self._page
