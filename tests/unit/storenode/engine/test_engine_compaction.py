"""Versions and compaction policy: pure functions over made-up tables."""

from __future__ import annotations

import random

import pytest

from storenode.engine.compaction import EVERYTHING, propose, propose_range, scores, targets
from storenode.engine.options import LEVELS, MIB, Options
from storenode.engine.version import TableMeta, Version

OPTIONS = Options()
LAST = LEVELS - 1


def table(
    number: int,
    level: int,
    smallest: str,
    largest: str,
    size: int = MIB,
    *,
    deletions: int = 0,
    sequence: int | None = None,
) -> TableMeta:
    newest = number if sequence is None else sequence
    return TableMeta(
        number,
        level,
        number,
        size,
        100,
        deletions,
        0,
        1,
        newest,
        0,
        0,
        0,
        smallest.encode(),
        largest.encode(),
    )


def test_level_0_is_newest_first_and_the_others_are_in_key_order() -> None:
    version = Version.of(
        [
            table(1, 0, "a", "z"),
            table(3, 0, "a", "z"),
            table(2, 0, "a", "z"),
            table(5, 3, "m", "n"),
            table(4, 3, "x", "y"),
        ]
    )
    assert [one.number for one in version.levels[0]] == [3, 2, 1]
    assert [one.number for one in version.levels[3]] == [5, 4]


def test_overlap_in_a_level_is_refused() -> None:
    Version.of([table(1, 0, "a", "m"), table(2, 0, "m", "z")])
    with pytest.raises(ValueError, match="1 and 2 overlap in level 2"):
        Version.of([table(1, 2, "a", "m"), table(2, 2, "m", "z")])


def test_a_change_takes_out_and_puts_in_and_leaves_the_old_version_alone() -> None:
    before = Version.of([table(1, 0, "a", "b"), table(2, 1, "c", "d")])
    after = before.change([table(2, 4, "c", "d"), table(3, 1, "a", "b")], {1, 2})
    assert [[one.number for one in level] for level in after.levels] == [[], [3], [], [], [2], [], []]
    assert [[one.number for one in level] for level in before.levels][:2] == [[1], [2]]


def test_a_small_engine_has_level_0_and_the_last_one() -> None:
    assert targets(Version(), OPTIONS).base_level == LAST
    assert targets(Version.of([table(1, LAST, "a", "b", 64 * MIB)]), OPTIONS).base_level == LAST


def test_the_base_level_moves_up_as_the_last_level_grows() -> None:
    for size, base in [
        (65 * MIB, 5),
        (640 * MIB, 5),
        (641 * MIB, 4),
        (6400 * MIB, 4),
        (6500 * MIB, 3),
        (65000 * MIB, 2),
    ]:
        limits = targets(Version.of([table(1, LAST, "a", "b", size)]), OPTIONS)
        assert limits.base_level == base, size
        assert all(limits.bytes_max[level] >= OPTIONS.base_bytes for level in range(base, LEVELS))
        assert limits.bytes_max[LAST] >= size * 9 // 10


def test_data_above_the_base_level_is_not_forgotten() -> None:
    version = Version.of([table(1, 2, "a", "b", 10 * MIB), table(2, LAST, "a", "b", 20 * MIB)])
    assert targets(version, OPTIONS).base_level == 2


def test_nothing_is_proposed_below_the_trigger() -> None:
    assert propose(Version(), OPTIONS) is None
    assert propose(Version.of([table(n, 0, "a", "z") for n in range(1, 4)]), OPTIONS) is None


def test_level_0_goes_to_the_base_level_with_all_that_overlaps() -> None:
    lower = [table(10, LAST, "a", "c"), table(11, LAST, "d", "f"), table(12, LAST, "x", "z")]
    version = Version.of([*(table(n, 0, "b", "e") for n in range(1, 5)), *lower])
    proposal = propose(version, OPTIONS)
    assert proposal is not None
    assert not proposal.move
    assert (proposal.level, proposal.output_level) == (0, LAST)
    assert [one.number for one in proposal.upper] == [4, 3, 2, 1]
    assert [one.number for one in proposal.lower] == [10, 11]


def test_sequential_tables_of_level_0_are_moved_oldest_first() -> None:
    version = Version.of([table(n, 0, f"{n}a", f"{n}b") for n in range(1, 5)])
    proposal = propose(version, OPTIONS)
    assert proposal is not None
    assert proposal.move
    assert [one.number for one in proposal.upper] == [1]


