"""LMDB's file as it is read without LMDB: whatever LMDB writes is found sound, and each thing that LMDB would
follow into nowhere is named."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from kvclient.errors import Corruption
from storenode.engine.lmdb_file import LmdbFile

PAGE = 4096
FREE_TREE, MAIN_TREE = 40, 88
"""Where a header's trees are in its page."""

Change = Callable[[bytearray], None]


def written(directory: Path, keys: int, longest: int) -> Iterator[tuple[bytes, list[tuple[bytes, bytes]]]]:
    """A file that LMDB writes in many commits of puts and deletions, and what is in it, after each."""
    dice = random.Random(keys)
    with lmdb.open(str(directory), map_size=256 << 20, sync=False) as env:
        for _ in range(24):
            with env.begin(write=True) as transaction:
                for _ in range(dice.randrange(1, keys)):
                    key = (b"%05d" % dice.randrange(keys)).ljust(dice.randrange(5, longest), b"k")
                    if dice.random() < 0.4:
                        transaction.delete(key)
                    else:
                        transaction.put(key, bytes(dice.choice((0, 9, 130, 130, 2000, 4080, 30_000))))
                if dice.random() < 0.1:
                    for key, _ in list(transaction.cursor())[dice.randrange(keys) :]:
                        transaction.delete(bytes(key))
            with env.begin() as transaction:
                yield (directory / "data.mdb").read_bytes(), list(transaction.cursor())


