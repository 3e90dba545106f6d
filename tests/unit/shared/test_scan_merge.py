"""Scans of several partitions: the op, the merged page, where it ends and where it goes on."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import InvalidRequest, ProtocolError
from shared import opstream

WHOLE = protocol.encode_scan(b"", None, 1)


@pytest.mark.parametrize(
    "fields", [(b"", None, 1, 0), (b"a", b"b", 10_000, 7), (b"a" * 4096, b"", 77, 1)], ids=str
)
def test_scan_fields(fields: tuple[bytes, bytes | None, int, int]) -> None:
    assert opstream.scan_fields(protocol.encode_scan(*fields)) == fields


@pytest.mark.parametrize("ops", [b"", protocol.encode_get(b"k"), WHOLE * 2, WHOLE + b"\x00", b"\x95\x07"])
def test_scan_fields_of_anything_else(ops: bytes) -> None:
    with pytest.raises(InvalidRequest):
        opstream.scan_fields(ops)


def page(*keys: bytes, resume: bytes | None = None, value: bytes | None = b"v") -> bytes:
    """A partition's SCAN result with these keys; the version is the length of the key."""
    entries = b"".join(msgpack.packb(key) + msgpack.packb(value) + msgpack.packb(len(key)) for key in keys)
    fields: list[Any] = [0, len(keys), entries]
    return msgpack.packb(fields if resume is None else [*fields, resume])  # type: ignore[no-any-return]


def test_scans_merge_in_key_order() -> None:
    merged = opstream.merge_scans([page(b"a", b"d"), page(b"aa", b"b", b"e"), page(), page(b"c")], 10, 0)
    assert merged == page(b"a", b"aa", b"b", b"c", b"d", b"e")
    assert opstream.merge_scans([], 10, 0) == page()
    assert opstream.merge_scans([page()], 10, 0) == page()


def test_scans_merge_in_reverse() -> None:
    merged = opstream.merge_scans([page(b"d", b"a"), page(b"e", b"b", b"aa")], 10, protocol.SCAN_REVERSE)
    assert merged == page(b"e", b"d", b"b", b"aa", b"a")


def test_keys_only_entries_pass_through() -> None:
    merged = opstream.merge_scans(
        [page(b"a", value=None), page(b"b", value=None)], 10, protocol.SCAN_KEYS_ONLY
    )
    assert merged == page(b"a", b"b", value=None)


def test_limit_cuts_the_page_and_resumes_at_the_next_key() -> None:
    parts = [page(b"a", b"c"), page(b"b", b"d")]
    assert opstream.merge_scans(parts, 3, 0) == page(b"a", b"b", b"c", resume=b"d")
    assert opstream.merge_scans(parts, 4, 0) == page(b"a", b"b", b"c", b"d")


def test_limit_cuts_in_reverse_and_resumes_below_the_last_key() -> None:
    parts = [page(b"c", b"a"), page(b"d", b"b")]
    assert opstream.merge_scans(parts, 3, 1) == page(b"d", b"c", b"b", resume=b"b")
    assert opstream.merge_scans(parts, 4, 1) == page(b"d", b"c", b"b", b"a")


def test_page_stops_at_the_smallest_resume_point() -> None:
    parts = [page(b"a", b"m", b"z"), page(b"b", b"c", resume=b"d"), page(b"bb", resume=b"n")]
    assert opstream.merge_scans(parts, 10, 0) == page(b"a", b"b", b"bb", b"c", resume=b"d")
    # The key at the resume point was not looked at by its own partition: it waits for the next page.
    assert opstream.merge_scans([page(b"d"), page(b"b", resume=b"d")], 10, 0) == page(b"b", resume=b"d")
    # The limit may come before the resume point, or just at it.
    assert opstream.merge_scans(parts, 2, 0) == page(b"a", b"b", resume=b"bb")
    assert opstream.merge_scans(parts, 4, 0) == page(b"a", b"b", b"bb", b"c", resume=b"d")


