"""The log of one group as the algorithm sees it: what is durable, and what is not yet.

Owns the entries that are not durable, and the commit index. Durable entries stay in `Storage`.
Must not know roles, terms that pass, or messages.

Invariants: what is at or below `commit` is never replaced. `durable_index < first index that is held here`;
from there on `Storage` may still hold other entries, which are dead. One write is out at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from storenode.raft.messages import Entry, EntryKind
from storenode.raft.storage import Storage


class LogView:
    """Durable entries of `storage`, followed by those that wait for the disk."""

    __slots__ = (
        "_entries",
        "_loaded",
        "_offset",
        "_storage",
        "_valid",
        "_writing_entries",
        "changes",
        "commit",
        "last_index",
        "last_term",
    )

    def __init__(self, storage: Storage, commit: int) -> None:
        self._storage = storage
        self._offset = storage.last_index + 1
        self._entries: list[Entry] = []
        self._loaded = storage.last_index
        self._writing_entries = False
        self._valid = 0  # the last entry of the write that is out and still part of this log
        self.commit = commit
        self.last_index = storage.last_index
        self.last_term = storage.term(self.last_index)
        self.changes: list[int] = []
        """Indexes of the CONFIGURATION entries that came since the start and are not applied."""

    @property
    def first_index(self) -> int:
        return self._storage.first_index

    @property
    def durable_index(self) -> int:
        return self._offset - 1

    @property
    def unstable(self) -> bool:
        """There are entries that are not durable."""
        return bool(self._entries)

    def term(self, index: int) -> int:
        """`first_index - 1` to `last_index`."""
        if index >= self._offset:
            return self._entries[index - self._offset][0]
        return self._storage.term(index)

    def matches(self, index: int, term: int) -> bool:
        """Whether the entry at `index`, not below `commit`, is here and has this term."""
        if index == self.last_index:
            return term == self.last_term
        return index < self.last_index and self.term(index) == term

    def entries(self, first: int, stop: int, bytes_max: int) -> list[Entry]:
        """Entries from `first`, at least one, not beyond `stop`, at most `bytes_max` bytes if more than one.
        May end early where the durable ones end.
        """
        offset = self._offset
        if first < offset:
            return self._storage.entries(first, min(stop, offset), bytes_max)
        found = self._entries[first - offset : stop - offset]
        size = 0
        for count, entry in enumerate(found):
            size += len(entry[2])
            if size > bytes_max and count:
                return found[:count]
        return found

    def last_at_or_below(self, term: int, low: int, high: int) -> int:
        """The last index in `low` to `high` whose term is at most `term`, or `low - 1`. Terms never go down
        in a log, so that halving finds it.
        """
        while low <= high:
            middle = (low + high) // 2
            if self.term(middle) <= term:
                low = middle + 1
            else:
                high = middle - 1
        return high

    def append(self, entries: Sequence[Entry]) -> None:
        """Add at the end."""
        if not entries:
            return
        for index, entry in enumerate(entries, self.last_index + 1):
            if entry[1] == EntryKind.CONFIGURATION:
                self.changes.append(index)
        self._entries.extend(entries)
        self.last_index += len(entries)
        self.last_term = entries[-1][0]

    def merge(self, previous: int, entries: Sequence[Entry]) -> None:
        """Take entries that follow `previous`, which has been found to match. What conflicts with them is
        replaced; entries that go further and do not conflict stay, for the message may be old.
        """
        if previous == self.last_index:
            self.append(entries)
            return
        for skipped, entry in enumerate(entries):
            index = previous + 1 + skipped
            if index > self.last_index or self.term(index) != entry[0]:
                if index <= self.last_index:
                    self._truncate(index)
                self.append(entries[skipped:])
                return

    def take(self) -> tuple[int, list[Entry]]:
        """What to write: first index and entries. Until `persisted` no other write may be taken."""
        self._writing_entries = bool(self._entries)
        self._valid = self.last_index
        return self._offset, self._entries[:]

    def persisted(self) -> None:
        """The write that was taken is durable. What was replaced since does not count, even if the same
        indexes are filled again (etcd's append ABA): it is written anew.
        """
        self._writing_entries = False
        if self._valid >= self._offset:
            del self._entries[: self._valid + 1 - self._offset]
            self._offset = self._valid + 1

    def restored(self, index: int, term: int) -> None:
        """A snapshot took the place of everything up to `index`, and the storage has been cut there."""
        if self._writing_entries:
            raise RuntimeError(
                f"snapshot at index {index} put in while a log write is out: persist it before, and"
                " take no write between the cut and restore"
            )
        self._valid = 0
        durable = self._storage.last_index
        if self._offset <= index:
            keep = index <= self.last_index and self.term(index) == term
            self._entries = self._entries[index + 1 - self._offset :] if keep else []
            self._offset = index + 1
        elif durable < self._offset - 1:
            self._entries = []
            self._offset = durable + 1
        self.last_index = self._offset - 1 + len(self._entries)
        self.last_term = self.term(self.last_index)
        self.commit = max(self.commit, index)
        self.changes = [change for change in self.changes if index < change <= self.last_index]

    def change_waits(self, applied: int) -> bool:
        """Whether a committed change of configuration may wait to be applied. Of what was in the log at the
        start the kinds are not known, so that any of it may be one.
        """
        if applied < min(self.commit, self._loaded):
            return True
        return any(applied < index <= self.commit for index in self.changes)

    def forget_changes(self, applied: int) -> None:
        self.changes = [index for index in self.changes if index > applied]

    def _truncate(self, index: int) -> None:
        if index <= self.commit:
            raise RuntimeError(
                f"entry {index} conflicts with the leader's, but {self.commit} is committed:"
                " this node's log or the leader's is not what was agreed on"
            )
        if index < self._offset:
            self._entries = []
            self._offset = index
        else:
            del self._entries[index - self._offset :]
        self._valid = min(self._valid, index - 1)
        self._loaded = min(self._loaded, index - 1)
        self.changes = [change for change in self.changes if change < index]
        self.last_index = index - 1
        self.last_term = self.term(self.last_index)
