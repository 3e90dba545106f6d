"""Pulled snapshots without sockets and threads: the real pull and its files (storenode/snapshotpull.py), and
a source that answers as storenode/snapshotsource.py does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from kvclient.errors import KVError, Status
from storenode import bulkprotocol, snapshotfiles
from storenode.bulkprotocol import Chunk, Closed, FileMeta, Open, Opened, Read, Refusal
from storenode.engine import codec
from storenode.engine.vfs import Vfs
from storenode.snapshotpull import Done, Failed, Pull
from storenode.snapshotsource import Made
from tests.simulation.machine import Machine, SimulatedTimer

if TYPE_CHECKING:
    from tests.simulation.store import SimulatedStore

IDLE_S = 8.0
BUSY_MS = 300
SERVED_MAX = 2


class _Job:
    def __init__(self, pull: Pull, endpoint: str, on_done: Callable[[Any], None]) -> None:
        self.pull = pull
        self.endpoint = endpoint
        self.on_done = on_done
        self.timer: SimulatedTimer | None = None
        self.heard_at = 0.0


class SimulatedPuller:
    """As `storenode.bulk.BulkClient`."""

    def __init__(
        self, store: SimulatedStore, ask: Callable[[str, bytes], None], vfs: Vfs, random: Random
    ) -> None:
        self._store = store
        self._ask = ask
        self._vfs = vfs
        self._random = random
        self._jobs: dict[int, _Job] = {}

    def pull(
        self, group: int, endpoint: str, at_least: int, target: str, on_done: Callable[[Any], None]
    ) -> None:
        now = self._store.clock.monotonic()
        pull = Pull(group, at_least, self._store.node, target, self._vfs, self._random, now)
        self._jobs[group] = job = _Job(pull, endpoint, on_done)
        job.heard_at = now
        self._store.world.note(f"{self._store.name} p{group} pulls a snapshot of {at_least} or later")
        self._look(group, job)

    def cancel(self, group: int) -> None:
        job = self._jobs.pop(group, None)
        if job is not None:
            if job.timer is not None:
                job.timer.cancel()
            job.pull.close()

    def silent_s(self, group: int) -> float:
        job = self._jobs.get(group)
        return self._store.clock.monotonic() - job.heard_at if job is not None else 0.0

    def on_answer(self, body: bytes) -> None:
        answer = bulkprotocol.decode_answer(body)
        for group, job in list(self._jobs.items()):
            if job.pull.expects(answer.token):
                job.heard_at = self._store.clock.monotonic()
                job.pull.on_answer(answer, self._store.clock.monotonic())
                self._look(group, job)

    def close(self) -> None:
        for job in self._jobs.values():
            job.pull.close()

    def _look(self, group: int, job: _Job) -> None:
        if self._jobs.get(group) is not job:
            return
        now = self._store.clock.monotonic()
        for body in job.pull.requests(now):
            self._ask(job.endpoint, body)
        outcome: Done | Failed | None = job.pull.outcome
        if job.timer is not None:
            job.timer.cancel()
        if outcome is None:
            wait = max(0.001, job.pull.next_due() - now)
            job.timer = self._store.call_later(wait, lambda: self._look(group, job))
            return
        del self._jobs[group]
        if (goodbye := job.pull.goodbye()) is not None:
            self._ask(job.endpoint, goodbye)
        reason = outcome.reason.replace(self._store.disk.path, "") if isinstance(outcome, Failed) else "done"
        self._store.world.note(f"{self._store.name} p{group} pull: {reason}")
        job.on_done(outcome)
        if isinstance(outcome, Done):
            self._store.on_pulled(self._store)


class _Served:
    def __init__(
        self, number: int, group: int, directory: str, made: Made, files: dict[str, FileMeta]
    ) -> None:
        self.number = number
        self.group = group
        self.directory = directory
        self.made = made
        self.files = files
        self.readers: set[int] = set()
        self.used_at = 0.0


class SimulatedSource:
    """As `storenode.snapshotsource.BulkSource`."""

    def __init__(
        self,
        machine: Machine,
        make: Callable[[int, str], Made],
        directory: str,
        vfs: Vfs,
        random: Random,
        answer: Callable[[Any, bytes], None],
    ) -> None:
        self._machine = machine
        self._make = make
        self._directory = directory
        self._vfs = vfs
        self._random = random
        self._send = answer
        self._served: dict[int, _Served] = {}
        vfs.make_directory(directory)
        for name in vfs.listdir(directory):
            snapshotfiles.remove_tree(vfs, os.path.join(directory, name))

    def pinned(self, group: int) -> int | None:
        now = self._machine.clock.monotonic()
        for one in list(self._served.values()):
            if now - one.used_at > IDLE_S:
                self._drop(one)
        return min((one.made.applied for one in self._served.values() if one.group == group), default=None)

    def on_request(self, peer: object, body: bytes) -> None:
        request = bulkprotocol.decode_request(body)
        answer: bulkprotocol.Answer
        if isinstance(request, Open):
            answer = self._open(request)
        elif isinstance(request, Read):
            answer = self._read(request)
        else:
            one = self._served.get(request.snapshot)
            if one is not None:
                one.readers.discard(request.node)
                if not one.readers:
                    self._drop(one)
            answer = Closed(request.token)
        self._send(peer, bulkprotocol.encode_answer(answer))

    def _open(self, request: Open) -> Opened | Refusal:
        for one in self._served.values():
            if one.group == request.group and one.made.applied >= request.at_least:
                break
        else:
            if len(self._served) >= SERVED_MAX:
                return Refusal(request.token, Status.BUSY, "busy", BUSY_MS)
            number = self._random.getrandbits(63)
            directory = os.path.join(self._directory, f"{request.group:04}-{number:016x}")
            try:
                made = self._make(request.group, directory)
            except (KVError, OSError) as error:
                return Refusal(request.token, Status.UNAVAILABLE, str(error), BUSY_MS)
            if made.applied < request.at_least:
                snapshotfiles.remove_tree(self._vfs, directory)
                return Refusal(request.token, Status.UNAVAILABLE, "not there yet", BUSY_MS)
            files = self._sum(directory, made.files)
            one = self._served[number] = _Served(number, request.group, directory, made, files)
        one.readers.add(request.node)
        one.used_at = self._machine.clock.monotonic()
        return Opened(request.token, one.number, one.made.state, tuple(one.files.values()))

    def _sum(self, directory: str, listed: list[tuple[str, int]]) -> dict[str, FileMeta]:
        files = {}
        for name, size in listed:
            content = self._vfs.read(os.path.join(directory, name))
            files[name] = FileMeta(name, size, bulkprotocol.mask(codec.crc32c(content, 0)))
        return files

    def _read(self, request: Read) -> Chunk | Refusal:
        one = self._served.get(request.snapshot)
        if one is None:
            return Refusal(request.token, Status.NOT_FOUND, "no such snapshot")
        one.used_at = self._machine.clock.monotonic()
        with contextlib.closing(self._vfs.open(os.path.join(one.directory, request.name))) as file:
            data = snapshotfiles.read_at(file, request.offset, request.length)
        return Chunk(request.token, data, codec.masked_crc32c(data))

    def _drop(self, one: _Served) -> None:
        del self._served[one.number]
        snapshotfiles.remove_tree(self._vfs, one.directory)
