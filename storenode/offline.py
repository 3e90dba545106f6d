"""`python -m storenode.offline VERB ...`: the engine's offline tools on a store's directory, with the log
that its replicas share. `kvcli engine` runs this.

Owns what the tools say of that log. Opens nothing for writing: what a start of the store would mend or
remove stays as it is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping

from kvclient.errors import Corruption
from storenode.engine.tools.__main__ import run
from storenode.engine.tools.logfile import Record, operations
from storenode.engine.tools.places import Site
from storenode.engine.tools.storelog import Logged, Report
from storenode.engine.tools.tablefile import Damage
from storenode.engine.vfs import Vfs
from storenode.engines import group_of
from storenode.raft.messages import Entry, EntryKind
from storenode.raftlog import GroupLog, LogCorrupt, LogRefused
from storenode.raftlog.cache import RecentEntries, SegmentReader
from storenode.raftlog.names import segment_path
from storenode.raftlog.recovery import Recovered, Recovery
from storenode.replica import commands
from storenode.replica.statemachine import FOUNDED, position_of

CHUNK_BYTES = 8 << 20
"""Of entries in memory at a time."""


class ReplicatedLog:
    """The log in `directory`, written by `node`."""

    def __init__(self, vfs: Vfs, directory: str, node: int) -> None:
        self._vfs = vfs
        self._directory = directory
        self._node = node
        self._recent = RecentEntries(CHUNK_BYTES)
        self._reader = SegmentReader(vfs, directory)
        self._read: Recovered | None = None

    def check(self, replicas: Mapping[int, bytes | None]) -> Report:
        try:
            found = self._recovered()
        except Damage as damage:
            return Report([(None, damage)], [], None)
        problems: list[tuple[int | None, Damage]] = []
        notes: list[tuple[int | None, Damage]] = []
        for partition, state in sorted(replicas.items()):
            group = found.groups.get(group_of(partition))
            what = None if group is None else _contradiction(group, state)
            if what is not None:
                problems.append((partition, Damage(self._directory, 0, what)))
        for number in sorted(found.groups.keys() - set(map(group_of, replicas))):
            if found.groups[number].last_index == 0:
                continue  # erased: it has promises only
            what = f"has entries of partition {number}, which has no directory"
            problems.append((number, Damage(self._directory, 0, what)))
        if found.tail is not None and found.tail.torn:
            path = segment_path(self._directory, found.tail.segment)
            what = "a torn batch, never known to be durable: left by a crash, the next start clears it up"
            notes.append((None, Damage(path, found.tail.offset, what)))
        entries = sum(group.last_index - group.first_index + 1 for group in found.groups.values())
        batches = found.tail.number if found.tail else 0
        counts = (len(found.segments), sum(found.segments.values()), batches, len(found.groups), entries)
        return Report(problems, notes, counts)

    def find(self, partition: int, key: bytes, replica: bytes | None) -> Iterator[Logged]:
        group = self._recovered().groups.get(group_of(partition))
        if group is None:
            return
        try:
            applied = _end(replica)
        except Corruption as error:
            raise Damage(self._directory, 0, str(error)) from None
        found: list[Logged] = []
        index = group.first_index
        while index <= group.last_index:
            try:
                entries = group.entries(index, group.last_index + 1, CHUNK_BYTES)
            except Corruption as error:
                raise Damage(self._directory, 0, str(error)) from None
            for entry in entries:
                if key in entry.data:
                    found += self._versions(group, index, entry, key, applied)
                index += 1
        yield from reversed(found)

    def _versions(
        self, group: GroupLog, index: int, entry: Entry, key: bytes, applied: int
    ) -> Iterator[Logged]:
        if entry.kind != EntryKind.NORMAL:
            return
        segment, offset = group.place(index)
        note = f"entry {index} of term {entry.term}"
        if index <= applied:
            note += ", in the tables as well"
        elif index > group.hard_state.commit:
            note += ", not known to be committed"
        for _, _, _, _, ops in commands.decode(entry.data).writes:
            for operation in operations(Record(offset, 1, 0, ops, 0, offset))[0]:
                if operation.key == key:
                    size = None if operation.value is None else len(operation.value)
                    path = segment_path(self._directory, segment)
                    yield Logged(path, offset, operation.name, size, note)

    def _recovered(self) -> Recovered:
        """Damage if it is not the log of this store, or is damaged."""
        if self._read is None:
            recovery = Recovery(self._vfs, self._directory, self._node, self._new_group)
            try:
                self._read = recovery.run()
            except LogCorrupt as error:
                raise Damage(error.path, error.offset, error.what) from None
            except LogRefused as error:
                raise Damage(self._directory, 0, str(error)) from None
            self._recent.shrink()
        return self._read

    def _new_group(self, number: int) -> GroupLog:
        return GroupLog(number, self._recent, self._reader)


def _contradiction(group: GroupLog, state: bytes | None) -> str | None:
    """Why the store would not start with this group: the rule of `storenode.founding`."""
    try:
        end = _end(state)
    except Corruption as error:
        return str(error)
    if end < group.first_index - 1:
        lost = f"{end + 1} to {group.first_index - 1}"
        return f"its data ends with entry {end}, the log begins with {group.first_index}: {lost} are lost"
    return None


def _end(state: bytes | None) -> int:
    """The last entry whose effects are in the tables."""
    return position_of(state).index if state else FOUNDED.index


def open_log(site: Site) -> ReplicatedLog | None:
    """The log of a store's directory; None if it has none, or does not say whose it is."""
    directory = os.path.join(site.root, "raft")
    if not os.path.isdir(directory):
        return None
    try:
        node = json.loads(Vfs().read(os.path.join(site.root, "identity.json")))["node_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ReplicatedLog(Vfs(), directory, node) if isinstance(node, int) else None


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], open_log))