def test_page_stops_at_the_largest_resume_point_in_reverse() -> None:
    parts = [page(b"z", b"m", b"a"), page(b"y", b"x", resume=b"w"), page(b"n", resume=b"n")]
    assert opstream.merge_scans(parts, 10, 1) == page(b"z", b"y", b"x", resume=b"w")
    # A reverse resume point is an exclusive end: the key itself was looked at.
    assert opstream.merge_scans([page(b"w", b"a"), page(b"x", resume=b"w")], 10, 1) == (
        page(b"x", b"w", resume=b"w")
    )


def test_partition_that_only_looked_makes_an_empty_page_with_a_resume_point() -> None:
    assert opstream.merge_scans([page(resume=b"k"), page(b"m")], 10, 0) == page(resume=b"k")


def test_page_is_bounded_in_bytes_but_never_empty() -> None:
    value = b"v" * (protocol.SCAN_PAGE_BYTES_MAX // 2)
    parts = [page(b"a", b"c", value=value), page(b"b", value=value)]
    assert opstream.merge_scans(parts, 10, 0) == page(b"a", resume=b"b", value=value)
    parts = [page(b"c", b"a", value=value), page(b"b", value=value)]
    assert opstream.merge_scans(parts, 10, 1) == page(b"c", resume=b"c", value=value)
    huge = b"v" * (protocol.SCAN_PAGE_BYTES_MAX + 1)
    assert opstream.merge_scans([page(b"a", value=huge), page(b"b")], 10, 0) == (
        page(b"a", resume=b"b", value=huge)
    )


def test_counts_add_up() -> None:
    parts = [msgpack.packb([0, count, b""]) for count in (3, 0, 100_000)]
    assert opstream.merge_scans(parts, 1, protocol.SCAN_COUNT) == msgpack.packb([0, 100_003, b""])
    with pytest.raises(ProtocolError, match="count does not resume"):
        opstream.merge_scans([msgpack.packb([0, 3, b"", b"k"])], 1, protocol.SCAN_COUNT)


def test_an_error_of_one_partition_is_the_error_of_the_scan() -> None:
    busy, gone = msgpack.packb([20, "later", 5]), msgpack.packb([23, "gone"])
    assert opstream.merge_scans([page(b"a"), busy, gone], 10, 0) == busy


@pytest.mark.parametrize(
    "result",
    [
        b"",
        b"\x90",
        b"\x01",
        b"\x91\x00",
        b"\x92\x00\x01",
        page(b"a") + b"\x00",
        page(b"a")[:-1],
        msgpack.packb([0, 0, b"", b"", b""]),
        msgpack.packb([0, -1, b""]),
        msgpack.packb([0, 0, ""]),
        msgpack.packb([0, 0, b"", 7]),
        msgpack.packb([0, 0, b"", b"k" * 4097]),
        msgpack.packb([0, 1, b""]),
        msgpack.packb([0, 0, b"\x00"]),
        msgpack.packb([0, 1, b"\xc4\x01k\xc0"]),
        msgpack.packb([0, 1, b"\xc4\x01k\xc0\xff"]),
        msgpack.packb([0, 1, b"\xc4\x01k\xa0\x01"]),
        msgpack.packb([0, 1, b"\xa1k\xc0\x01"]),
        msgpack.packb([0, 1, b"\xc4\x05k\xc0\x01"]),
        page(b"b", b"a"),
        page(b"a", b"a"),
    ],
    ids=lambda result: result[:20].hex(),
)
def test_malformed_scan_results_are_refused(result: bytes) -> None:
    with pytest.raises(ProtocolError):
        opstream.merge_scans([page(b"x"), result], 10, 0)


def test_only_bytes_are_merged() -> None:
    for wrong in (None, "x", bytearray(b"\x91\x01")):
        with pytest.raises(TypeError):
            opstream.merge_scans([wrong], 1, 0)  # type: ignore[list-item]
