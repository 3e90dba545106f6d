"""storenode/replica/statemachine.py on real engines: the same entries make the same state, however often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Corruption, InvalidRequest, Status
from storenode import engine
from storenode.engine.replica_engine import ReplicaEngine
from storenode.raft.messages import Configuration
from storenode.replica import commands
from storenode.replica.proposal import Proposal
from storenode.replica.sessions import RETRY_WINDOW_MS
from storenode.replica.statemachine import FOUNDED, Outcome, Position, StateMachine

FOUNDERS = Configuration(frozenset({1, 2, 3}))
CLIENT = 5
STAMP = 1_700_000_000_000
Write = tuple[int, int, int, int, bytes]


def entry(*writes: Write, stamp_ms: int = STAMP, session_ms: int = 0) -> bytes:
    return commands.encode(stamp_ms, session_ms, [Proposal((b"r", 1), *write, 0.0) for write in writes])


def write(
    ops: bytes, sequence: int = 0, *, client: int = CLIENT, acked: int = 0, retry: bool = False
) -> Write:
    return client, sequence, acked, protocol.FLAG_RETRY if retry else 0, ops


def put(key: bytes, value: bytes, ttl_ms: int | None = None) -> bytes:
    return protocol.encode_put(key, value, ttl_ms=ttl_ms)


class Disk:
    """One replica's directory; `open` begins a process on it, `crash` ends one without a word."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine: ReplicaEngine | None = None

    def open(self) -> StateMachine:
        self.close()
        self.engine = engine.open_replica(str(self.path), engine_id=7)
        return StateMachine(self.engine, FOUNDERS)

    def close(self) -> None:
        """Without a flush, so that what no table holds is lost."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "replica")
    yield made
    made.close()


def get(machine: StateMachine, key: bytes, now_ms: int = STAMP) -> list[object]:
    return protocol.decode_results(machine.engine.read(protocol.encode_get(key), now_ms))[0]


def content(machine: StateMachine) -> bytes:
    return machine.engine.read(protocol.encode_scan(b"", None, 10_000), STAMP)


def test_a_new_replica_is_where_a_group_begins(disk: Disk) -> None:
    machine = disk.open()
    assert machine.position == FOUNDED == Position(1, 0)
    assert machine.durable() == FOUNDED
    assert machine.configuration == FOUNDERS


def test_versions_follow_the_order_of_the_log_without_gaps(disk: Disk) -> None:
    machine = disk.open()
    pair = put(b"a", b"1") + put(b"b", b"2")
    assert machine.apply(2, 1, b"") == []
    outcomes = machine.apply(3, 1, entry(write(pair, 1), write(put(b"c", b"3"), 2)))
    assert outcomes == [(0, b"\x92\x00\x01\x92\x00\x02"), (0, b"\x92\x00\x03")]
    machine.apply(4, 2, entry(write(put(b"a", b"4"), 3)))
    assert get(machine, b"a") == [0, b"4", 4]
    assert get(machine, b"b") == [0, b"2", 2]
    assert machine.position == Position(4, 2)


def test_a_write_that_is_in_an_entry_twice_runs_once(disk: Disk) -> None:
    machine = disk.open()
    add = protocol.encode_increment(b"n", 1)
    first, second, retried = write(add, 1), write(add, 2), write(add, 1, retry=True)
    acknowledged = write(add, 1, acked=2, retry=True)
    outcomes = machine.apply(2, 1, entry(first, second, retried, write(add), acknowledged, write(add, 3)))
    assert outcomes[0] == outcomes[2] == (0, b"\x93\x00\x01\x01")
    assert [outcomes[at] for at in (1, 3, 5)] == [(0, bytes((0x93, 0, n, n))) for n in (2, 3, 4)]
    assert outcomes[4][0] == Status.OUTCOME_UNKNOWN
    assert get(machine, b"n") == [0, b"4", 4]


def test_a_write_that_is_answered_from_the_table_takes_no_version(disk: Disk) -> None:
    machine = disk.open()
    increment = protocol.encode_increment(b"n", 1)
    first = machine.apply(2, 1, entry(write(increment, 1)))
    again = machine.apply(3, 1, entry(write(increment, 1, retry=True), write(put(b"k", b"v"), 2)))
    assert again == [first[0], (0, b"\x92\x00\x02")]
    assert get(machine, b"n")[1] == b"1"


def test_attempts_of_the_same_write_in_one_entry_run_once(disk: Disk) -> None:
    machine = disk.open()
    increment = protocol.encode_increment(b"n", 1)
    first, second = machine.apply(2, 1, entry(write(increment, 1), write(increment, 1, retry=True)))
    assert first == second
    assert get(machine, b"n")[1] == b"1"


def test_below_the_floor_the_outcome_is_unknown_and_nothing_runs(disk: Disk) -> None:
    machine = disk.open()
    increment = protocol.encode_increment(b"n", 1)
    machine.apply(2, 1, entry(write(increment, 5, acked=5)))
    ((status, body),) = machine.apply(3, 1, entry(write(increment, 4)))
    assert status == Status.OUTCOME_UNKNOWN
    assert "acknowledged" in str(protocol.decode_error(body)["message"])
    assert get(machine, b"n")[1] == b"1"


def test_a_retry_of_what_may_have_been_evicted_is_judged_by_the_entrys_time(disk: Disk) -> None:
    machine = disk.open()
    machine.sessions._sessions_max = 1
    for client in (1, 2):
        machine.apply(1 + client, 1, entry(write(put(b"k", b"v"), 1, client=client), session_ms=500))
    late, later = 500 + RETRY_WINDOW_MS - 1, 500 + RETRY_WINDOW_MS
    retry = write(put(b"k", b"w"), 1, client=1, retry=True)
    assert machine.apply(4, 1, entry(retry, session_ms=late))[0][0] == Status.OUTCOME_UNKNOWN
    assert machine.apply(5, 1, entry(retry, session_ms=later))[0][0] == Status.OK


@pytest.mark.parametrize(("client", "sequence"), [(0, 5), (5, 0)])
def test_without_a_session_nothing_is_remembered(disk: Disk, client: int, sequence: int) -> None:
    machine = disk.open()
    increment = write(protocol.encode_increment(b"n", 1), sequence, client=client)
    machine.apply(2, 1, entry(increment, increment))
    assert get(machine, b"n")[1] == b"2"
    assert len(machine.sessions) == 0


def test_a_barrier_is_remembered_and_changes_nothing(disk: Disk) -> None:
    machine = disk.open()
    assert machine.apply(2, 1, entry(write(b"", 1))) == [(0, b"")]
    assert machine.sessions.results_of(CLIENT, 1) == b""
    assert machine.engine.next_sequence == 1


def test_ttls_count_from_the_leaders_stamp(disk: Disk) -> None:
    machine = disk.open()
    machine.apply(2, 1, entry(write(put(b"k", b"v", ttl_ms=1000)), stamp_ms=STAMP))
    assert get(machine, b"k", STAMP + 999)[0] == Status.OK
    assert get(machine, b"k", STAMP + 1000) == [Status.NOT_FOUND]
    machine.apply(3, 1, entry(write(put(b"k", b"w")), stamp_ms=STAMP + 2000))
    assert get(machine, b"k", STAMP)[1] == b"w", "a read by a clock that is behind sees no key come back"


def history(seed: int) -> list[tuple[int, int, bytes]]:
    """(index, term, data) of a log with retries, floors, TTLs, conditions, empty entries."""
    random = Random(seed)
    found, session_ms, term = [], 0, 1
    for index in range(2, 120):
        session_ms += random.randrange(3000)
        term += random.random() < 0.05
        writes = []
        for _ in range(random.randrange(4)):
            key = b"k%d" % random.randrange(12)
            ops = random.choice(
                [
                    put(key, bytes(random.randrange(200))),
                    put(key, b"t", ttl_ms=1 + random.randrange(50_000)),
                    protocol.encode_increment(b"n", 1),
                    protocol.encode_delete(key),
                    put(key, b"x") + protocol.encode_get(b"k1"),
                    b"",
                ]
            )
            sequence = random.randrange(30)
            writes.append(
                write(
                    ops,
                    sequence,
                    client=random.randrange(4),
                    acked=random.randrange(sequence + 1),
                    retry=random.random() < 0.4,
                )
            )
        found.append(
            (
                index,
                term,
                entry(*writes, stamp_ms=STAMP + session_ms, session_ms=session_ms) if writes else b"",
            )
        )
    return found


def play(machine: StateMachine, log: list[tuple[int, int, bytes]]) -> list[list[Outcome]]:
    return [machine.apply(*one) for one in log if one[0] > machine.position.index]


@pytest.mark.parametrize("seed", range(4))
def test_after_a_crash_the_log_is_applied_again_and_everything_is_the_same(disk: Disk, seed: int) -> None:
    """Content, versions, results, sessions: wherever it was flushed, and wherever it ended."""
    log = history(seed)
    twin = Disk(disk.path.with_name("twin"))
    whole = twin.open()
    expected = play(whole, log)
    random = Random(seed)
    machine = disk.open()
    for stop in sorted(random.sample(range(10, 118), 5)):
        outcomes = play(machine, [one for one in log if one[0] <= stop])
        assert outcomes == expected[stop - 1 - len(outcomes) : stop - 1]
        before, there = machine.dump(), content(machine)
        if random.random() < 0.7:
            machine.engine.flush()
            assert machine.durable() == machine.position
        machine = disk.open()
        assert machine.position == machine.durable()
        again = play(machine, [one for one in log if one[0] <= stop])
        assert again == expected[stop - 1 - len(again) : stop - 1]
        assert machine.dump() == before
        assert content(machine) == there
    play(machine, log)
    assert machine.dump() == whole.dump()
    assert content(machine) == content(whole)
    twin.close()


def test_durable_is_what_tables_hold_and_not_what_is_applied(disk: Disk) -> None:
    machine = disk.open()
    machine.apply(2, 3, entry(write(put(b"a", b"1"), 1)))
    machine.engine.flush()
    machine.apply(3, 3, entry(write(put(b"b", b"1"), 2)))
    assert machine.durable() == Position(2, 3)
    assert machine.position == Position(3, 3)


def test_an_entry_that_changes_no_key_is_flushed_too(disk: Disk) -> None:
    """Or the log of an idle partition, or one of barriers alone, could never be cut."""
    machine = disk.open()
    machine.apply(2, 4, b"")
    machine.engine.flush()
    assert machine.durable() == Position(2, 4)


def test_the_configuration_is_part_of_the_state(disk: Disk) -> None:
    machine = disk.open()
    other = Configuration(
        frozenset({1, 2, 4}), frozenset({1, 2, 3}), frozenset({9}), frozenset({3}), auto_leave=True
    )
    machine.configure(2, 1, other)
    machine.engine.flush()
    machine = disk.open()
    assert machine.configuration == other
    assert machine.position == Position(2, 1)


def test_damage_ends_it_and_nothing_of_the_entry_gets_into_tables(disk: Disk) -> None:
    machine = disk.open()
    machine.apply(2, 1, entry(write(put(b"k", b"v" * 100), 1)))
    machine.engine.flush()
    disk.close()
    (table,) = disk.path.glob("*.sst")
    damaged = bytearray(table.read_bytes())
    damaged[10] ^= 0xFF
    table.write_bytes(damaged)
    machine = disk.open()
    with pytest.raises(Corruption):
        machine.apply(3, 1, entry(write(put(b"a", b"1"), 2), write(protocol.encode_increment(b"k", 1), 3)))
    assert machine.position == Position(2, 1)
    with pytest.raises(engine.EngineError):
        machine.engine.flush()
    machine = disk.open()
    assert machine.position == Position(2, 1)


def test_an_entry_that_is_no_command_ends_it(disk: Disk) -> None:
    machine = disk.open()
    with pytest.raises(Corruption):
        machine.apply(2, 1, b"\xc1")


def test_ops_that_this_software_does_not_know_end_it(disk: Disk) -> None:
    """Others, of another version, may have executed them: to go on without is to be another state."""
    machine = disk.open()
    with pytest.raises(InvalidRequest):
        machine.apply(2, 1, entry(write(b"\x92\x63\xc4\x01k", 1)))
    assert machine.position == FOUNDED


@pytest.mark.parametrize(
    "state", [b"\x01", b"\x02" + bytes(19), bytes(20), b"\x01\x00\x00\x00" + bytes(16) + b"\xc1"]
)
def test_a_state_of_another_software_is_refused(disk: Disk, state: bytes) -> None:
    machine = disk.open()
    machine.engine.on_retire = lambda: state
    machine.engine.flush()
    with pytest.raises(Corruption, match="replica state"):
        disk.open()


# -- snapshots


def checkpoint(disk: Disk, machine: StateMachine) -> str:
    directory = str(disk.path.with_name(f"checkpoint{machine.position.index}"))
    machine.engine.checkpoint(directory)
    return directory


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "other")
    yield made
    made.close()


def test_a_snapshot_replaces_content_sessions_time_and_configuration(disk: Disk, other: Disk) -> None:
    source, behind = disk.open(), other.open()
    log = history(9)
    play(source, log)
    source.configure(200, 9, Configuration(frozenset({1, 2})))
    play(behind, log[:20])
    behind.install(behind.engine.examine(checkpoint(disk, source)))
    assert behind.dump() == source.dump()
    assert content(behind) == content(source)
    assert behind.durable() == behind.position == Position(200, 9)
    more = entry(write(protocol.encode_increment(b"n", 1), 99), session_ms=10_000_000)
    assert behind.apply(201, 9, more) == source.apply(201, 9, more)
    again = other.open()
    assert again.position == Position(200, 9)


def test_a_snapshot_that_is_not_newer_changes_nothing(disk: Disk, other: Disk) -> None:
    """It took the position back: the entries between changed no key, so that the engine did not mind."""
    source, ahead = disk.open(), other.open()
    for machine in (source, ahead):
        machine.apply(2, 1, entry(write(put(b"k", b"v"), 1)))
    directory = checkpoint(disk, source)
    for index in (3, 4):
        ahead.apply(index, 1, entry(write(b"", index)))
    before = ahead.dump()
    for at_least in (4, 2):
        if at_least == 2:
            ahead = other.open()
            ahead.apply(2, 1, entry(write(put(b"k", b"v"), 1)))
            before = ahead.dump()
        with pytest.raises(ValueError, match="not newer"):
            ahead.install(ahead.engine.examine(directory))
        assert ahead.dump() == before
    assert get(ahead, b"k") == [0, b"v", 1]


def test_a_snapshot_with_a_state_of_another_software_changes_nothing(disk: Disk, other: Disk) -> None:
    """The engine took it in, and the replica that belonged to it could not be made."""
    source, behind = disk.open(), other.open()
    source.apply(5, 1, entry(write(put(b"k", b"new"), 1)))
    whole = source.dump()
    source.engine.on_retire = lambda: whole[:20] + msgpack.packb([1, 2])
    behind.apply(2, 1, entry(write(put(b"k", b"old"), 1)))
    with pytest.raises(Corruption, match="replica state"):
        behind.install(behind.engine.examine(checkpoint(disk, source)))
    assert get(behind, b"k")[1] == b"old"
    assert behind.position == Position(2, 1)
