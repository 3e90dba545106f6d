"""The log that all engines of a store share, as far as these tools need it.

An engine knows nothing of it; who does, hands it in (`storenode.offline`). Without one, a store's directory
is looked at without its log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from storenode.engine.tools.places import Site
from storenode.engine.tools.tablefile import Damage

COLUMNS = ("segments", "bytes", "batches", "groups", "entries")


class Logged(NamedTuple):
    """One op on a key in an entry that the log holds."""

    file: str
    offset: int
    name: str
    value_size: int | None
    note: str


class Report(NamedTuple):
    """What a check of the log came to. `counts` belong to COLUMNS; None: there is no log."""

    problems: list[tuple[int | None, Damage]]
    notes: list[tuple[int | None, Damage]]
    counts: tuple[int, int, int, int, int] | None


class StoreLog(Protocol):
    """Reads, and changes nothing."""

    def check(self, replicas: Mapping[int, bytes | None]) -> Report:
        """All of it, and that it goes on where the engines end; `replicas`: the replica state of each."""

    def find(self, partition: int, key: bytes, replica: bytes | None) -> Iterator[Logged]:
        """The newest entry first. Damage if the log cannot be read."""


OpenLog = Callable[[Site], StoreLog | None]
"""The log of a directory; None if that has none."""


def no_log(site: Site) -> StoreLog | None:
    """Of who knows of no log."""
    return None
