"""LMDB's file read without LMDB, every page of it checked first.

LMDB follows page numbers, offsets and sizes in a mapped file without a doubt, so damage to them ends the
process that reads it. Here the same walk is done on bytes: what passes `LmdbFile.check` leads LMDB nowhere
outside of the file or of a page, to no page twice, and into none of its assertions. It knows nothing of what
the records mean, and reads only what the manifest needs: one tree without duplicates, beside the list of
free pages.

Layout: LMDB 0.9 (data version 1) as 64-bit little-endian machines write it; offsets in bytes.

    page      number:u64 pad:u16 flags:u16 lower:u16 upper:u16 node_offset:u16[(lower - 16) / 2]
    overflow  number:u64 pad:u16 flags:u16 pages:u32, then the value, over so many pages in a row
    header    page 0 or 1; at 16: magic:u32 version:u32 address:u64 map_bytes:u64 free:tree main:tree
              last_page:u64 transaction:u64
    tree      pad:u32 flags:u16 depth:u16 branch_pages:u64 leaf_pages:u64 overflow_pages:u64 entries:u64
              root:u64
    node      low:u16 high:u16 flags:u16 key_size:u16 key. In a leaf the value follows, low | high << 16
              bytes, or the page where it begins. In a branch low, high and flags are the child's page.

The nodes of a page lie side by side from `upper` to its end. The pad of a header's first tree is the size of
a page. Of the two headers the one of the higher transaction counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kvclient.errors import Corruption

MAGIC = 0xBEEFC0DE
VERSION = 1
HEADER_PAGES = 2
PAGE_BYTES = frozenset({512, 1024, 2048, 4096, 8192, 16384, 32768})
PAGE_HEAD_BYTES = 16
NODE_HEAD_BYTES = 8
KEY_BYTES_MAX = 511
DEPTH_MAX = 32
"""LMDB's cursors have room for so many pages."""

BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
"""Flags of pages: exactly one of them in a file like ours."""

BIG_VALUE = 1
INTEGER_KEY = 8
NO_ROOT = (1 << 64) - 1
TRANSACTION_MAX = 1 << 62
"""Far from where it would begin anew at 0, and the other header, which nobody looked at, would count."""

_PAGE = struct.Struct("<QHHHH")
_PAGE_COUNT = struct.Struct("<I")
_TREE = "IHHQQQQQ"
_HEADER = struct.Struct(f"<IIQQ{_TREE}{_TREE}QQ")
_NODE = struct.Struct("<HHHH")
_NUMBER = struct.Struct("<Q")

Pair = tuple[bytes, bytes]


class Tree(NamedTuple):
    """What a header says of a tree."""

    page_bytes: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class Header(NamedTuple):
    """The first two pages; the newer one counts."""

    free: Tree
    main: Tree
    last_page: int
    transaction: int