def test_an_older_table_of_level_0_is_never_passed_by_a_newer_one() -> None:
    version = Version.of([table(1, 0, "a", "z"), *(table(n, 0, f"b{n}a", f"b{n}b") for n in range(2, 5))])
    proposal = propose(version, OPTIONS)
    assert proposal is not None
    assert not proposal.move
    assert len(proposal.upper) == 4


@pytest.mark.parametrize("with_lower", [True, False])
def test_a_table_with_deletions_is_moved_only_where_something_is_left_to_delete(with_lower: bool) -> None:
    level5 = [table(1, 5, "a", "b", 65 * MIB, deletions=1)]
    bottom = [table(2, LAST, "m", "n", 600 * MIB)]
    if with_lower:
        bottom.append(table(3, LAST, "a", "b"))
    proposal = propose(Version.of([*level5, *bottom]), OPTIONS)
    assert proposal is not None
    assert not proposal.move


def test_below_level_0_the_table_with_the_least_overlap_per_byte_is_taken() -> None:
    version = Version.of(
        [
            table(1, 5, "a", "c", 40 * MIB),
            table(2, 5, "d", "f", 20 * MIB),
            table(3, 5, "g", "i", 30 * MIB),
            table(11, LAST, "a", "c", 200 * MIB),
            table(12, LAST, "d", "f", 90 * MIB),
            table(13, LAST, "g", "i", 300 * MIB),
        ]
    )
    proposal = propose(version, OPTIONS)
    assert proposal is not None
    assert [one.number for one in proposal.upper] == [2]
    assert [one.number for one in proposal.lower] == [12]


def test_a_table_without_overlap_is_moved_unless_that_only_puts_off_a_large_merge() -> None:
    tables = [table(1, 4, "a", "b", 70 * MIB), table(2, LAST, "x", "z", 700 * MIB)]
    proposal = propose(Version.of(tables), OPTIONS)
    assert proposal is not None
    assert proposal.move
    heavy = propose(Version.of([*tables, table(3, LAST, "a", "b", 701 * MIB)]), OPTIONS)
    assert heavy is not None
    assert not heavy.move


def test_everything_ends_in_the_last_level_and_then_nothing_is_left_to_do() -> None:
    tables = [table(1, 0, "a", "z"), table(2, 3, "a", "z"), table(3, LAST, "a", "z")]
    proposal = propose_range(Version.of(tables), EVERYTHING)
    assert proposal is not None
    assert {one.number for one in (*proposal.upper, *proposal.lower)} == {1, 2, 3}
    assert propose_range(Version.of([table(3, LAST, "a", "z")]), EVERYTHING) is None
    assert propose_range(Version.of([table(3, LAST, "a", "z", deletions=1)]), EVERYTHING) is not None


def test_compacting_any_tree_comes_to_rest_within_its_targets() -> None:
    """Carry out proposals on made-up trees (merging sizes only): it ends, and every level is within
    bounds."""
    source = random.Random(7)
    for _ in range(30):
        version, number = Version(), 1
        for _ in range(source.randrange(1, 60)):
            low = source.randrange(900)
            version = version.change(
                [
                    table(
                        number,
                        0,
                        f"{low:04d}",
                        f"{low + source.randrange(100):04d}",
                        16 * MIB,
                        sequence=number,
                    )
                ],
                set(),
            )
            number += 1
            for _ in range(1000):
                proposal = propose(version, OPTIONS)
                if proposal is None:
                    break
                inputs = (*proposal.upper, *proposal.lower)
                if proposal.move:
                    added = [proposal.upper[0]._replace(level=proposal.output_level)]
                else:
                    smallest = min(one.smallest for one in inputs).decode()
                    largest = max(one.largest for one in inputs).decode()
                    size = sum(one.size for one in inputs)
                    added = [table(number, proposal.output_level, smallest, largest, size)]
                    number += 1
                version = version.change(added, {one.number for one in inputs})
            else:
                raise AssertionError("compaction does not come to rest")
            assert max(scores(version, OPTIONS)) < 1


def test_options_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="memtable_bytes must be at least 1"):
        Options(memtable_bytes=0)
    with pytest.raises(ValueError, match="level0_trigger"):
        Options(level0_trigger=13)
    with pytest.raises(ValueError, match="level_ratio"):
        Options(level_ratio=1)
