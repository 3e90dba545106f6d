"""The router's core against clients, stores and time that do anything.

Whatever happens: every request is answered exactly once and in time, the budget comes back to zero, no part
is left behind, nothing raises, and what a client reads about a write is true of the attempts that were made.
Each partition has a leader that changes and dies; the others refuse, and name it, another one, or nobody.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvclient import protocol
from kvclient.errors import ProtocolError, Status
from kvclient.protocol import FLAG_BARRIER, FLAG_RETRY, SCAN_COUNT, Kind
from router.flight import SWEEP_SECONDS
from router.requests import Budget
from shared.messages import Item
from tests.unit.router.conftest import PARTITIONS, THREE_STORES, Harness, changed

NODES = [node.id for node in THREE_STORES]
# What a store that does not lead names: who does, who did before, one that never did, no node, nothing.
HINTS = ["right", "right", "stale", "wrong", "stranger", "zero", "missing"]
# What a store may say of a whole item, and what of that says "not by this attempt, ever".
REFUSALS = [Status.BUSY, Status.NOT_LEADER, Status.WRONG_REPLICA, Status.UNAVAILABLE]
FINAL = [Status.TIMEOUT, Status.READ_ONLY, Status.CORRUPTION, Status.INVALID_REQUEST]
NOT_APPLIED = {int(status) for status in (*REFUSALS, *FINAL)}
NONSENSE = [
    b"",
    b"\x93\x00",
    b"\x91\x00\x91\x00",
    b"\xc0",
    b"\x94\x00\x01\xc4\x00\x07",
    b"\x95" + b"\x00" * 5,
]
BYTES_MAX = 4000
ALL = 10_000


@dataclass
class Write:
    """The attempts at one partition's share of a write."""

    session: bool
    open: int = 0  # sent, and neither answered nor given back
    done: bool = False  # a store has executed it


@dataclass
class Asked:
    """A request that has no response yet."""

    deadline: float
    kind: int
    count: int
    writes: dict[int, Write] = field(default_factory=dict)  # by partition