class LmdbFile:
    """A file's content. Corruption, from any method, names page and damage."""

    def __init__(self, path: str, content: bytes) -> None:
        self._path = path
        self._content = content
        self.page_bytes = 0
        first = self._header(0)
        self.page_bytes = first.free.page_bytes
        second = self._header(1)
        if second.free.page_bytes != self.page_bytes:
            raise self._damage(1, f"pages of {second.free.page_bytes} bytes, page 0 says {self.page_bytes}")
        self.newer = number = int(second.transaction > first.transaction)
        self.header = (first, second)[number]
        transaction = self.header.transaction
        if transaction > TRANSACTION_MAX or transaction % HEADER_PAGES != number:
            raise self._damage(number, f"transaction {transaction} cannot have written it")
        self.pages = len(content) // self.page_bytes
        """Whole ones. LMDB does not write pages that one transaction takes and gives back, so the last ones
        may be missing; but then all of those are in the list of free pages, which is in the file."""
        if not 1 <= self.header.last_page < self.pages + len(content) // 8:
            raise self._damage(number, f"says that page {self.header.last_page} is the last")
        for tree, flags in ((self.header.free, INTEGER_KEY), (self.header.main, 0)):
            if tree.flags != flags:
                raise self._damage(number, f"a tree has flags {tree.flags:#x}")

    def records(self) -> Iterator[Pair]:
        """Every record of the main tree, in order, each when its page and those above it were found sound."""
        walk = _Walk(self, self.header.main, self._fresh())
        for pairs in walk.leaves():
            yield from pairs

    def check(self) -> None:
        """Walk both trees."""
        reached = self._fresh()
        for _ in _Walk(self, self.header.main, reached).leaves():
            pass
        free: list[Pair] = []
        for pairs in _Walk(self, self.header.free, reached).leaves():
            free += pairs
        for key, value in free:  # behind both trees, whose pages are all known now
            self._check_free(key, value, reached)
        missing = reached.find(0, self.pages)
        if missing >= 0:
            raise self._damage(missing, "is missing, and not free")

    def _fresh(self) -> bytearray:
        """For each page whether something leads to it."""
        return bytearray(b"\1" * HEADER_PAGES).ljust(self.header.last_page + 1, b"\0")

    def _header(self, number: int) -> Header:
        at = number * self.page_bytes
        if len(self._content) < at + PAGE_HEAD_BYTES + _HEADER.size:
            raise self._damage(number, "the file ends in it")
        flags = _PAGE.unpack_from(self._content, at)[2]
        magic, version, _, _, *rest = _HEADER.unpack_from(self._content, at + PAGE_HEAD_BYTES)
        if flags != META or magic != MAGIC:
            raise self._damage(number, "no header of LMDB")
        if version != VERSION:
            raise self._damage(number, f"version {version} of LMDB's format")
        header = Header(Tree(*rest[:8]), Tree(*rest[8:16]), *rest[16:])
        if header.free.page_bytes not in PAGE_BYTES:
            raise self._damage(number, f"pages of {header.free.page_bytes} bytes")
        return header

    def _check_free(self, key: bytes, value: bytes, reached: bytearray) -> None:
        """A record of the free list: a transaction, and the pages that it freed, the highest first."""
        transaction = int.from_bytes(key, "little")
        count = int.from_bytes(value[:8], "little")
        if not 0 < transaction <= self.header.transaction or len(value) % 8 or len(value) < 8 * (1 + count):
            raise self._damage(self.header.free.root, f"free list: malformed record {key.hex()}")
        before = len(reached)
        for page in struct.unpack_from(f"<{count}Q", value, 8):
            if page >= before or reached[page]:
                what = f"free list: record {transaction} has page {page} out of order or in use"
                raise self._damage(self.header.free.root, what)
            reached[page] = 1
            before = page

    def _damage(self, page: int, what: str) -> Corruption:
        return Corruption(f"{self._path}: page {page}: {what} (offset {page * self.page_bytes})")


