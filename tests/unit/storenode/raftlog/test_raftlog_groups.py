"""One group's view: terms, entries, cuts, overwrites, the cache, forgetting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from kvclient.errors import Corruption
from storenode.engine import codec
from storenode.engine.vfs import Vfs
from storenode.raft.messages import Entry, HardState
from storenode.raft.storage import Compacted, Storage
from storenode.raftlog import LogFailed, LogRefused, RaftLog, Record, Written

EVERYTHING = 1 << 30


def opened(path: Path, cache_bytes: int = 1 << 20, segment_bytes: int = 1 << 16, node: int = 1) -> RaftLog:
    return RaftLog(Vfs(), str(path / "raft"), node, cache_bytes=cache_bytes, segment_bytes=segment_bytes)


@pytest.fixture(params=[0, 1 << 20], ids=["from disk", "from memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RaftLog]:
    log = opened(tmp_path, request.param)
    yield log
    log.close()


def write(log: RaftLog, *records: Record) -> None:
    log.installed(log.write(list(records)))


def entries(*terms: int) -> list[Entry]:
    return [Entry(term, 0, b"data %d" % place) for place, term in enumerate(terms)]


def appended(first: int, *terms: int, group: int = 1) -> Record:
    return Record(group, None, None, first, entries(*terms))


def cut(index: int, term: int, group: int = 1) -> Record:
    return Record(group, None, (index, term), 0, [])


def terms(log: RaftLog, group: int = 1) -> list[int]:
    view = log.group(group)
    found = [view.term(index) for index in range(view.first_index, view.last_index + 1)]
    held = view.entries(view.first_index, view.last_index + 1, EVERYTHING)
    assert [entry.term for entry in held] == found
    return found


def test_a_new_group_is_empty_and_is_a_storage(log: RaftLog) -> None:
    view: Storage = log.group(1)
    assert (view.hard_state, view.first_index, view.last_index, view.term(0)) == ((0, 0, 0), 1, 0, 0)
    assert view.entries(1, 1, EVERYTHING) == []
    assert log.group(1) is view
    with pytest.raises(IndexError):
        view.term(1)
    with pytest.raises(IndexError):
        view.entries(1, 2, EVERYTHING)
    with pytest.raises(ValueError, match="65536"):
        log.group(65536)


def test_nothing_shows_before_it_is_installed(log: RaftLog) -> None:
    written = log.write([Record(1, HardState(1, 2, 0), None, 1, entries(1))])
    assert (log.group(1).last_index, log.group(1).hard_state) == (0, (0, 0, 0))
    log.installed(written)
    assert (log.group(1).last_index, log.group(1).hard_state) == (1, (1, 2, 0))


def test_terms_from_the_cut_to_the_last_entry(log: RaftLog) -> None:
    write(log, appended(1, 1, 1, 2, 2, 5))
    write(log, appended(6, 5, 6))
    assert terms(log) == [1, 1, 2, 2, 5, 5, 6]
    write(log, cut(4, 2))
    assert (log.group(1).first_index, log.group(1).term(4)) == (5, 2)
    assert terms(log) == [5, 5, 6]
    with pytest.raises(Compacted):
        log.group(1).term(3)
    with pytest.raises(Compacted):
        log.group(1).entries(4, 6, EVERYTHING)
    with pytest.raises(IndexError):
        log.group(1).entries(5, 9, EVERYTHING)


def test_entries_replace_everything_from_their_first_on(log: RaftLog) -> None:
    write(log, appended(1, 1, 1, 1, 1), appended(5, 1))
    write(log, appended(3, 2))
    assert terms(log) == [1, 1, 2]
    write(log, appended(1, 3, 3))
    assert terms(log) == [3, 3]


def test_two_records_of_a_group_in_one_batch_hold_in_their_order(log: RaftLog) -> None:
    write(log, appended(1, 1, 1, 1), appended(2, 2, 2), Record(1, HardState(2, 0, 1), None, 0, []))
    assert terms(log) == [1, 2, 2]
    assert [entry.data for entry in log.group(1).entries(1, 4, EVERYTHING)] == [
        b"data 0",
        b"data 0",
        b"data 1",
    ]
    assert log.group(1).hard_state == (2, 0, 1)


@pytest.mark.parametrize(("index", "term"), [(9, 7), (2, 7)], ids=["beyond the end", "another term"])
def test_a_snapshot_empties_the_log(log: RaftLog, index: int, term: int) -> None:
    write(log, appended(1, 1, 1, 2))
    write(log, cut(index, term))
    view = log.group(1)
    assert (view.first_index, view.last_index, view.term(index)) == (index + 1, index, term)
    write(log, appended(index + 1, 7, 8))
    assert terms(log) == [7, 8]


def test_a_cut_at_the_last_entry_leaves_an_empty_log_that_goes_on(log: RaftLog) -> None:
    write(log, appended(1, 1, 2))
    write(log, cut(2, 2), appended(3, 2))
    assert (log.group(1).first_index, terms(log)) == (3, [2])


def test_a_cut_never_moves_back(log: RaftLog) -> None:
    write(log, appended(1, 1, 1, 1), cut(2, 1))
    write(log, cut(1, 9))
    assert (log.group(1).first_index, terms(log)) == (3, [1])


def test_at_least_one_entry_and_no_more_bytes_than_asked_for(log: RaftLog) -> None:
    for index in range(1, 9):
        write(log, Record(1, None, None, index, [Entry(1, 0, bytes(10))]))
    view = log.group(1)
    assert [len(view.entries(2, 9, most)) for most in (0, 1, 10, 19, 20, 35, 70, 1000)] == [
        1,
        1,
        1,
        1,
        2,
        3,
        7,
        7,
    ]
    assert len(view.entries(2, 4, 1000)) == 2


def test_groups_do_not_see_each_other(log: RaftLog) -> None:
    write(log, appended(1, 1, group=1), appended(1, 2, 2, group=2))
    write(log, appended(2, 1, group=1), cut(1, 2, group=2))
    assert (terms(log, 1), terms(log, 2)) == ([1, 1], [2])


def test_the_cache_holds_the_newest_entries_of_all_groups_within_its_bound(tmp_path: Path) -> None:
    log = opened(tmp_path, cache_bytes=10_000)
    for index in range(1, 31):
        write(
            log,
            *(
                Record(group, None, None, index, [Entry(1, 0, bytes([group, index]) * 100)])
                for group in (1, 2)
            ),
        )
        assert log.stats()["cache_bytes"] <= 10_000
    before = log.stats()["disk_reads"]
    for group in (1, 2):
        assert [entry.data[1] for entry in log.group(group).entries(25, 31, EVERYTHING)] == [*range(25, 31)]
    assert log.stats()["disk_reads"] == before
    for group in (1, 2):
        found = log.group(group).entries(1, 31, EVERYTHING)
        assert [entry.data[:2] for entry in found] == [bytes([group, index]) for index in range(1, 31)]
    assert log.stats()["disk_reads"] > before
    log.close()


def test_the_cache_counts_to_nothing_when_all_is_cut_replaced_or_forgotten(tmp_path: Path) -> None:
    log = opened(tmp_path)
    write(log, *(appended(1, 1, 1, 1, 1, group=group) for group in range(1, 6)))
    write(log, cut(4, 1, group=1), cut(2, 1, group=2), cut(9, 9, group=3), appended(1, 2, group=4))
    write(log, cut(4, 1, group=2), cut(1, 2, group=4), log.forget(5))
    assert log.stats()["cache_bytes"] == 0
    log.close()


def test_an_entry_that_was_damaged_on_the_disk_is_never_given_out(tmp_path: Path) -> None:
    log = opened(tmp_path, cache_bytes=0)
    written = log.write([appended(1, 1)])
    log.installed(written)
    path = tmp_path / "raft" / "00000001.log"
    content = bytearray(path.read_bytes())
    content[written.offset + written.size - 12] ^= 1
    path.write_bytes(content)
    with pytest.raises(Corruption, match=f"00000001.log: offset {written.offset}: "):
        log.group(1).entries(1, 2, EVERYTHING)
    log.close()


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=300)
    for index in range(1, 20):
        write(log, Record(1, HardState(index, 3, index - 1), None, index, entries(index)))
    write(log, cut(4, 4), Record(2, HardState(9, 9, 0), None, 0, []))
    log.close()
    again = opened(tmp_path, segment_bytes=300)
    assert sorted(again.groups) == [1, 2]
    assert (again.group(1).hard_state, again.group(2).hard_state) == ((19, 3, 18), (9, 9, 0))
    assert (again.group(1).first_index, terms(again)) == (5, [*range(5, 20)])
    again.close()


def test_a_vote_lasts_although_its_segment_is_gone(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=300)
    write(log, Record(2, HardState(5, 3, 0), None, 0, []))
    for index in range(1, 20):
        write(log, appended(index, 1))
    write(log, cut(19, 1))
    log.collect()
    write(log)
    assert log.collect() > 0
    assert not (tmp_path / "raft" / "00000001.log").exists()
    log.close()
    again = opened(tmp_path, segment_bytes=300)
    assert again.group(2).hard_state == (5, 3, 0)
    assert (again.group(1).first_index, again.group(1).term(19)) == (20, 1)
    again.close()


def test_what_a_snapshot_replaced_stays_gone_although_the_entry_it_contradicts_is_gone_too(
    tmp_path: Path,
) -> None:
    """A cut at 2 with another term than the log had empties it: after the segment with entry 2 went, only the
    summaries know which term it had."""
    log = opened(tmp_path, segment_bytes=200)
    write(log, appended(1, 1, 1, 1, 1, 1))
    write(log, Record(1, None, None, 6, [Entry(1, 0, bytes(120))]))
    write(log, cut(2, 3), appended(1, 1, group=2))
    assert log.group(1).last_index == 2
    for _ in range(3):
        log.collect()
        write(log, Record(2, HardState(1, 0, 0), None, 0, []))
    assert not (tmp_path / "raft" / "00000001.log").exists()
    log.close()
    again = opened(tmp_path, segment_bytes=200)
    assert (again.group(1).first_index, again.group(1).last_index, again.group(1).term(2)) == (3, 2, 3)
    again.close()


def test_a_forgotten_group_is_gone_for_good_with_its_vote(tmp_path: Path) -> None:
    log = opened(tmp_path)
    write(log, Record(1, HardState(5, 3, 0), None, 1, entries(1, 1)), appended(1, 1, group=2))
    write(log, log.forget(1))
    assert list(log.groups) == [2]
    assert log.group(1).hard_state == (0, 0, 0)
    log.close()
    again = opened(tmp_path)
    assert list(again.groups) == [2]
    again.close()


def test_a_group_begins_anew_while_the_old_one_is_still_being_forgotten(tmp_path: Path) -> None:
    log = opened(tmp_path)
    write(log, appended(1, 1, 1, 1))
    late = log.write([appended(4, 1)])
    gone = log.forget(1)
    new = log.group(1)
    log.installed(late)
    assert (new.last_index, log.group(1)) == (0, new)
    write(log, appended(5, 1), gone, appended(1, 7))
    assert (terms(log), log.group(1) is new) == ([7], True)
    log.close()
    again = opened(tmp_path)
    assert terms(again) == [7]
    again.close()


def test_records_that_do_not_fit_never_reach_the_disk(tmp_path: Path) -> None:
    log = opened(tmp_path)
    write(log, appended(1, 1))
    with pytest.raises(LogFailed, match="entries from 3 on do not fit"):
        log.write([appended(3, 1)])
    with pytest.raises(LogFailed, match="entries from 3 on do not fit"):
        log.write([appended(2, 1)])
    log.close()
    again = opened(tmp_path)
    assert terms(again) == [1]
    again.close()


def test_another_nodes_log_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, node=1).close()
    with pytest.raises(LogRefused, match="written by node 1, this is node 2"):
        opened(tmp_path, node=2)
    opened(tmp_path, node=1).close()


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    path = tmp_path / "raft" / "00000001.log"
    content = path.read_bytes()
    head = content[:8] + (2).to_bytes(4, "little") + content[12:60]
    path.write_bytes(head + codec.masked_crc32c(head).to_bytes(4, "little") + content[64:])
    with pytest.raises(LogRefused, match="version 2, known is 1"):
        opened(tmp_path)


def test_the_loop_reads_while_the_log_thread_writes(tmp_path: Path) -> None:
    """Two real threads, small segments, no cache: what was installed stays readable through all of it."""
    log = opened(tmp_path, cache_bytes=0, segment_bytes=2000)
    todo: SimpleQueue[list[Record] | None] = SimpleQueue()
    done: SimpleQueue[Written] = SimpleQueue()

    def run() -> None:
        while (records := todo.get()) is not None:
            done.put(log.write(records))

    thread = threading.Thread(target=run)
    thread.start()
    waiting = 0

    def take() -> None:
        log.installed(done.get(timeout=30))
        view = log.group(1)
        first, stop = max(view.first_index, view.last_index - 15), view.last_index + 1
        found = [entry.data for entry in view.entries(first, stop, EVERYTHING)]
        assert found == [b"%d" % index for index in range(first, stop)]

    for index in range(1, 400):
        todo.put([Record(1, None, None, index, [Entry(1, 0, b"%d" % index)])])
        waiting += 1
        if index % 20 == 0:
            todo.put([cut(index - 10, 1)])
            waiting += 1
            log.collect()
        while waiting > 5:
            take()
            waiting -= 1
    for _ in range(waiting):
        take()
    assert log.stats()["segments"] < 15
    todo.put(None)
    thread.join()
    assert log.group(1).first_index == 371
    log.close()
    again = opened(tmp_path, segment_bytes=2000)
    assert terms(again) == [1] * 29
    again.close()


def test_nothing_is_written_behind_close(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.close()
    log.close()
    with pytest.raises(LogFailed, match="closed"):
        log.write([])
