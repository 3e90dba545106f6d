"""The rules of storenode/replica/sessions.py, one test per rule."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storenode.replica import sessions
from storenode.replica.sessions import RETRY_WINDOW_MS, SessionTable, Verdict

CLIENT = 0xC11E
NOW = 1_000_000


def run(
    table: SessionTable,
    client: int,
    sequence: int,
    results: bytes = b"results",
    acked_below: int = 0,
    now: int = NOW,
) -> None:
    assert table.judge(client, sequence, acked_below, False, now) is Verdict.EXECUTE
    table.record(client, sequence, acked_below, results, now)


@pytest.mark.parametrize("retry", [False, True])
def test_a_finished_sequence_answers_its_results_again(retry: bool) -> None:
    table = SessionTable()
    run(table, CLIENT, 1, b"first")
    run(table, CLIENT, 2, b"second")
    assert table.judge(CLIENT, 1, 0, retry, NOW) == b"first"
    assert table.judge(CLIENT, 2, 0, retry, NOW) == b"second"
    assert table.results_of(CLIENT, 2) == b"second"


def test_asking_for_results_changes_nothing() -> None:
    table = SessionTable()
    run(table, CLIENT, 1)
    before = table.dump()
    assert table.results_of(CLIENT, 2) is None
    assert table.results_of(99, 1) is None
    assert table.dump() == before


def test_a_partition_without_history_executes_every_retry() -> None:
    """Nothing ran before it began: the horizon lies before all time."""
    assert SessionTable().judge(CLIENT, 1, 0, True, 0) is Verdict.EXECUTE


def test_a_retry_of_a_sequence_that_nobody_evicted_is_executed_in_any_session() -> None:
    table = SessionTable()
    run(table, 1, 1)
    assert table.judge(1, 2, 0, True, NOW) is Verdict.EXECUTE
    assert table.judge(2, 1, 0, True, NOW) is Verdict.EXECUTE


def test_below_what_the_client_acknowledged_nothing_runs_again() -> None:
    table = SessionTable()
    for sequence in (1, 2, 3):
        run(table, CLIENT, sequence)
    assert table.judge(CLIENT, 4, 3, False, NOW) is Verdict.EXECUTE
    assert table.judge(CLIENT, 2, 0, False, NOW) is Verdict.ACKNOWLEDGED
    assert table.judge(CLIENT, 3, 0, True, NOW) == b"results"


def test_an_acknowledgement_never_goes_back() -> None:
    table = SessionTable()
    run(table, CLIENT, 5, acked_below=5)
    run(table, CLIENT, 6, acked_below=2)
    assert table.judge(CLIENT, 3, 0, False, NOW) is Verdict.ACKNOWLEDGED


def test_a_request_that_contradicts_itself_does_not_run() -> None:
    assert SessionTable().judge(CLIENT, 5, 6, False, NOW) is Verdict.ACKNOWLEDGED


def test_acknowledging_frees_the_results() -> None:
    table = SessionTable()
    for sequence in range(1, 101):
        run(table, CLIENT, sequence, bytes(1000))
    full = table.bytes
    table.judge(CLIENT, 101, 100, False, NOW)
    assert full > 100_000
    assert 1000 < table.bytes < 1200


def test_a_result_that_came_out_of_order_goes_with_those_in_front_of_it() -> None:
    table = SessionTable()
    for sequence in (3, 1, 2):
        run(table, CLIENT, sequence)
    table.judge(CLIENT, 4, 3, False, NOW)
    assert table.results_of(CLIENT, 1) is not None, "behind 3 in the order of the log, and 3 stays"
    table.judge(CLIENT, 4, 4, False, NOW)
    assert table.bytes == 0


def test_a_refused_judgement_makes_no_session() -> None:
    table = SessionTable()
    table.judge(CLIENT, 1, 0, False, NOW)
    assert len(table) == 0


def test_the_least_recently_used_session_is_evicted_and_moves_the_horizon() -> None:
    table = SessionTable(sessions_max=2)
    run(table, 1, 1, now=NOW)
    run(table, 2, 1, now=NOW + 1)
    run(table, 1, 2, now=NOW + 2)
    run(table, 3, 1, now=NOW + 3)
    assert (len(table), table.evicted, table.horizon) == (2, 1, NOW + 1)
    assert table.judge(1, 2, 0, True, NOW + 3) == b"results"
    assert table.judge(2, 1, 0, True, NOW + RETRY_WINDOW_MS) is Verdict.UNKNOWN
    assert table.judge(2, 1, 0, False, NOW + RETRY_WINDOW_MS) is Verdict.EXECUTE
    assert table.judge(2, 2, 0, True, NOW + 1 + RETRY_WINDOW_MS) is Verdict.EXECUTE


def test_answering_from_the_table_is_no_use_of_a_session() -> None:
    """It must not move a session: `results_of` answers too, on one replica only."""
    table = SessionTable(sessions_max=2)
    run(table, 1, 1)
    run(table, 2, 1)
    assert table.judge(1, 1, 0, True, NOW) == b"results"
    run(table, 3, 1)
    assert table.results_of(1, 1) is None
    assert table.results_of(2, 1) is not None


def test_a_session_with_too_many_results_drops_its_oldest_and_says_so() -> None:
    table = SessionTable()
    horizon = table.horizon
    for sequence in range(1, sessions.RESULTS_MAX + 3):
        run(table, CLIENT, sequence)
    assert table.judge(CLIENT, 2, 0, False, NOW) is Verdict.ACKNOWLEDGED
    assert table.judge(CLIENT, 3, 0, False, NOW) == b"results"
    assert table.horizon == horizon


def test_a_session_with_large_results_drops_its_own_before_others_suffer() -> None:
    table = SessionTable()
    run(table, 1, 1, b"mine")
    for sequence in range(1, 200):
        run(table, 2, sequence, bytes(100_000))
    assert table.bytes <= sessions.SESSION_BYTES_MAX + 1000
    assert table.judge(1, 1, 0, True, NOW) == b"mine"
    assert table.judge(2, 199, 0, True, NOW) == bytes(100_000)


def test_a_result_larger_than_a_session_may_hold_is_not_kept_and_does_not_run_again() -> None:
    table = SessionTable()
    run(table, CLIENT, 1, bytes(sessions.SESSION_BYTES_MAX + 1))
    assert table.bytes == 0
    assert table.judge(CLIENT, 1, 0, True, NOW) is Verdict.ACKNOWLEDGED


def test_the_table_is_bounded_in_bytes() -> None:
    table = SessionTable(bytes_max=1 << 20)
    for client in range(1, 400):
        run(table, client, 1, bytes(10_000), now=NOW + client)
    assert table.bytes <= 1 << 20
    assert table.evicted == 399 - len(table)
    assert table.horizon == NOW + table.evicted


def loaded(table: SessionTable, **bounds: int) -> SessionTable:
    """What comes out of the replica state."""
    other = SessionTable(**bounds)
    other.load(msgpack.unpackb(msgpack.packb(table.dump()), use_list=False))
    return other


steps = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 9), st.booleans(), st.integers(0, 40_000)),
    max_size=60,
)


def play(table: SessionTable, actions: list[tuple[int, int, int, bool, int]], now: int) -> list[Any]:
    seen: list[Any] = []
    for client, sequence, acked_below, retry, pause in actions:
        now += pause
        verdict = table.judge(client, sequence, min(acked_below, sequence), retry, now)
        if verdict is Verdict.EXECUTE:
            table.record(client, sequence, min(acked_below, sequence), repr((client, sequence)).encode(), now)
        seen.append((verdict, len(table), table.bytes, table.horizon))
    return seen


@settings(max_examples=200, deadline=None)
@given(steps, steps)
def test_a_table_that_was_dumped_and_loaded_behaves_as_the_one_before(
    before: list[tuple[int, int, int, bool, int]], after: list[tuple[int, int, int, bool, int]]
) -> None:
    """A replica that restarted, or took a snapshot, must judge as those that did not."""
    bounds = {"sessions_max": 3, "bytes_max": 700}
    table = SessionTable(**bounds)
    play(table, before, 0)
    other = loaded(table, **bounds)
    assert other.dump() == table.dump()
    assert play(other, after, 10_000_000) == play(table, after, 10_000_000)
    assert other.dump() == table.dump()


@settings(max_examples=300, deadline=None)
@given(steps)
def test_no_retry_within_the_window_ever_runs_a_write_twice(
    actions: list[tuple[int, int, int, bool, int]],
) -> None:
    """A model client: first attempts once, retries within RETRY_WINDOW_MS. Whatever is bounded away, no
    sequence runs twice, and what is answered is what it answered first.
    """
    table = SessionTable(sessions_max=2, bytes_max=1000)
    now = 0
    first_sent: dict[tuple[int, int], int] = {}
    ran: set[tuple[int, int]] = set()
    acked: dict[int, int] = {}
    for client, sequence, acked_below, retry, pause in actions:
        now += pause
        key = (client, sequence)
        if retry != (key in first_sent):
            continue
        if retry and now - first_sent[key] > RETRY_WINDOW_MS:
            continue
        first_sent.setdefault(key, now)
        acked[client] = max(acked.get(client, 0), min(acked_below, sequence))
        found = table.judge(client, sequence, acked[client], retry, now)
        if found is Verdict.EXECUTE:
            assert key not in ran
            ran.add(key)
            table.record(client, sequence, acked[client], repr(key).encode(), now)
        elif isinstance(found, bytes):
            assert found == repr(key).encode()
        assert len(table) <= 2
        assert table.bytes <= 1000