def test_whatever_lmdb_writes_is_sound_and_read_as_lmdb_reads_it(tmp_path: Path) -> None:
    depths, big_values, cut_short = set(), 0, 0
    for keys, longest in ((2, 20), (6, 511), (60, 20), (400, 20), (1000, 511)):
        for content, records in written(tmp_path / str(keys), keys, longest):
            file = LmdbFile("data.mdb", content)
            file.check()
            assert list(file.records()) == records
            depths.add(file.header.main.depth)
            big_values += file.header.main.overflow_pages
            cut_short += file.header.last_page >= file.pages
    assert depths == {0, 1, 2, 3, 4}
    assert big_values
    assert cut_short


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two leaves below a branch, one large value, and free pages."""
    directory = tmp_path_factory.mktemp("sound")
    with lmdb.open(str(directory)) as env:
        for turn in range(4):
            with env.begin(write=True) as transaction:
                for number in range(20):
                    transaction.put(b"key-%02d" % number, b"%d" % turn * 200)
                transaction.put(b"large", bytes(9000))
    return (directory / "data.mdb").read_bytes()


class Parts:
    """Where things are in a file."""

    def __init__(self, content: bytes) -> None:
        file = LmdbFile("data.mdb", content)
        self.newer = file.header.transaction % 2
        self.root = file.header.main.root
        children = [child for _, child in self.nodes(content, self.root)]
        self.first, self.second = children
        (node, _) = self.nodes(content, self.second)[-1]
        self.large = node  # offset in the file of the node of the large value
        (self.overflow,) = struct.unpack_from("<Q", content, node + 8 + 5)
        (self.free_node, _) = self.nodes(content, file.header.free.root)[-1]
        self.free = self.free_node + 16  # the list: how many, then the pages

    @staticmethod
    def nodes(content: bytes | bytearray, page: int) -> list[tuple[int, int]]:
        """Offset in the file, and what would be the child, of each node."""
        lower = struct.unpack_from("<H", content, page * PAGE + 12)[0]
        offsets = struct.unpack_from(f"<{(lower - 16) // 2}H", content, page * PAGE + 16)
        at = [page * PAGE + offset for offset in offsets]
        return [(one, int.from_bytes(content[one : one + 6], "little")) for one in at]


def number(content: bytearray, at: int, size: int, value: int) -> None:
    content[at : at + size] = value.to_bytes(size, "little")


def header(offset: int, size: int, value: int) -> Callable[[bytearray, Parts], None]:
    return lambda content, parts: number(content, parts.newer * PAGE + offset, size, value)


def leaf(offset: int, size: int, value: int) -> Callable[[bytearray, Parts], None]:
    return lambda content, parts: number(content, parts.first * PAGE + offset, size, value)


def node(offset: int, size: int, value: int) -> Callable[[bytearray, Parts], None]:
    return lambda content, parts: number(
        content, parts.nodes(content, parts.first)[3][0] + offset, size, value
    )


def free(slot: int, value: Callable[[Parts, bytearray], int]) -> Callable[[bytearray, Parts], None]:
    return lambda content, parts: number(content, parts.free + 8 * slot, 8, value(parts, content))


def child(value: Callable[[Parts], int]) -> Callable[[bytearray, Parts], None]:
    return lambda content, parts: number(content, parts.nodes(content, parts.root)[1][0], 6, value(parts))


def swap_keys(content: bytearray, parts: Parts) -> None:
    (first, _), (second, _) = parts.nodes(content, parts.first)[3:5]
    for at in range(8, 14):
        content[first + at], content[second + at] = content[second + at], content[first + at]


def cut(content: bytearray, parts: Parts) -> None:
    del content[LmdbFile("", bytes(content)).header.last_page * PAGE + 100 :]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (header(10, 2, 0), "no header of LMDB"),
        (header(16, 4, 1), "no header of LMDB"),
        (header(20, 4, 2), "version 2 of LMDB's format"),
        (header(FREE_TREE, 4, 8192), r"pages of (8192 bytes|4096 bytes, page 0)|no header"),
        (header(FREE_TREE, 4, 0), "pages of 0 bytes"),
        (header(FREE_TREE + 4, 2, 0), "a tree has flags"),
        (header(MAIN_TREE + 4, 2, 4), "a tree has flags"),
        (header(MAIN_TREE + 6, 2, 0), "depth 0"),
        (header(MAIN_TREE + 6, 2, 1), "flags 0x1 at depth 1 of 1"),
        (header(MAIN_TREE + 6, 2, 3), "flags 0x2 at depth 2 of 3"),
        (header(MAIN_TREE + 6, 2, 33), "depth 33"),
        (header(MAIN_TREE + 16, 8, 9), "the header says"),
        (header(MAIN_TREE + 40, 8, 1 << 40), "behind the last one"),
        (header(MAIN_TREE + 40, 8, 1), "in use twice"),
        (header(MAIN_TREE + 40, 8, (1 << 64) - 1), "without a root"),
        (header(136, 8, 1 << 50), "is the last"),
        (header(144, 8, (1 << 64) - 2), "cannot have written it"),
        (header(144, 8, (1 << 64) - 1), "cannot have written it"),
        (header(144, 8, 101), "cannot have written it"),
        (header(136, 8, 1000), "is missing, and not free"),
        (header(136, 8, 3), "behind the last one"),
        (cut, "behind the last one|is missing"),
        (leaf(0, 8, 77), "says that it is page 77"),
        (leaf(10, 2, 0x42), "flags 0x42"),
        (leaf(10, 2, 0x12), "flags 0x12"),
        (leaf(12, 2, 16), "bounds"),
        (leaf(12, 2, 17), "bounds"),
        (leaf(12, 2, 0xFFFE), "bounds"),
        (leaf(14, 2, 20), "bounds"),
        (leaf(14, 2, 4098), "bounds"),
        (leaf(16, 2, 4090), "a node ends behind"),
        (leaf(16, 2, 1000), "malformed node|a node begins at|out of order"),
        (node(0, 2, 198), "a node begins at|nodes end"),
        (node(0, 2, 0x7FFF), "malformed node"),
        (node(2, 2, 1), "malformed node"),
        (node(4, 2, 2), "malformed node"),
        (node(6, 2, 0), "malformed node"),
        (node(6, 2, 600), "malformed node"),
        (swap_keys, "out of order"),
        (child(lambda parts: parts.first), "in use twice"),
        (child(lambda parts: 1 << 47), "behind the last one"),
        (child(lambda parts: parts.overflow), "flags 0x4 at depth 2"),
        (lambda content, parts: number(content, parts.large + 2, 2, 0xFFFF), "no overflow page of a value"),
        (lambda content, parts: number(content, parts.large + 13, 8, parts.root), "in use twice"),
        (lambda content, parts: number(content, parts.large + 13, 8, 0), "in use twice"),
        (lambda content, parts: number(content, parts.overflow * PAGE + 12, 4, 2), "no overflow page"),
        (lambda content, parts: number(content, parts.overflow * PAGE + 12, 4, 1 << 31), "no overflow page"),
        (free(0, lambda parts, content: 500), "free list: malformed record"),
        (free(0, lambda parts, content: (1 << 64) - 1), "free list: malformed record"),
        (free(1, lambda parts, content: parts.root), "out of order or in use"),
        (free(1, lambda parts, content: 1 << 40), "out of order or in use"),
        (free(1, lambda parts, content: 1), "out of order or in use"),
        (
            free(
                2, lambda parts, content: int.from_bytes(content[parts.free + 8 : parts.free + 16], "little")
            ),
            "out of order or in use",
        ),
        (lambda content, parts: number(content, parts.free_node + 8, 8, 1 << 40), "malformed record"),
        (lambda content, parts: number(content, parts.free_node + 8, 8, 0), "malformed record|out of order"),
    ],
)
def test_what_lmdb_would_follow_is_named(
    sound: bytes, change: Callable[[bytearray, Parts], None], said: str
) -> None:
    content = bytearray(sound)
    LmdbFile("data.mdb", bytes(content)).check()
    change(content, Parts(sound))
    assert bytes(content) != sound
    with pytest.raises(Corruption, match=rf"^data\.mdb: page \d+: .*({said}).* \(offset \d+\)$"):
        LmdbFile("data.mdb", bytes(content)).check()


def test_keys_on_the_wrong_side_of_a_separator_are_found(sound: bytes) -> None:
    content, parts = bytearray(sound), Parts(sound)
    separator = parts.nodes(content, parts.root)[1][0] + 8
    content[separator : separator + 6] = b"key-19"
    with pytest.raises(Corruption, match="out of order"):
        LmdbFile("data.mdb", bytes(content)).check()
    content[separator : separator + 6] = b"key-00"
    with pytest.raises(Corruption, match="a key before child 1 is not below"):
        LmdbFile("data.mdb", bytes(content)).check()


def test_records_in_front_of_the_damage_are_read(sound: bytes) -> None:
    content, parts = bytearray(sound), Parts(sound)
    content[parts.second * PAGE : (parts.second + 1) * PAGE] = bytes(PAGE)
    records = LmdbFile("data.mdb", bytes(content)).records()
    for position in range(len(parts.nodes(sound, parts.first))):
        assert next(records)[0] == b"key-%02d" % position
    with pytest.raises(Corruption, match=f"page {parts.second}: "):
        next(records)


def test_free_pages_at_the_end_may_be_missing(sound: bytes) -> None:
    """LMDB never writes a page that the same transaction gives back."""
    content, parts = bytearray(sound), Parts(sound)
    last = LmdbFile("data.mdb", sound).header.last_page
    del content[(last + 1) * PAGE :]
    number(content, parts.newer * PAGE + 136, 8, last + 1)
    with pytest.raises(Corruption, match=f"page {last + 1}: is missing, and not free"):
        LmdbFile("data.mdb", bytes(content)).check()
    number(content, parts.free + 8, 8, last + 1)  # takes the place of another free page
    LmdbFile("data.mdb", bytes(content)).check()
