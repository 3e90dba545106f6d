"""A source of snapshots and who pulls them, on one loop, with real files, threads and sockets."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from kvclient.errors import ProtocolError
from shared import messages, sockets
from shared.clock import SystemClock
from shared.reactor import Reactor
from storenode.bulk import BulkClient
from storenode.bulkprotocol import Closed, encode_answer
from storenode.engine.vfs import Vfs
from storenode.snapshotpull import Done, Failed
from storenode.snapshotsource import BulkSource, Made
from tests.unit.storenode.links import CuttableLink

DEADLINE_S = 20.0
MIB = 1 << 20


def files_below(directory: str | Path) -> dict[str, bytes]:
    root = Path(directory)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write_files(directory: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = Path(directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def sizes(files: dict[str, bytes]) -> list[tuple[str, int]]:
    return [(name, len(content)) for name, content in files.items()]


class World:
    """`files` and `state` are what the next snapshot is made of; `spoil` may change answers on their way.
    `told`: how often there was an outcome; `peers`: who asked for anything."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reactor = Reactor()
        self.context = sockets.context()
        self.vfs = Vfs()
        self.files = {
            "000007.sst": os.urandom(3 * MIB + 17),
            "000008.sst": os.urandom(MIB),
            "000009.sst": b"",
            "manifest/data.mdb": os.urandom(5 * MIB // 2),
        }
        self.state = b"the state"
        self.applied = 100
        self.spoil: Callable[[bytes], bytes] = bytes
        self.outcomes: dict[int, Done | Failed] = {}
        self.told = 0
        self.peers: set[bytes] = set()
        self.router = sockets.store_router(self.context, "tcp://127.0.0.1:0", batch_bytes_max=4 * MIB)
        self.endpoint = sockets.bound_endpoint(self.router)
        self.reactor.add_reader(self.router, self._on_requests)
        self.source: BulkSource | None = None
        self.client = self.new_client()
        self.stack = contextlib.ExitStack()

    @property
    def size(self) -> int:
        return sum(map(len, self.files.values()))

    def start_source(self) -> BulkSource:
        if self.source is not None:
            assert self.source.close()
        directory = str(self.root / "snapshots")
        self.source = BulkSource(self.reactor, self.make, self.send, directory, self.vfs, SystemClock())
        return self.source

    def new_client(self, vfs: Vfs | None = None) -> BulkClient:
        self.client = BulkClient(self.reactor, self.context, 2, vfs or self.vfs, SystemClock())
        return self.client

    def make(self, group: int, directory: str) -> Made:
        write_files(directory, self.files)
        return Made(self.applied, self.state, sizes(self.files))

    def send(self, peer: bytes, body: bytes) -> None:
        sockets.send_or_drop(self.router, (peer, messages.encode_bulk_reply(self.spoil(body))))

    def _on_requests(self, batch: list[list[bytes]]) -> None:
        for peer, frame in batch:
            self.peers.add(peer)
            request = messages.decode_to_store(frame)
            assert isinstance(request, messages.BulkRequest)
            if self.source is None:
                continue
            try:
                self.source.on_request(peer, request.body)
            except ProtocolError as error:
                sockets.send_or_drop(self.router, (peer, messages.encode_fault(error.message)))

    def target(self, group: int = 7) -> str:
        return str(self.root / f"pulled-{group}")

    def pull(self, group: int = 7, *, endpoint: str = "", at_least: int = 50) -> None:
        def on_done(outcome: Done | Failed) -> None:
            self.outcomes[group] = outcome
            self.told += 1

        self.client.pull(group, endpoint or self.endpoint, at_least, self.target(group), on_done)

    def linked(self) -> bool:
        """Whether anybody who asked still has a socket here."""
        answer = messages.encode_bulk_reply(encode_answer(Closed(0)))  # to a question of nobody
        return any(sockets.send_or_drop(self.router, (peer, answer)) != "gone" for peer in self.peers)

    def pull_until_broken(self, link: CuttableLink, count: int) -> int:
        """Pull by `link`, which breaks as in `until_broken`."""
        self.pull(endpoint=link.endpoint)
        return self.until_broken(link, count)

    def until_broken(self, link: CuttableLink, count: int) -> int:
        """Let a pull go on by `link`, which breaks when about that many bytes have passed: how many are on
        the disk."""
        link.hold_after(count)
        before = self.incoming_bytes()
        self.until(lambda: self.incoming_bytes() >= before + count - 2 * MIB, "held link")
        self.until(lambda: link.passed_bytes > count, "held link")
        link.cut()
        return self.incoming_bytes()

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
            self.reactor.call_later(0.005, lambda: None)
            self.reactor._turn()
        assert not self.reactor.failures

    def outcome(self, group: int = 7) -> Done | Failed:
        self.until(lambda: group in self.outcomes, "outcome")
        return self.outcomes[group]

    def incoming_bytes(self, group: int = 7) -> int:
        directory = self.target(group) + ".incoming"
        return sum(len(content) for name, content in files_below(directory).items() if name != ".journal")

    def close(self) -> None:
        assert self.client.close()
        if self.source is not None:
            assert self.source.close()
        self.stack.close()
        self.router.close(0)
        self.reactor.close()
        self.context.destroy(0)
