"""Durable and not yet durable entries as one log."""

from __future__ import annotations

import pytest

from storenode.raft.contract import Unstable
from storenode.raft.log_view import LogView
from storenode.raft.messages import Entry, EntryKind
from tests.unit.storenode.raft.harness import Disk, configuration


def entries(*terms: int, size: int = 0) -> list[Entry]:
    return [Entry(term, EntryKind.NORMAL, bytes(size)) for term in terms]


def view(*durable: int, commit: int = 0, size: int = 0) -> tuple[LogView, Disk]:
    disk = Disk(configuration())
    disk.log = entries(*durable, size=size)
    return LogView(disk, commit), disk


def write(log: LogView, disk: Disk) -> None:
    first, taken = log.take()
    disk.write(Unstable(first, taken, None, []))
    log.persisted()


def terms(log: LogView) -> list[int]:
    return [log.term(index) for index in range(1, log.last_index + 1)]


def test_entries_come_from_both_parts_and_stop_at_the_bytes() -> None:
    log, _ = view(1, 1, size=10)
    log.append(entries(1, 1, 1, size=10))
    assert len(log.entries(1, 6, 100)) == 2, "the durable ones first"
    assert len(log.entries(3, 6, 100)) == 3
    assert len(log.entries(3, 6, 25)) == 2
    assert len(log.entries(3, 6, 1)) == 1, "one at least"


def test_only_a_conflict_replaces_and_an_old_message_shortens_nothing() -> None:
    log, _ = view(1, 1, 1, 1)
    log.merge(1, entries(1))
    assert terms(log) == [1, 1, 1, 1]
    log.merge(1, entries(1, 2))
    assert terms(log) == [1, 1, 2]
    assert log.last_term == 2
    assert log.durable_index == 2


def test_a_committed_entry_is_never_replaced() -> None:
    log, _ = view(1, 1, 1, commit=2)
    with pytest.raises(RuntimeError, match="2 is committed"):
        log.merge(1, entries(2))
    assert terms(log) == [1, 1, 1]


def test_what_was_replaced_while_it_was_written_is_not_durable() -> None:
    log, disk = view(1)
    log.append(entries(2, 2, 2))
    first, taken = log.take()
    log.merge(2, entries(3))
    disk.write(Unstable(first, taken, None, []))
    log.persisted()
    assert log.durable_index == 2
    assert terms(log) == [1, 2, 3]
    write(log, disk)
    assert [entry.term for entry in disk.log] == [1, 2, 3]
    assert log.durable_index == 3


def test_the_same_indexes_filled_again_while_written_are_written_anew() -> None:
    """etcd async_storage_writes_append_aba_race, in the log alone."""
    log, disk = view(1)
    log.append(entries(2, 2))
    first, taken = log.take()
    log.merge(1, entries(3, 3))
    log.merge(1, entries(4, 4))
    disk.write(Unstable(first, taken, None, []))
    log.persisted()
    assert log.durable_index == 1
    write(log, disk)
    assert [entry.term for entry in disk.log] == [1, 4, 4]


def test_replacing_durable_entries_while_a_write_is_out_counts_none_of_it() -> None:
    log, disk = view(1, 1, 1)
    log.append(entries(1))
    first, taken = log.take()
    log.merge(1, entries(2, 2))
    disk.write(Unstable(first, taken, None, []))
    log.persisted()
    assert log.durable_index == 1
    assert terms(log) == [1, 2, 2]


def test_the_last_entry_with_at_most_a_term_is_found_by_halving() -> None:
    log, _ = view(1, 1, 2, 4, 4, 4, 7)
    for term in range(9):
        for high in range(8):
            expected = max((i for i in range(1, high + 1) if log.term(i) <= term), default=0)
            assert log.last_at_or_below(term, 1, high) == expected
    assert log.last_at_or_below(1, 4, 6) == 3, "below the part that is looked at"


def test_a_snapshot_keeps_what_follows_it_if_the_log_has_its_entry() -> None:
    log, disk = view(1, 1, 1)
    log.append(entries(1, 1))
    disk.cut(2, 1)
    log.restored(2, 1)
    assert (log.first_index, log.last_index, log.commit) == (3, 5, 2)
    write(log, disk)
    assert disk.last_index == 5


@pytest.mark.parametrize("index", [2, 4, 9])
def test_a_snapshot_of_another_history_takes_the_whole_log_away(index: int) -> None:
    log, disk = view(1, 1, 1)
    log.append(entries(1, 1))
    disk.cut(index, 5)
    log.restored(index, 5)
    assert (log.first_index, log.last_index, log.last_term) == (index + 1, index, 5)
    log.append(entries(6))
    write(log, disk)
    assert (disk.last_index, disk.term(index + 1)) == (index + 1, 6)


def test_a_snapshot_is_not_put_in_while_entries_are_written() -> None:
    log, disk = view(1)
    log.append(entries(1))
    log.take()
    disk.cut(9, 2)
    with pytest.raises(RuntimeError, match="log write is out"):
        log.restored(9, 2)


def test_a_change_waits_from_its_commit_to_its_apply() -> None:
    log, _ = view(1)
    log.append([Entry(1, EntryKind.CONFIGURATION, b""), *entries(1)])
    assert not log.change_waits(0), "not committed"
    log.commit = 3
    assert log.change_waits(1)
    assert not log.change_waits(2)


def test_what_was_loaded_may_hold_changes_until_it_is_applied() -> None:
    log, _ = view(1, 1, 1, commit=2)
    assert log.change_waits(1)
    assert not log.change_waits(2)