class _Walk:
    """One tree from left to right."""

    def __init__(self, file: LmdbFile, tree: Tree, reached: bytearray) -> None:
        self._content = file._content
        self._page_bytes = file.page_bytes
        self._pages = min(file.pages, file.header.last_page + 1)
        self._damage = file._damage
        self._header = file.newer
        self._tree = tree
        self._reached = reached
        self._integer_key = tree.flags == INTEGER_KEY
        self._last: bytes | None = None
        """In the order of `_ordered`: the key before, which the next must be above."""
        self._least = b""
        """What the next key must not be below."""
        self._found = [0, 0, 0, 0]

    def leaves(self) -> Iterator[list[Pair]]:
        """The records of each leaf."""
        tree = self._tree
        if tree.root != NO_ROOT:
            if not 0 < tree.depth <= DEPTH_MAX:
                raise self._damage(tree.root, f"the root of a tree of depth {tree.depth}")
            yield from self._below(tree.root, 1)
        elif tree.depth:
            raise self._damage(self._header, f"a tree of depth {tree.depth} without a root")
        told = [tree.branch_pages, tree.leaf_pages, tree.overflow_pages, tree.entries]
        if self._found != told:
            what = f"a tree has {self._found} pages and entries, the header says {told}"
            raise self._damage(self._header, what)

    def _below(self, number: int, depth: int) -> Iterator[list[Pair]]:
        kind = self._reach(number)
        leaf = depth == self._tree.depth
        if kind != (LEAF if leaf else BRANCH):
            raise self._damage(number, f"a page of flags {kind:#x} at depth {depth} of {self._tree.depth}")
        if leaf:
            yield self._leaf(number)
            return
        self._found[0] += 1
        for position, (key, child) in enumerate(self._children(number)):
            if position:
                separator = self._ordered(number, key)
                if self._last is not None and separator <= self._last:
                    raise self._damage(number, f"a key before child {position} is not below {key.hex()}")
                self._least = separator
            yield from self._below(child, depth + 1)

    def _reach(self, number: int) -> int:
        """Count a page as reached; its flags."""
        if number >= self._pages:
            raise self._damage(number, "a page behind the last one is in use")
        if self._reached[number]:
            raise self._damage(number, "a page is in use twice")
        self._reached[number] = 1
        stored, _, flags, _, _ = _PAGE.unpack_from(self._content, number * self._page_bytes)
        if stored != number:
            raise self._damage(number, f"says that it is page {stored}")
        return int(flags)

    def _offsets(self, number: int) -> tuple[int, tuple[int, ...]]:
        """Where the nodes of a page begin, at the earliest and each."""
        at = number * self._page_bytes
        _, _, _, lower, upper = _PAGE.unpack_from(self._content, at)
        if (lower | upper) & 1 or not PAGE_HEAD_BYTES < lower <= upper <= self._page_bytes:
            raise self._damage(number, f"bounds {lower} and {upper}")
        offsets = struct.unpack_from(
            f"<{(lower - PAGE_HEAD_BYTES) // 2}H", self._content, at + PAGE_HEAD_BYTES
        )
        if max(offsets) > self._page_bytes - NODE_HEAD_BYTES:
            raise self._damage(number, "a node ends behind the page")
        return upper, offsets

    def _check_room(self, number: int, upper: int, taken: list[tuple[int, int]]) -> None:
        """Nodes lie side by side, from `upper` to the page's end: LMDB moves them on that assumption."""
        taken.sort()
        for begin, end in taken:
            if begin != upper:
                raise self._damage(number, f"a node begins at {begin}, not at {upper}")
            upper = end
        if upper != self._page_bytes:
            raise self._damage(number, f"nodes end at {upper}")

    def _leaf(self, number: int) -> list[Pair]:
        content, at = self._content, number * self._page_bytes
        upper, offsets = self._offsets(number)
        taken: list[tuple[int, int]] = []
        pairs: list[Pair] = []
        for offset in offsets:
            low, high, flags, key_size = _NODE.unpack_from(content, at + offset)
            size = low | high << 16
            key_at = offset + NODE_HEAD_BYTES
            value_at = key_at + key_size
            end = value_at + (8 if flags else size)
            taken.append((offset, end + (end & 1)))
            if flags not in (0, BIG_VALUE) or not 0 < key_size <= KEY_BYTES_MAX or end > self._page_bytes:
                raise self._damage(number, f"a malformed node at {offset}")
            key = content[at + key_at : at + value_at]
            ordered = self._ordered(number, key) if self._integer_key else key
            if ordered < self._least or (self._last is not None and ordered <= self._last):
                raise self._damage(number, f"key {key.hex()} is out of order")
            self._last = ordered
            if flags:
                (first,) = _NUMBER.unpack_from(content, at + value_at)
                pairs.append((key, self._big_value(first, size)))
            else:
                pairs.append((key, content[at + value_at : at + end]))
        self._check_room(number, upper, taken)
        self._found[1] += 1
        self._found[3] += len(pairs)
        return pairs

    def _children(self, number: int) -> list[tuple[bytes, int]]:
        """Key and page of each child. The first one's key means nothing, and is mostly empty."""
        content, at = self._content, number * self._page_bytes
        upper, offsets = self._offsets(number)
        if len(offsets) < 2 and not self._integer_key:  # an assertion, but not for the list of free pages
            raise self._damage(number, "a branch with one child")
        taken: list[tuple[int, int]] = []
        children: list[tuple[bytes, int]] = []
        for offset in offsets:
            low, high, top, key_size = _NODE.unpack_from(content, at + offset)
            key_at = offset + NODE_HEAD_BYTES
            end = key_at + key_size
            taken.append((offset, end + (end & 1)))
            if key_size > KEY_BYTES_MAX or end > self._page_bytes:
                raise self._damage(number, f"a malformed node at {offset}")
            children.append((content[at + key_at : at + end], low | high << 16 | top << 32))
        self._check_room(number, upper, taken)
        return children

    def _big_value(self, first: int, size: int) -> bytes:
        flags = self._reach(first)
        at = first * self._page_bytes
        (pages,) = _PAGE_COUNT.unpack_from(self._content, at + 12)
        needed = (PAGE_HEAD_BYTES - 1 + size) // self._page_bytes + 1
        if flags != OVERFLOW or not needed <= pages <= self._pages - first:
            raise self._damage(first, f"no overflow page of a value of {size} bytes")
        for number in range(first + 1, first + pages):
            if self._reached[number]:
                raise self._damage(number, "a page is in use twice")
            self._reached[number] = 1
        self._found[2] += pages
        return self._content[at + PAGE_HEAD_BYTES : at + PAGE_HEAD_BYTES + size]

    def _ordered(self, number: int, key: bytes) -> bytes:
        """A key as bytes that are in the tree's order."""
        if not self._integer_key:
            return key
        if len(key) != 8:
            raise self._damage(number, f"a transaction's number of {len(key)} bytes")
        return key[::-1]
