"""What a batch says: records and summaries, and their MessagePack (docs/raft.md section 4).

Knows nothing of files and checksums. What is decoded passed a checksum, so a wrong shape is a defect or a
forgery, not a torn write: ValueError.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack

from storenode.raft.messages import Entry, HardState

GROUP_MAX: Final = 0xFFFF
"""The control partition's number."""


class Record(NamedTuple):
    """What one group had to say. `entries` None: the replica is gone for good, made by `RaftLog.forget`."""

    group: int
    hard: HardState | None
    cut: tuple[int, int] | None
    """(index, term)."""
    first_index: int
    """Of `entries`; means nothing without any."""
    entries: list[Entry] | None


class Summary(NamedTuple):
    """All that a group's log holds but for the entries' data, before the batch that it comes in."""

    group: int
    hard: HardState
    cut: tuple[int, int]
    last_index: int
    terms: list[tuple[int, int]]
    """(index, term) wherever the term changes, the first entry included."""


class Payload(NamedTuple):
    """Of one batch."""

    oldest: int
    """The oldest segment that any group needs."""
    summaries: list[Summary]
    """Of all groups, in the first batch of a segment; nothing in any other."""
    records: list[Record]


def decode(payload: bytes) -> Payload:
    try:
        oldest, summaries, records = unpack(payload)
        return Payload(
            _uint(oldest), [_summary(*each) for each in summaries], [_record(*each) for each in records]
        )
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"a batch that holds no records: {error}") from None


def unpack(payload: bytes) -> tuple[Any, Any, Any]:
    """The three parts of a payload, as they come."""
    return msgpack.unpackb(payload, use_list=False)  # type: ignore[no-any-return]


def records_of(group: int, payload: tuple[Any, Any, Any]) -> list[Record]:
    """Those of one group only; nobody looks at the others."""
    return [_record(*each) for each in payload[2] if each[0] == group]


def _uint(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{type(value).__name__} instead of an unsigned integer")
    return value


def _group(value: Any) -> int:
    if _uint(value) > GROUP_MAX:
        raise ValueError(f"group {value} is beyond {GROUP_MAX}")
    return int(value)


def _hard(term: Any, vote: Any, commit: Any) -> HardState:
    return HardState(_uint(term), _uint(vote), _uint(commit))


def _pair(index: Any, term: Any) -> tuple[int, int]:
    return _uint(index), _uint(term)


def _entry(term: Any, kind: Any, data: Any) -> Entry:
    if type(data) is not bytes:
        raise ValueError("an entry without bytes")
    return Entry(_uint(term), _uint(kind), data)


def _record(group: Any, hard: Any, cut: Any, first_index: Any, entries: Any) -> Record:
    return Record(
        _group(group),
        None if hard is None else _hard(*hard),
        None if cut is None else _pair(*cut),
        _uint(first_index),
        None if entries is None else [_entry(*each) for each in entries],
    )


def _summary(group: Any, hard: Any, cut: Any, last_index: Any, terms: Any) -> Summary:
    return Summary(
        _group(group), _hard(*hard), _pair(*cut), _uint(last_index), [_pair(*each) for each in terms]
    )
