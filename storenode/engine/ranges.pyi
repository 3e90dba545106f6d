"""Range deletions as intervals that do not overlap (native/ranges.h)."""

from collections.abc import Iterable

from storenode.engine.deletions import RangeDeletion

class Ranges:
    """Immutable. `deletions` in the order of their sequences."""

    def __init__(self, deletions: Iterable[RangeDeletion] = ()) -> None: ...
    @property
    def deletions(self) -> tuple[RangeDeletion, ...]:
        """As they were given."""
    @property
    def intervals(self) -> tuple[RangeDeletion, ...]:
        """In key order; each has the highest sequence of the deletions that hold it."""
    def plus(self, deletion: RangeDeletion) -> Ranges:
        """These and one that is newer than all of them."""
    def sequence_of(self, key: bytes) -> int:
        """Versions of the key below this sequence are absent; 0 if no deletion holds it."""
    def overlapping(self, smallest: bytes, largest: bytes) -> tuple[RangeDeletion, ...]:
        """The intervals that share keys with [smallest, largest]."""
    def lowest_over(self, smallest: bytes, largest: bytes) -> int:
        """Versions below this sequence are absent whichever key of [smallest, largest] they have; 0 if a key
        between is in no interval."""
