"""Clients that never rest: what they ask, and what they were told.

Owns the threads, the recorded history, and the books on increments and on keys that are written once. Knows
nothing of faults. What was told is judged in `judgement`.

Every partition has a counter, a register and a ledger. Counters are only incremented and read. Registers are
put, compared and swapped by version and by value, deleted, and read. Each key of a ledger is written once,
large enough that stores flush and cut their logs. Counters and registers have new keys in each generation, so
that a history stays cheap to judge. Each router also has two clients for each partition that know no other
router and only read, one of them by lease: in a cluster that is parted, they go on to ask who led before.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Final

import kvclient
from kvclient.errors import Busy, ConnectError, KVError, KVTimeout, OutcomeUnknown, ReadOnly, Unavailable
from shared.hashing import partition_of
from tests.linearizability import models
from tests.linearizability.history import Recorder

CLIENTS: Final = 4
"""More would make an order harder to find; these keep two cores busy as it is."""

CALL_SECONDS: Final = 6.0
"""Longer than most faults last, so that retries meet the cluster that comes after them."""

PAUSE_SECONDS: Final = 0.004
"""Between two calls of a client, so that the cluster, which has the same cores, is not starved."""

WATCH_SECONDS: Final = 0.05
"""The same of a client that only reads."""

KINDS: Final = (b"counter", b"register")
LEDGER_BYTES: Final = 3000
WAIT_SECONDS: Final = 40.0

EXPECTED: Final = (Unavailable, Busy, ConnectError, KVTimeout, OutcomeUnknown, ReadOnly)
"""What a client may be told while something fails; all but OutcomeUnknown say that nothing was applied."""

Client = kvclient.Client[bytes]


def tags_of(partitions: int) -> list[bytes]:
    """A hash tag for each partition."""
    found: dict[int, bytes] = {}
    for number in itertools.count():
        tag = b"{%d}" % number
        found.setdefault(partition_of(tag, partitions.bit_length() - 1), tag)
        if len(found) == partitions:
            return [found[partition] for partition in range(partitions)]
    raise AssertionError


def ledger_value(key: bytes) -> bytes:
    """What is written under a ledger's key: nothing that compresses away."""
    return random.Random(key).randbytes(LEDGER_BYTES)