class RouterCore(RuleBasedStateMachine):
    """Clients and stores around one router."""

    @initialize(
        replicas=st.sampled_from([1, 2, 3, 3]),
        with_map=st.sampled_from([True, True, False]),
        parts=st.sampled_from([12, 1000]),
    )
    def start(self, replicas: int, with_map: bool, parts: int) -> None:
        self.house = Harness(
            replicas=replicas, with_map=with_map, budget=Budget(parts, BYTES_MAX), stores=THREE_STORES
        )
        self.leaders = [nodes[-1] for nodes in self.house.map.replicas]
        self.led_before = [nodes[0] for nodes in self.house.map.replicas]
        self.router = self.house.router
        self.asked: dict[int, Asked] = {}
        self.with_stores: list[tuple[int, Item]] = []

    # -- clients

    def _ask(self, body: bytes, seconds: float, count: int = 0, **fields: object) -> Asked:
        number = self.house.request_id + 1
        kind = fields.get("kind", Kind.OPS)
        asked = Asked(self.house.clock.monotonic() + seconds, int(kind), count)  # type: ignore[call-overload]
        self.asked[number] = asked
        assert self.house.send(body, timeout_ms=round(seconds * 1000), **fields) == number
        return asked

    @rule(
        ops=st.lists(st.booleans(), min_size=1, max_size=6),
        seconds=st.sampled_from([0.001, 0.1, 0.5, 3.0]),
        session=st.booleans(),
        retry=st.booleans(),
        sent=st.booleans(),
    )
    def ask(self, ops: list[bool], seconds: float, session: bool, retry: bool, sent: bool) -> None:
        """Puts and gets of new keys: the key says whose they are."""
        number = self.house.request_id + 1
        keys = [b"%d.%d" % (number, index) for index in range(len(ops))]
        body = b"".join(
            protocol.encode_put(key, b"v") if write else protocol.encode_get(key)
            for key, write in zip(keys, ops, strict=True)
        )
        # What the client did before is its own affair.
        asked = self._ask(
            body,
            seconds,
            len(ops),
            client_id=9 if session else 0,
            sequence=number if session else 0,
            flags=FLAG_RETRY if session and retry else 0,
        )
        for key, write in zip(keys, ops, strict=True):
            if write:
                asked.writes.setdefault(self.house.partition(key), Write(session))
        if sent:
            self.end_turn(ALL)
        self._read_responses()

    @rule(flags=st.sampled_from([0, SCAN_COUNT]), seconds=st.sampled_from([0.1, 3.0]))
    def scan(self, flags: int, seconds: float) -> None:
        self._ask(protocol.encode_scan(b"", None, 100, flags), seconds, 1, sequence=0, client_id=0)

    @rule(seconds=st.sampled_from([0.1, 3.0]))
    def barrier(self, seconds: float) -> None:
        self._ask(b"", seconds, flags=FLAG_BARRIER)

    @rule(command=st.sampled_from(["status", "ready", "nonsense"]))
    def operate(self, command: str) -> None:
        self._ask(protocol.encode_admin(command), 3.0, kind=Kind.ADMIN)

    @rule(body=st.sampled_from(NONSENSE))
    def ask_nonsense(self, body: bytes) -> None:
        self._ask(body, 3.0)

    # -- the shell

    @rule(taken=st.sampled_from([0, 1, ALL, ALL]))
    def turn(self, taken: int) -> None:
        self.end_turn(taken)

    def end_turn(self, taken: int) -> None:
        """The sockets take the first `taken` items of each store, nobody has the rest."""
        for node in list(self.router.outbox_stores):
            items, self.router.outbox_stores[node] = self.router.outbox_stores[node], []
            for item in items[:taken]:
                self._sent(item)
                self.with_stores.append((node, item))
            self.router.on_unsent(node, items[taken:])
        self.router.outbox_status.clear()

    def _write_of(self, item: Item) -> Write | None:
        """The books of an item; None for what is no write, or has been answered already."""
        if not item.ops:
            return None
        ops = protocol.decode_results(item.ops)
        if all(op[0] in (protocol.Op.GET, protocol.Op.SCAN) for op in ops):
            return None
        asked = self.asked.get(int(ops[0][1].split(b".")[0]))
        return asked.writes[item.partition] if asked else None

    def _sent(self, item: Item) -> None:
        write = self._write_of(item)
        if write is not None:
            assert item.timeout_ms >= 1
            if write.open:
                assert write.session, "sent again without a session"
                assert item.flags & FLAG_RETRY, "sent again, and does not say so"
            write.open += 1

    # -- stores

    def _take(self, which: int) -> tuple[int, Item]:
        return self.with_stores.pop(which % len(self.with_stores))

    @rule(partition=st.integers(0, PARTITIONS - 1), which=st.integers(0, 2))
    def elect(self, partition: int, which: int) -> None:
        replicas = self.house.map.replicas[partition]
        self.led_before[partition] = self.leaders[partition]
        self.leaders[partition] = replicas[which % len(replicas)]

    @precondition(lambda self: self.with_stores)
    @rule(victim=st.integers(0, 1000), executed=st.booleans(), which=st.integers(0, 2))
    def a_store_dies(self, victim: int, executed: bool, which: int) -> None:
        """What it had may have been committed by the others, which are up; its answers are lost."""
        dead, of = self.with_stores[victim % len(self.with_stores)]
        self.leaders[of.partition] = dead
        for node, item in self.with_stores:
            write = self._write_of(item)
            if node == dead and executed and write is not None:
                write.done = True
        self.with_stores = [pair for pair in self.with_stores if pair[0] != dead]
        for node in NODES:
            self.router.on_backend(node, node != dead)
        self.elect(of.partition, which)
        self.end_turn(ALL)
        self._read_responses()

    @precondition(lambda self: self.router.topology.map)
    @rule(
        session=st.booleans(),
        executed=st.booleans(),
        which=st.integers(0, 2),
        hints=st.lists(st.sampled_from(HINTS), max_size=4),
    )
    def a_leader_dies_with_a_write(self, session: bool, executed: bool, which: int, hints: list[str]) -> None:
        """The way that random steps rarely take: sent, lost, sent to others that do not lead."""
        for node in NODES:
            self.router.on_backend(node, True)
        self.ask([True], 3.0, session, False, True)
        if self.with_stores and self._write_of(self.with_stores[-1][1]):
            self.a_store_dies(-1, executed, which)
        for hint in hints:
            if self.with_stores:
                self.answer_as_replicas(ALL, hint)

    def _hint(self, partition: int, node: int, hint: str) -> int | None:
        others = [other for other in NODES if other not in (node, self.leaders[partition])]
        return {
            "right": self.leaders[partition],
            "stale": self.led_before[partition],
            "wrong": others[0],
            "stranger": 999,
            "zero": 0,
            "missing": None,
        }[hint]

    @precondition(lambda self: self.with_stores)
    @rule(count=st.sampled_from([1, 5, ALL]), hint=st.sampled_from(HINTS))
    def answer_as_replicas(self, count: int, hint: str) -> None:
        """The leaders serve, the others say who leads."""
        for _ in range(min(count, len(self.with_stores))):
            node, item = self._take(0)
            if node == self.leaders[item.partition]:
                self._serve(node, item)
            else:
                self._refuse(node, item, Status.NOT_LEADER, leader=self._hint(item.partition, node, hint))
        self.end_turn(ALL)

    @precondition(lambda self: self.router.topology.map and not self.router.flight.parts)
    @rule(partition=st.integers(0, PARTITIONS - 1))
    def all_is_well(self, partition: int) -> None:
        """Whatever the router has been told before: if all are up and know who leads, so does it soon."""
        for node in NODES:
            self.router.on_backend(node, True)
        self._read_responses()
        number = self.house.request_id + 1
        names = (b"%d.%d" % (number, index) for index in range(10_000))
        key = next(name for name in names if self.house.partition(name) == partition)
        self._ask(protocol.encode_put(key, b"v"), 3.0, 1).writes[partition] = Write(True)
        sent = 0
        while number in self.asked:
            ((node, item),) = self.house.items()
            sent += 1
            assert sent <= 2, "more than one redirection, though every store knew who leads"
            self._sent(item)
            if node == self.leaders[partition]:
                self._serve(node, item)
            else:
                self._refuse(node, item, Status.NOT_LEADER, leader=self.leaders[partition])

    @precondition(lambda self: self.with_stores)
    @rule(which=st.integers(0, 1000), resume=st.booleans())
    def serve(self, which: int, resume: bool) -> None:
        node, item = self._take(which)
        self._serve(node, item)

    def _serve(self, node: int, item: Item) -> None:
        write = self._write_of(item)
        if write is not None:
            write.done = True
        self.house.answer(node, item, b"".join(map(self._result, protocol.decode_results(item.ops))))
        self._read_responses()

    def _result(self, op: list[object]) -> bytes:
        if op[0] == protocol.Op.GET:
            return protocol.pack((0, b"value", 1))
        if op[0] == protocol.Op.SCAN:
            start = op[1]
            assert isinstance(start, bytes)
            more = op[4] == SCAN_COUNT and len(start) < 2
            return protocol.pack((0, 1, b"", start + b"x")) if more else protocol.pack((0, 0, b""))
        return protocol.pack((0, 1))

    @precondition(lambda self: self.with_stores)
    @rule(
        which=st.integers(0, 1000),
        status=st.sampled_from(REFUSALS * 2 + FINAL),
        after=st.sampled_from([None, 0, 50, 1 << 40]),
    )
    def refuse(self, which: int, status: Status, after: int | None) -> None:
        node, item = self._take(which)
        self._refuse(node, item, status, **({} if after is None else {"retry_after_ms": after}))

    def _refuse(self, node: int, item: Item, status: Status, **details: int | None) -> None:
        write = self._write_of(item)
        if write is not None and not write.done:
            write.open -= 1
        self.house.refuse(node, item, status, **details)
        self._read_responses()

    @precondition(lambda self: self.with_stores)
    @rule(which=st.integers(0, 1000), after=st.sampled_from([None, 0, 50, 50, 1 << 40]))
    def lose_sight(self, which: int, after: int | None) -> None:
        """The store leads no more and cannot tell; with a pause, whoever leads now will. The write stays
        open.
        """
        node, item = self._take(which)
        details = {} if after is None else {"retry_after_ms": after}
        self.house.refuse(node, item, Status.OUTCOME_UNKNOWN, **details)
        self._read_responses()

    @precondition(lambda self: self.with_stores)
    @rule(which=st.integers(0, 1000), body=st.sampled_from(NONSENSE), status=st.sampled_from([0, 0, 23, 999]))
    def answer_nonsense(self, which: int, body: bytes, status: int) -> None:
        node, item = self._take(which)
        write = self._write_of(item)
        if write is not None and status and not write.done:
            write.open -= 1
        elif write is not None:
            write.done = True
        self.house.answer(node, item, body, status)
        self._read_responses()

    @rule(node=st.sampled_from(NODES))
    def answer_to_nobody(self, node: int) -> None:
        self.router.on_batch_reply(node, 1, [(self.router.flight.token + 1, 0, b"")])

    @rule(node=st.sampled_from(NODES), up=st.booleans())
    def link(self, node: int, up: bool) -> None:
        self.router.on_backend(node, up)
        if not up and node % 2:  # what it had may be answered late, or never
            self.with_stores = [pair for pair in self.with_stores if pair[0] != node]
        self._read_responses()

    @rule(swap=st.booleans())
    def new_map(self, swap: bool) -> None:
        house = self.house
        replicas = tuple(nodes[::-1] if swap else nodes for nodes in house.map.replicas)
        if self.router.topology.map is None:
            self.router.on_map(house.map.encode())
        elif self.router.topology.epoch == house.map.epoch:
            self.router.on_map(changed(house.map, replicas=replicas))
        self._read_responses()

    @rule(frame=st.binary(max_size=30))
    def not_a_map(self, frame: bytes) -> None:
        with contextlib.suppress(ProtocolError):
            self.router.on_map(frame)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02, 0.3, 2.0]), late=st.booleans())
    def pass_time(self, seconds: float, late: bool) -> None:
        """In the shell's steps, or in one leap: a process that was stopped."""
        self.end_turn(ALL)
        end = self.house.clock.monotonic() + seconds
        while not late and self.router.next_due() < end:
            self._tick(max(self.house.clock.monotonic(), self.router.next_due()))
        self._tick(end)

    def _tick(self, now: float) -> None:
        self.house.clock.advance(now - self.house.clock.monotonic())
        self.router.on_tick(now)
        self.router.should_ask_map()
        self.end_turn(ALL)
        self._read_responses()

    # -- what clients read

    def _read_responses(self) -> None:
        for response in self.house.responses():
            asked = self.asked.pop(response.request_id, None)
            assert asked is not None, "answered twice, or never asked"
            if asked.kind == Kind.OPS and asked.count and response.status == Status.OK:
                self._check_results(asked, response)
            elif response.status != Status.INTERNAL:
                assert not any(write.open for write in asked.writes.values()), response

    def _check_results(self, asked: Asked, response: protocol.Response) -> None:
        try:
            results = protocol.decode_results(response.body)
            statuses = [result[0] for result in results]
        except Exception:  # noqa: BLE001 - one partition's results are passed on as they came
            return
        if len(asked.writes) != 1 or len(set(map(str, statuses))) != 1:
            return  # whose result is whose is the unit tests' business
        [write] = asked.writes.values()
        if statuses[0] in NOT_APPLIED:
            assert not write.open, "it may have been applied"
        if statuses[0] == Status.OUTCOME_UNKNOWN:
            assert write.open, "it certainly was not applied"

    # -- what always holds

    @invariant()
    def in_time(self) -> None:
        if not hasattr(self, "house"):
            return
        self._read_responses()
        now = self.house.clock.monotonic()
        late = [asked for asked in self.asked.values() if asked.deadline + 2 * SWEEP_SECONDS < now]
        assert late == []

    @invariant()
    def in_order(self) -> None:
        if not hasattr(self, "house"):
            return
        flight = self.router.flight
        assert flight.bytes_held >= 0
        assert all(token == part.token for token, part in flight.parts.items())
        assert self.house.count("defects") == 0
        if not self.asked:
            live = [part for part in flight.parts.values() if part.gather is None or part.gather.remaining]
            assert live == []
            assert flight.bytes_held == 0

    def teardown(self) -> None:
        if not hasattr(self, "house"):
            return
        self.pass_time(10, False)
        assert self.asked == {}
        assert self.house.idle
        assert self.router.flight.parts == {}
        assert self.router.flight.take_parked() == []
        assert self.router.flight.next_due() == inf


RouterCore.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
test_router_core = RouterCore.TestCase
