"""Whether the replicas of a stopped cluster hold the same: data, versions, sessions, time.

Engines flush when they like, so their tables end at different entries. Each replica is brought forward the
way a start does it, by applying its own log behind what its engine has, up to an entry that all of them had
applied before they were stopped, or the last one that any engine has in tables. What lies behind that may be
committed or not: empty entries of new terms, and attempts of writes that a parted link has held back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from kvclient.protocol import Entry as Pair
from kvclient.protocol import decode_entries, decode_results, encode_scan
from storenode import engine
from storenode.engine.vfs import Vfs
from storenode.raft.messages import Configuration, Entry, EntryKind
from storenode.raftlog import RaftLog
from storenode.raftlog.group import GroupLog
from storenode.replica.statemachine import StateMachine

SEGMENT_BYTES = 1 << 20
"""As the stores were configured: opening the log reserves it, also on a small disk."""

_PAGE = 10_000
_ENTRIES_BYTES = 8 << 20


class Content(NamedTuple):
    """All that has to be equal. `entries` are (key, value, version)."""

    entries: list[Pair]
    next_sequence: int
    stamp_ms: int
    session_ms: int
    sessions: Any
    configuration: Configuration


def assert_equal(directories: Mapping[int, Path], applied: Mapping[int, int]) -> int:
    """Compares the stores' data in `directories` up to `applied`, by partition; the number of keys."""
    voters = Configuration(frozenset(directories))
    flushed = [_flushed(directory, applied, voters) for directory in directories.values()]
    applied = {
        partition: max(index, *(one[partition] for one in flushed)) for partition, index in applied.items()
    }
    found = {node: contents(directory, node, applied, voters) for node, directory in directories.items()}
    first, *others = found
    for partition in applied:
        one = found[first][partition]
        for other in others:
            another = found[other][partition]
            for field, mine, theirs in zip(Content._fields, one, another, strict=True):
                assert mine == theirs, (
                    f"partition {partition}: {field} of stores {first} and {other} differ: "
                    f"{_difference(mine, theirs)}"
                )
    return sum(len(content.entries) for content in found[first].values())


def _flushed(directory: Path, partitions: Iterable[int], founders: Configuration) -> dict[int, int]:
    """The entry at which one stopped store's tables end, by partition."""
    with ExitStack() as stack:
        shared = engine.Shared(str(directory))
        stack.callback(shared.close)
        return {
            partition: StateMachine(_open(directory, partition, shared, stack), founders).position.index
            for partition in partitions
        }


def _open(directory: Path, partition: int, shared: engine.Shared, stack: ExitStack) -> engine.ReplicaEngine:
    path = directory / "partitions" / f"{partition:04}"
    opened = engine.open_replica(str(path), shared=shared, engine_id=partition)
    stack.callback(opened.close)
    return opened


def contents(
    directory: Path, node: int, applied: Mapping[int, int], founders: Configuration
) -> dict[int, Content]:
    """What one stopped store holds, by partition. Changes the log's end, as each start does."""
    with ExitStack() as stack:
        log = RaftLog(Vfs(), str(directory / "raft"), node, segment_bytes=SEGMENT_BYTES)
        stack.callback(log.close)
        shared = engine.Shared(str(directory))
        stack.callback(shared.close)
        found = {}
        for partition, index in applied.items():
            opened = _open(directory, partition, shared, stack)
            found[partition] = _content(StateMachine(opened, founders), opened, log.group(partition), index)
        return found


def _content(machine: StateMachine, opened: engine.ReplicaEngine, log: GroupLog, applied: int) -> Content:
    assert opened.verify() == []
    assert log.last_index >= applied, f"the log ends at {log.last_index}, but {applied} was applied"
    for index, (term, kind, data) in _entries(log, machine.position.index + 1, applied):
        assert kind == EntryKind.NORMAL
        machine.apply(index, term, data)
    return Content(
        _scan(opened),
        opened.next_sequence,
        machine.stamp_ms,
        machine.session_ms,
        machine.sessions.dump(),
        machine.configuration,
    )


def _entries(log: GroupLog, first: int, last: int) -> Iterator[tuple[int, Entry]]:
    while first <= last:
        for entry in log.entries(first, last + 1, _ENTRIES_BYTES):
            yield first, entry
            first += 1


def _scan(opened: engine.ReplicaEngine) -> list[Pair]:
    found: list[Pair] = []
    start: bytes | None = b""
    while start is not None:
        result = decode_results(opened.read(encode_scan(start, None, _PAGE), 0))[0]
        assert result[0] == 0, result
        found += decode_entries(result[2])
        start = result[3] if len(result) > 3 else None
    return found


def _difference(mine: Any, theirs: Any) -> str:
    """The first place where two values differ."""
    if isinstance(mine, list) and isinstance(theirs, list):
        for one, other in itertools.zip_longest(mine, theirs):
            if one != other:
                return _shown(one, other)
    return _shown(mine, theirs)


def _shown(one: Any, other: Any) -> str:
    return " and ".join(str(value)[:300] for value in (one, other))
