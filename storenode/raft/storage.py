"""What the core reads of its group's log. It never writes: whoever runs it does (docs/raft.md section 4)."""

from __future__ import annotations

from typing import Protocol

from storenode.raft.messages import Entry, HardState


class Compacted(LookupError):
    """The entry lies behind the cut: it is in the engine's tables, or came as a snapshot."""


class Storage(Protocol):
    """The durable log of one group. Nothing changes while the core runs."""

    @property
    def hard_state(self) -> HardState:
        """(0, 0, 0) for a group that has said nothing yet."""

    @property
    def first_index(self) -> int:
        """The first entry that is there, or would be: the cut index + 1."""

    @property
    def last_index(self) -> int:
        """The last entry; the cut index if there is none."""

    def term(self, index: int) -> int:
        """Of an entry, or of the one at the cut. Compacted: below that. IndexError: beyond the last."""

    def entries(self, first: int, stop: int, bytes_max: int) -> list[Entry]:
        """Entries from `first` on, before `stop`, with at most `bytes_max` bytes of data, but at least one if
        first < stop. Compacted: `first` lies behind the cut. IndexError: `stop - 1` lies beyond the last.
        """
