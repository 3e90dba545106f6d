"""The outline of one group's log: hard state, cut, last index and terms, but no entry.

The log thread keeps one of each group, to sum the groups up where a segment begins; the loop thread keeps
another as a part of GroupLog. Neither sees the other's. Owns the rule of what a record does to a log.

Invariants: cut_index <= last_index; `starts` ascends strictly, begins with cut_index + 1 if there are
entries, and is empty if there are none.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise

from storenode.raft.messages import Entry, HardState
from storenode.raft.storage import Compacted
from storenode.raftlog.records import Summary


class Outline:
    """Of a group that has said nothing yet."""

    __slots__ = ("cut_index", "cut_term", "hard", "last_index", "starts", "terms")

    def __init__(self) -> None:
        self.hard = HardState(0, 0, 0)
        self.cut_index = 0
        self.cut_term = 0
        self.last_index = 0
        self.starts: list[int] = []
        self.terms: list[int] = []

    def term(self, index: int) -> int:
        """Compacted: below the cut. IndexError: beyond the last entry."""
        if index <= self.cut_index:
            if index == self.cut_index:
                return self.cut_term
            raise Compacted(f"entry {index} lies behind the cut at {self.cut_index}")
        if index > self.last_index:
            raise IndexError(f"entry {index} lies beyond the last one, {self.last_index}")
        if index >= self.starts[-1]:
            return self.terms[-1]
        return self.terms[bisect_right(self.starts, index) - 1]

    def append(self, first: int, entries: list[Entry]) -> None:
        """`entries`, at least one, replace everything from `first` on. ValueError: they do not fit there."""
        if not self.cut_index < first <= self.last_index + 1:
            raise ValueError(
                f"entries from {first} on do not fit a log that is cut at {self.cut_index} "
                f"and ends at {self.last_index}"
            )
        starts, terms = self.starts, self.terms
        if first <= self.last_index:
            keep = bisect_left(starts, first)
            del starts[keep:], terms[keep:]
        term = terms[-1] if terms else -1
        for index, entry in enumerate(entries, first):
            if entry.term != term:
                term = entry.term
                starts.append(index)
                terms.append(term)
        self.last_index = first + len(entries) - 1

    def cut(self, index: int, term: int) -> bool:
        """Forget the entries up to `index`, or all of them if the log does not hold this one: then True."""
        if index < self.cut_index:
            return False  # what was cut stays cut
        if index > self.last_index or self.term(index) != term:
            self.cut_index = self.last_index = index
            self.cut_term = term
            self.starts.clear()
            self.terms.clear()
            return True
        self.cut_index, self.cut_term = index, term
        if index == self.last_index:
            self.starts.clear()
            self.terms.clear()
        elif self.starts[0] <= index:
            gone = bisect_right(self.starts, index + 1) - 1
            del self.starts[:gone], self.terms[:gone]
            self.starts[0] = index + 1
        return False

    def copy(self) -> Outline:
        return Outline.of(self.summary(0))

    def summary(self, group: int) -> Summary:
        terms = list(zip(self.starts, self.terms, strict=True))
        return Summary(group, self.hard, (self.cut_index, self.cut_term), self.last_index, terms)

    @classmethod
    def of(cls, summary: Summary) -> Outline:
        """ValueError: nothing that was summed up so can have been a log."""
        outline = cls()
        outline.hard = summary.hard
        outline.cut_index, outline.cut_term = summary.cut
        outline.last_index = summary.last_index
        outline.starts = [index for index, _ in summary.terms]
        outline.terms = [term for _, term in summary.terms]
        bounds = [*outline.starts, outline.last_index + 1]
        if bounds[0] != outline.cut_index + 1 or any(a >= b for a, b in pairwise(bounds)):
            raise ValueError(f"the summary of group {summary.group} contradicts itself")
        return outline
