"""A dict-like view of a key prefix.

Errors of the cluster stay what they are: only a key that is not there is a KeyError.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, overload

from kvclient.bulk import MISSING, pairs
from kvclient.errors import Conflict, KeyNotFound, Unavailable

if TYPE_CHECKING:
    from kvclient.client import Client

V = TypeVar("V")
D = TypeVar("D")

# pop() and setdefault() try again when another writer was faster. Every lost race means that somebody else
# got on.
_RACES_MAX: Final = 100


class KVMap(MutableMapping[str, V]):
    """The keys of a namespace as a mapping from str to values; made by `Client.map()`.

    Keys are UTF-8; others appear with surrogate escapes and work all the same. `len()` counts on the servers,
    in time proportional to the number of keys. Iteration reads page by page and may see changes made
    meanwhile. Comparison and `popitem` are refused.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, client: Client[V]) -> None:
        self._client = client

    def __getitem__(self, key: str) -> V:
        value = self._client.get(_text(key), MISSING)
        if value is MISSING:
            raise _missing(key)
        return value  # type: ignore[return-value]

    def __setitem__(self, key: str, value: V) -> None:
        self._client.put(_text(key), value)

    def __delitem__(self, key: str) -> None:
        if not self._client.delete(_text(key)):
            raise _missing(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._client.exists(key)

    def __iter__(self) -> Iterator[str]:
        return (_name(entry.key) for entry in self._client.scan(keys_only=True))

    def __len__(self) -> int:
        return self._client.count()

    def __eq__(self, other: object) -> bool:
        raise TypeError("a map in a cluster cannot be compared: compare dict(map)")

    def items(self) -> ItemsView[str, V]:
        """The pairs, each page read in one request."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """The values, each page read in one request."""
        return _Values(self)

    @overload
    def pop(self, key: str) -> V: ...

    @overload
    def pop(self, key: str, default: V) -> V: ...

    @overload
    def pop(self, key: str, default: D) -> V | D: ...

    def pop(self, key: str, default: Any = MISSING) -> Any:
        """Remove a key and return the value it had at that moment."""
        for _ in range(_RACES_MAX):
            try:
                entry = self._client.entry(_text(key))
                if self._client.delete(key, if_version=entry.version):
                    return entry.value
            except KeyNotFound:
                break
            except Conflict:
                continue
        else:
            raise Unavailable(f"other writers changed {key!r:.200} each time it was to be removed")
        if default is MISSING:
            raise _missing(key)
        return default

    def setdefault(self, key: str, default: V) -> V:
        """The value; a missing key is created with `default`, by one writer only."""
        for _ in range(_RACES_MAX):
            value = self._client.get(_text(key), MISSING)
            if value is not MISSING:
                return value  # type: ignore[return-value]
            try:
                self._client.put(key, default, if_absent=True)
            except Conflict:
                continue
            return default
        raise Unavailable(f"other writers created and removed {key!r:.200} each time it was looked at")

    def update(self, other: Any = (), /, **more: V) -> None:
        """Set many keys in few requests; BatchError if some could not be written."""
        items = ((_text(key), value) for source in (other, more) for key, value in pairs(source))
        self._client.put_many(items).raise_for_errors()

    def clear(self) -> None:
        """Remove all keys of this view."""
        self._client.delete_many(entry.key for entry in self._client.scan(keys_only=True))

    def popitem(self) -> NoReturn:
        """Refused: there is no last key."""
        raise TypeError("popitem() is not supported: a map in a cluster has no last key")

    def __repr__(self) -> str:
        return f"<kvclient.KVMap of {self._client!r}>"


class _Items(ItemsView[str, V]):
    _mapping: KVMap[V]

    def __iter__(self) -> Iterator[tuple[str, V]]:
        return ((_name(entry.key), entry.value) for entry in self._mapping._client.scan())


class _Values(ValuesView[V]):
    _mapping: KVMap[V]

    def __iter__(self) -> Iterator[V]:
        return (entry.value for entry in self._mapping._client.scan())


def _text(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a map's keys are str, not {type(key).__name__}")
    return key


def _name(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _missing(key: str) -> KeyNotFound:
    return KeyNotFound(f"no such key: {key!r:.200}")
