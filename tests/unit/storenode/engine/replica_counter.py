"""The least of a replica: applies entries to an engine, and counts them; the count is its state."""

from __future__ import annotations

from collections.abc import Sequence

from kvclient.protocol import encode_put
from storenode.engine import ReplicaEngine

NOW_MS = 1 << 41


class Counter:
    """`applied`: how many entries the engine holds, by its own account."""

    def __init__(self, engine: ReplicaEngine, padding: bytes = b"") -> None:
        self.engine = engine
        self.padding = padding
        self.applied = count_of(engine.state)
        engine.on_retire = self.state

    def state(self) -> bytes:
        return self.applied.to_bytes(8, "big") + self.padding

    def entry(self, writes: Sequence[bytes]) -> None:
        """Apply the next entry, of so many op streams."""
        for ops in writes:
            self.engine.apply(ops, self.engine.next_sequence, NOW_MS)
        self.applied += 1
        self.engine.end_entry()

    def put(self, key: bytes, value: bytes) -> None:
        self.entry([encode_put(key, value)])


def count_of(state: bytes) -> int:
    return int.from_bytes(state[:8], "big")
