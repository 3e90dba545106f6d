"""The window of a member, and its three states."""

from __future__ import annotations

import pytest

from storenode.raft import Settings
from storenode.raft.progress import Progress, ProgressState


def member(messages: int = 3, size: int = 100) -> Progress:
    made = Progress(1, Settings(inflight_messages=messages, inflight_bytes=size))
    made.replicate()
    return made


def test_the_window_is_full_by_messages_and_by_bytes() -> None:
    by_messages, by_bytes = member(messages=2), member(size=10)
    by_messages.sent(1, 0)
    assert not by_messages.full
    by_messages.sent(2, 0)
    assert by_messages.full
    by_bytes.sent(1, 10)
    assert by_bytes.full


def test_an_acknowledgement_frees_all_that_it_covers_and_nothing_else() -> None:
    progress = member()
    for index, size in ((2, 10), (5, 20), (6, 30)):
        progress.sent(index, size)
    assert not progress.acknowledge(0)
    assert progress.inflight_bytes == 60
    assert progress.acknowledge(5)
    assert (progress.inflight_bytes, progress.inflight_messages, progress.match) == (30, 1, 5)


def test_an_old_acknowledgement_moves_nothing_back() -> None:
    progress = member()
    progress.sent(4, 1)
    progress.acknowledge(4)
    assert not progress.acknowledge(2)
    assert (progress.match, progress.next) == (4, 5)


@pytest.mark.parametrize("leave", ["probe", "replicate", "snapshot"])
def test_inflight_bytes_do_not_leak_when_the_state_changes(leave: str) -> None:
    """raft#54."""
    progress = member()
    progress.sent(1, 70)
    progress.sent(2, 30)
    assert progress.full
    if leave == "probe":
        progress.probe(1)
    elif leave == "replicate":
        progress.replicate()
    else:
        progress.snapshot()
    assert (progress.inflight_bytes, progress.inflight_messages, progress.full) == (0, 0, False)


def test_probing_never_goes_below_what_is_acknowledged() -> None:
    progress = member()
    progress.acknowledge(7)
    progress.probe(3)
    assert (progress.state, progress.next) == (ProgressState.PROBE, 8)


def test_a_member_stalls_when_a_whole_interval_brought_nothing() -> None:
    progress = member()
    progress.beat()
    assert not progress.stalled
    progress.acknowledge(1)
    progress.beat()
    assert not progress.stalled
    progress.beat()
    assert progress.stalled