class Workload:
    """Runs inside `with workload.running():`. The attributes may be read when it has ended."""

    def __init__(
        self, routers: Sequence[str], partitions: int, seed: int, call_seconds: float | None = CALL_SECONDS
    ) -> None:
        """`routers`: their addresses, host:port; `call_seconds`: of each call, None: as the SDK has it."""
        self.tags = tags_of(partitions)
        self.recorder = Recorder()
        self.increments: Counter[tuple[bytes, str]] = Counter()
        """How many increments of a counter were "ok", "fail", "unknown"."""
        self.ledger: dict[bytes, str] = {}
        """What became of each key: "ok", "fail", "unknown"."""
        self.surprises: list[str] = []
        """Answers that no fault explains."""
        self.generation = 0
        self._routers = list(routers)
        self._seed = seed
        self._call_seconds = call_seconds
        self._stop = threading.Event()
        self._at_work = [threading.Lock() for _ in range(CLIENTS)]
        self._acknowledged: dict[bytes, int] = dict.fromkeys(self.tags, 0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Clients at work; on leaving, their last calls have ended."""
        self._stop.clear()
        threads = [threading.Thread(target=self._live, args=(number,)) for number in range(CLIENTS)]
        threads += [threading.Thread(target=watch) for watch in self._watches()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(WAIT_SECONDS)
        assert not any(thread.is_alive() for thread in threads), "a call did not end by its deadline"

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """No write is under way."""
        with ExitStack() as stack:
            for lock in self._at_work:
                stack.enter_context(lock)
            yield

    def wait_for_writes(self, tags: list[bytes] | None = None) -> float:
        """Waits until a write that began after now was acknowledged for each of `tags` (all without); seconds
        until the last of them was.
        """
        began = time.monotonic_ns()
        deadline = began + int(WAIT_SECONDS * 1e9)
        waiting = set(tags or self.tags)
        while waiting:
            waiting = {tag for tag in waiting if self._acknowledged[tag] <= began}
            assert time.monotonic_ns() < deadline, f"no write of {sorted(waiting)} was acknowledged"
            self._stop.wait(0.002)
        return (time.monotonic_ns() - began) / 1e9

    @property
    def last_acknowledged(self) -> int:
        """When the youngest write that was acknowledged began, by `time.monotonic_ns`."""
        return max(self._acknowledged.values())

    def counters(self) -> list[bytes]:
        return [tag + b"counter%d" % age for age in range(self.generation + 1) for tag in self.tags]

    def registers(self) -> list[bytes]:
        return [tag + b"register%d" % age for age in range(self.generation + 1) for tag in self.tags]

    def connect(self, preferred: int = 0) -> Client:
        """A client of all routers that prefers one of them."""
        first = preferred % len(self._routers)
        routers = ",".join(self._routers[first:] + self._routers[:first])
        return kvclient.connect(f"kv://{routers}", timeout=self._call_seconds, connect_timeout=WAIT_SECONDS)

    def read_everything(self, client: Client) -> None:
        """Ends the history with a read of every key."""
        for key in (*self.counters(), *self.registers()):
            self._get(client, "reader", key, "linearizable")

    # -- a client's life

    def _watches(self) -> list[Callable[[], None]]:
        """The lives of those that do something else than `_live`."""
        return [
            partial(self._watch, router, read, tag)
            for router in self._routers
            for read in ("lease", "linearizable")
            for tag in self.tags
        ]

    def _live(self, number: int) -> None:
        dice = random.Random(f"{self._seed}/{self.generation}/{number}")
        with self.connect(number) as client:
            known: dict[bytes, kvclient.Entry[bytes]] = {}
            for count in itertools.count():
                if self._stop.wait(PAUSE_SECONDS):
                    return
                with self._at_work[number]:
                    self._act(client, number, count, dice, known)

    def _watch(self, router: str, read: str, tag: bytes) -> None:
        """Reads one partition through one router: what has to wait for another one must not keep it."""
        keys = [tag + b"%s%d" % (kind, self.generation) for kind in KINDS]
        with kvclient.connect(
            f"kv://{router}", timeout=self._call_seconds, connect_timeout=WAIT_SECONDS
        ) as client:
            for key in itertools.cycle(keys):
                if self._stop.wait(WATCH_SECONDS):
                    return
                self._get(client, f"{router} {read}", key, read)

    def _act(
        self,
        client: Client,
        number: int,
        count: int,
        dice: random.Random,
        known: dict[bytes, kvclient.Entry[bytes]],
    ) -> None:
        tag = dice.choice(self.tags)
        counter, register = tag + b"counter%d" % self.generation, tag + b"register%d" % self.generation
        value = b"%d.%d.%d" % (self.generation, number, count)
        seen = known.get(register)
        began = time.monotonic_ns()
        match dice.randrange(12):
            case 0 | 1 | 2:
                outcome = self._increment(client, number, counter)
            case 3:
                outcome = self._write_once(client, tag + b"ledger" + value)
            case 4 | 5:
                outcome = self._put(client, number, register, value)
            case 6 if seen is not None:
                outcome = self._put(client, number, register, value, ("version", seen.version))
            case 7 if seen is not None:
                outcome = self._put(client, number, register, value, ("value", seen.value))
            case 8:
                outcome = self._delete(client, number, register)
            case kind:
                read = "lease" if kind == 11 else "linearizable"
                self._get(client, number, counter if kind == 10 else register, read, known)
                return
        if outcome == "ok":
            self._acknowledged[tag] = max(self._acknowledged[tag], began)

    # -- calls, recorded

    def _increment(self, client: Client, process: Hashable, key: bytes) -> str:
        outcome = self._call(process, "increment", key, (1,), lambda: client.increment(key))
        self.increments[key, outcome] += 1
        return outcome

    def _put(
        self,
        client: Client,
        process: Hashable,
        key: bytes,
        value: bytes,
        condition: tuple[Hashable, ...] | None = None,
    ) -> str:
        options: dict[str, Any] = {f"if_{condition[0]}": condition[1]} if condition else {}
        return self._call(process, "put", key, (value, condition), lambda: client.put(key, value, **options))

    def _delete(self, client: Client, process: Hashable, key: bytes) -> str:
        return self._call(process, "delete", key, (), lambda: client.delete(key))

    def _get(
        self,
        client: Client,
        process: Hashable,
        key: bytes,
        read: str,
        known: dict[bytes, kvclient.Entry[bytes]] | None = None,
    ) -> None:
        def get() -> models.Found | None:
            with suppress(kvclient.KeyNotFound):
                entry = client.entry(key, read=read)
                if known is not None:
                    known[key] = entry
                return models.Found(entry.value, entry.version)
            return None

        self._call(process, "get", key, (), get)

    def _call(
        self,
        process: Hashable,
        function: str,
        key: bytes,
        arguments: tuple[Hashable, ...],
        call: Callable[[], Hashable],
    ) -> str:
        recorder = self.recorder
        ticket = recorder.call(process, function, *arguments, key=key)
        try:
            result = call()
        except kvclient.Conflict as conflict:
            recorder.ok(ticket, models.Conflict(conflict.current_version))
            return "refused"
        except KVError as error:
            return self._failed(ticket, f"{function} of {key!r}", error)
        recorder.ok(ticket, result)
        return "ok"

    def _failed(self, ticket: int, what: str, error: KVError) -> str:
        if not isinstance(error, EXPECTED):
            self.surprises.append(f"{what}: {type(error).__name__}: {error}")
        elif not error.maybe_applied:
            self.recorder.fail(ticket)
            return "fail"
        self.recorder.unknown(ticket)
        return "unknown"

    def _write_once(self, client: Client, key: bytes) -> str:
        try:
            client.put(key, ledger_value(key))
            outcome = "ok"
        except KVError as error:
            outcome = "unknown" if error.maybe_applied else "fail"
            if not isinstance(error, EXPECTED):
                self.surprises.append(f"put of {key!r}: {type(error).__name__}: {error}")
        self.ledger[key] = outcome
        return outcome
