"""The least of a replica: applies entries to an engine, and counts them; the count is its state. And the
least of a transfer between two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvclient.protocol import encode_put
from storenode.bulkprotocol import FileMeta, mask
from storenode.engine import ReplicaEngine, checkpoint_files, codec
from storenode.engine.vfs import Vfs
from storenode.incoming import Incoming, Journal

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
        self.engine.apply(list(writes), self.engine.next_sequence, NOW_MS)
        self.applied += 1
        self.engine.end_entry()

    def put(self, key: bytes, value: bytes) -> None:
        self.entry([encode_put(key, value)])


def count_of(state: bytes) -> int:
    return int.from_bytes(state[:8], "big")


def send(source: str, target: str, vfs: Vfs | None = None, piece_bytes: int = 1 << 16) -> str:
    """Bring a checkpoint's files to another node, piece by piece, as a store does; `target`."""
    contents = {name: (Path(source) / name).read_bytes() for name, _ in checkpoint_files(source)}
    files = tuple(
        FileMeta(name, len(content), mask(codec.crc32c(content))) for name, content in contents.items()
    )
    incoming = Incoming(target, Vfs() if vfs is None else vfs)
    incoming.begin(Journal(0, 1, b"", files))
    for file in files:
        incoming.open(file)
        for offset in range(0, file.size, piece_bytes):
            incoming.append(contents[file.name][offset : offset + piece_bytes])
        assert incoming.finish(file)
    return incoming.complete()
