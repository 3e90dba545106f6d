"""The rules of storenode/replica/sessions.py, one test per rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storenode.replica import sessions
from storenode.replica.proposal import Proposal
from storenode.replica.sessions import RETRY_WINDOW_S, SessionTable, Verdict

CLIENT = 0xC11E
START = 1000.0
SETTLED = START + RETRY_WINDOW_S  # from here on the table remembers every attempt that may still be retried


def begin(
    table: SessionTable, client: int, sequence: int, acked_below: int = 0, now: float = SETTLED
) -> Proposal:
    assert table.look_up(client, sequence, acked_below, False, now) is Verdict.EXECUTE
    proposal = Proposal((b"router", 1), client, sequence, b"ops", 1, now + 5)
    table.begin(proposal, acked_below, now)
    return proposal


def run(
    table: SessionTable,
    client: int,
    sequence: int,
    results: bytes | None = b"results",
    acked_below: int = 0,
    now: float = SETTLED,
) -> None:
    proposal = begin(table, client, sequence, acked_below, now)
    assert proposal.session is not None
    table.finish(proposal.session, sequence, results, now)


@pytest.mark.parametrize("retry", [False, True])
def test_a_finished_sequence_answers_its_results_again(retry: bool) -> None:
    table = SessionTable(START)
    run(table, CLIENT, 1, b"first")
    run(table, CLIENT, 2, b"second")
    assert table.look_up(CLIENT, 1, 0, retry, SETTLED) == b"first"
    assert table.look_up(CLIENT, 2, 0, retry, SETTLED) == b"second"


def test_a_sequence_under_way_is_handed_out_to_wait_for() -> None:
    table = SessionTable(START)
    proposal = begin(table, CLIENT, 1)
    assert table.look_up(CLIENT, 1, 0, True, SETTLED) is proposal


def test_a_first_attempt_runs_even_right_after_the_start() -> None:
    assert SessionTable(START).look_up(CLIENT, 9, 0, False, START) is Verdict.EXECUTE


def test_a_retry_of_an_unknown_sequence_is_unknown_until_the_table_covers_the_window() -> None:
    table = SessionTable(START)
    assert table.look_up(CLIENT, 1, 0, True, SETTLED - 0.001) is Verdict.UNKNOWN
    assert table.look_up(CLIENT, 1, 0, True, SETTLED) is Verdict.EXECUTE


def test_below_what_the_client_acknowledged_nothing_runs_again() -> None:
    table = SessionTable(START)
    for sequence in (1, 2, 3):
        run(table, CLIENT, sequence)
    assert table.look_up(CLIENT, 4, 3, False, SETTLED) is Verdict.EXECUTE
    assert table.look_up(CLIENT, 2, 0, False, SETTLED) is Verdict.ACKNOWLEDGED
    assert table.look_up(CLIENT, 3, 0, True, SETTLED) == b"results"


def test_a_request_that_contradicts_itself_does_not_run() -> None:
    assert SessionTable(START).look_up(CLIENT, 5, 6, False, SETTLED) is Verdict.ACKNOWLEDGED


def test_acknowledging_frees_the_results() -> None:
    table = SessionTable(START)
    for sequence in range(1, 101):
        run(table, CLIENT, sequence, bytes(1000))
    full = table.bytes
    table.look_up(CLIENT, 101, 100, False, SETTLED)
    assert full > 100_000
    assert 1000 < table.bytes < 1200


def test_a_sequence_under_way_survives_an_acknowledgement_that_passes_it() -> None:
    table = SessionTable(START)
    proposal = begin(table, CLIENT, 1)
    assert table.look_up(CLIENT, 2, 2, False, SETTLED) is Verdict.EXECUTE
    assert table.look_up(CLIENT, 1, 2, True, SETTLED) is proposal
    assert proposal.session is not None
    table.finish(proposal.session, 1, b"late", SETTLED)
    run(table, CLIENT, 3, acked_below=3)
    assert table.look_up(CLIENT, 1, 3, True, SETTLED) is Verdict.ACKNOWLEDGED


def test_a_cancelled_sequence_may_run_later() -> None:
    table = SessionTable(START)
    proposal = begin(table, CLIENT, 1)
    assert proposal.session is not None
    table.cancel(proposal.session, 1)
    assert table.look_up(CLIENT, 1, 0, True, SETTLED) is Verdict.EXECUTE
    assert table.bytes == 0


def test_an_outcome_that_nobody_knows_stays_unknown() -> None:
    table = SessionTable(START)
    run(table, CLIENT, 1, None)
    assert table.look_up(CLIENT, 1, 0, False, SETTLED) is Verdict.UNKNOWN
    assert table.look_up(CLIENT, 1, 0, True, SETTLED + 1000) is Verdict.UNKNOWN


def test_the_least_recently_used_session_is_evicted_and_moves_the_horizon() -> None:
    table = SessionTable(START, sessions_max=2)
    run(table, 1, 1, now=SETTLED)
    run(table, 2, 1, now=SETTLED + 1)
    run(table, 1, 2, now=SETTLED + 2)
    run(table, 3, 1, now=SETTLED + 3)
    assert len(table) == 2
    assert table.look_up(1, 2, 0, True, SETTLED + 3) == b"results"
    assert table.look_up(2, 1, 0, True, SETTLED + 1 + RETRY_WINDOW_S - 0.001) is Verdict.UNKNOWN
    assert table.look_up(2, 2, 0, True, SETTLED + 1 + RETRY_WINDOW_S) is Verdict.EXECUTE


def test_eviction_never_takes_a_session_with_a_write_under_way() -> None:
    table = SessionTable(START, sessions_max=1)
    proposal = begin(table, 1, 1)
    run(table, 2, 1)
    assert table.look_up(1, 1, 0, True, SETTLED) is proposal
    assert proposal.session is not None
    table.finish(proposal.session, 1, b"done", SETTLED)
    run(table, 3, 1)
    assert len(table) == 1


def test_a_session_with_too_many_results_drops_its_oldest_and_says_so() -> None:
    table = SessionTable(START)
    for sequence in range(1, sessions.RESULTS_MAX + 3):
        run(table, CLIENT, sequence)
    assert table.look_up(CLIENT, 2, 0, False, SETTLED) is Verdict.ACKNOWLEDGED
    assert table.look_up(CLIENT, 3, 0, False, SETTLED) == b"results"
    assert table.horizon == START


def test_a_session_with_large_results_drops_its_own_before_others_suffer() -> None:
    table = SessionTable(START)
    run(table, 1, 1, b"mine")
    for sequence in range(1, 200):
        run(table, 2, sequence, bytes(100_000))
    assert table.bytes <= sessions.SESSION_BYTES_MAX + 1000
    assert table.look_up(1, 1, 0, True, SETTLED) == b"mine"
    assert table.look_up(2, 199, 0, True, SETTLED) == bytes(100_000)


def test_the_table_is_bounded_in_bytes() -> None:
    table = SessionTable(START, bytes_max=1 << 20)
    for client in range(1, 400):
        run(table, client, 1, bytes(10_000), now=SETTLED + client)
    assert table.bytes <= 1 << 20
    assert table.evicted == 399 - len(table)
    assert table.horizon == SETTLED + table.evicted


actions = st.lists(
    st.tuples(
        st.sampled_from(["attempt", "retry", "finish", "refuse", "lose"]),
        st.integers(1, 4),
        st.integers(1, 12),
        st.integers(0, 12),
        st.floats(0, 30),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(actions)
def test_no_retry_within_the_window_ever_runs_a_write_twice(
    steps: list[tuple[str, int, int, int, float]],
) -> None:
    """A model client: first attempts once, retries within RETRY_WINDOW_S. Whatever is bounded away, no
    sequence runs twice.
    """
    table = SessionTable(0.0, sessions_max=2, bytes_max=1000)
    now, first_sent, ran, under_way = 0.0, {}, set(), {}
    acked: dict[int, int] = {}
    for action, client, sequence, acked_below, pause in steps:
        now += pause
        key = (client, sequence)
        if action in ("attempt", "retry"):
            retry = action == "retry"
            if retry and (key not in first_sent or now - first_sent[key] > RETRY_WINDOW_S):
                continue
            if not retry and key in first_sent:
                continue
            first_sent.setdefault(key, now)
            acked[client] = max(acked.get(client, 0), min(acked_below, sequence))
            found = table.look_up(client, sequence, acked[client], retry, now)
            if found is Verdict.EXECUTE:
                assert key not in ran
                assert key not in under_way
                proposal = Proposal((b"r", 1), client, sequence, b"", 1, now)
                table.begin(proposal, acked[client], now)
                under_way[key] = proposal
            elif isinstance(found, bytes):
                assert found == repr(key).encode()
        elif key in under_way:
            proposal = under_way.pop(key)
            assert proposal.session is not None
            if action == "refuse":
                table.cancel(proposal.session, sequence)
            else:
                ran.add(key)
                outcome = repr(key).encode() if action == "finish" else None
                table.finish(proposal.session, sequence, outcome, now)
        assert len(table) <= 2 + len(under_way)
