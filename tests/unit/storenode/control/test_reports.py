"""Reports: golden bytes, round trips, bounds, and every lie refused by name."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient.errors import ProtocolError
from storenode.control.reports import (
    GROUPS_MAX,
    NEVER,
    GroupReport,
    Heading,
    Progress,
    Report,
    decode_heading,
    decode_report,
    encode_report,
)
from storenode.control.state import CONTROL

U64 = (1 << 64) - 1
INCARNATION = "0123456789abcdef" * 2
LEADER = GroupReport(
    5, 2, 9, 1, 70, (1, 2, 3), (1, 2), (4,), 100, 90, 1 << 20, False,
    (Progress(2, 100, 1, 12), Progress(3, 0, 0, NEVER), Progress(4, 60, 2, 7)),
)  # fmt: skip
FOLLOWER = GroupReport(CONTROL, 0, 3, 0, 1, (2,), (), (), 0, 0, 0, True, ())
REPORT = Report(U64, 1, INCARNATION, 7, "0.5.0", 1_700_000_000_000, 3, 1 << 40, (LEADER, FOLLOWER))


def test_golden_bytes() -> None:
    """Pinned: stores of two versions hear each other."""
    assert encode_report(REPORT) == (
        b"\x9a\x01\xcf" + b"\xff" * 8 + b"\x01\xd9\x20" + INCARNATION.encode() + b"\x07\xa50.5.0"
        b"\xcf\x00\x00\x01\x8b\xcf\xe5\x68\x00\x03\xcf\x00\x00\x01\x00\x00\x00\x00\x00\x92"
        b"\x9d\x05\x02\x09\x01\x46\x93\x01\x02\x03\x92\x01\x02\x91\x04\x64\x5a\xce\x00\x10\x00\x00\xc2"
        b"\x93\x94\x02\x64\x01\x0c\x94\x03\x00\x00\xce\xff\xff\xff\xff\x94\x04\x3c\x02\x07"
        b"\x9d\xcd\xff\xff\x00\x03\x00\x01\x91\x02\x90\x90\x00\x00\x00\xc3\x90"
    )


WRONG_HEADINGS = [
    (-1, 1, "", 1),
    (0, 0, "", 1),
    (0, 1, "x", 1),
    (0, 1, "", 0),
    (0, 1, b"", 1),
    ({}, 1, "", 1),
]


def test_the_heading_is_read_without_the_groups() -> None:
    heading = Heading(U64, 1, INCARNATION, 7)
    assert decode_heading(encode_report(REPORT)) == heading
    assert decode_heading(encode_report(REPORT)[:60] + b"\xc1" * 9) == heading


@pytest.mark.parametrize(
    "encoded",
    [
        *(
            b"",
            b"\xc1",
            b"\x9a",
            b"\x01",
            b"\x9a\x02" + encode_report(REPORT)[2:],
            encode_report(REPORT)[:40],
        ),
        *(msgpack.packb([1, *head, "", 0, 0, 0, []]) for head in WRONG_HEADINGS),
    ],
)
def test_what_is_no_heading_is_refused(encoded: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^report: "):
        decode_heading(encoded)


uint64 = st.integers(0, U64)
node_id = st.integers(1, 65534)
members = st.lists(node_id, max_size=5).map(tuple)
groups = st.builds(
    GroupReport,
    st.integers(0, 4095) | st.just(CONTROL),
    st.integers(0, 2),
    uint64,
    st.integers(0, 65534),
    uint64,
    members,
    members,
    members,
    uint64,
    uint64,
    uint64,
    st.booleans(),
    st.lists(st.builds(Progress, node_id, uint64, st.integers(0, 2), st.integers(0, NEVER)), max_size=4).map(
        tuple
    ),
)
reports = st.builds(
    Report,
    uint64,
    node_id,
    st.just("") | st.text("0123456789abcdef", min_size=32, max_size=32),
    st.integers(1, U64),
    st.text("abc0123.-", max_size=20),
    uint64,
    uint64,
    uint64,
    st.lists(groups, max_size=5, unique_by=lambda group: group.partition).map(tuple),
)


@given(reports)
def test_a_report_survives_its_bytes(report: Report) -> None:
    decoded = decode_report(encode_report(report))
    assert decoded == report
    assert all(type(group) is GroupReport for group in decoded.groups)
    assert all(type(row) is Progress for group in decoded.groups for row in group.progress)


def test_who_leads() -> None:
    assert [group.leads for group in decode_report(encode_report(REPORT)).groups] == [True, False]


def test_a_report_of_every_partition() -> None:
    every = tuple(LEADER._replace(partition=number) for number in [*range(GROUPS_MAX - 1), CONTROL])
    report = REPORT._replace(groups=every)
    encoded = encode_report(report)
    assert len(encoded) <= 64 * GROUPS_MAX
    assert decode_report(encoded) == report
    with pytest.raises(ProtocolError, match="4098 groups, at most 4097"):
        decode_report(encode_report(REPORT._replace(groups=(*every, LEADER))))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 2, "format 2 is not understood, this side knows 1"),
        (0, None, "format None"),
        (1, -1, "cluster"),
        (2, 0, "node must be"),
        (2, 65535, "node must be"),
        (3, "12", "incarnation"),
        (3, b"", "incarnation"),
        (4, 0, "epoch"),
        (5, 5, "software"),
        (5, "a\x1b[31m", "software must be printable"),
        (5, "x" * 256, "software"),
        (6, -1, "started_ms"),
        (6, 1.5, "started_ms"),
        (7, True, "sequence"),
        (8, None, "disk_free"),
        (9, None, "its groups must be an array"),
        (9, [None], "each group must be an array"),
        (9, [[1] * 12], "each group must be an array of 13, not 12"),
        (9, [list(LEADER)] * 2, "one partition has two groups"),
    ],
)
def test_lies_of_a_store(position: int, value: Any, message: str) -> None:
    fields = msgpack.unpackb(encode_report(REPORT))
    fields[position] = value
    with pytest.raises(ProtocolError, match=f"report: .*{message}"):
        decode_report(msgpack.packb(fields))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("partition", 4096, "there is no partition 4096"),
        ("partition", -1, "unsigned"),
        ("role", 3, "partition 5: role 3"),
        ("term", "9", "unsigned"),
        ("leader", 65535, "leader 65535"),
        ("config_index", True, "unsigned"),
        ("voters", 3, "members must be arrays of at most 64"),
        ("voters", list(range(1, 66)), "members must be arrays of at most 64"),
        ("voters", [0], "members must be node ids"),
        ("outgoing", [65535], "members must be node ids"),
        ("outgoing", [[]], "members must be unsigned"),
        ("learners", {}, "members must be arrays"),
        ("learners", [-1], "members must be unsigned"),
        ("commit", None, "unsigned"),
        ("durable", 1.0, "unsigned"),
        ("bytes", -1, "unsigned"),
        ("failed", 0, "failed must be true or false"),
        ("progress", None, "progress must be an array"),
        ("progress", [1], "progress of each member must be an array"),
        ("progress", [[1, 2, 3]], "progress of each member must be an array of 4"),
        ("progress", [[1, None, 0, 0]], "progress must be unsigned"),
        ("progress", [[0, 1, 0, 0]], "partition 5: progress"),
        ("progress", [[1, 1, 3, 0]], "partition 5: progress"),
        ("progress", [[1, 1, 0, NEVER + 1]], "partition 5: progress"),
        ("progress", [[1, 1, 0, 0]] * 193, "progress of 193 members"),
    ],
)
def test_lies_about_a_group(field: str, value: Any, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        decode_report(encode_report(REPORT._replace(groups=(LEADER._replace(**{field: value}),))))


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_report(data)


@settings(deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_make_a_report(data: st.DataObject) -> None:
    damaged = bytearray(encode_report(REPORT))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        report = decode_report(bytes(damaged))
    except ProtocolError:
        return
    assert decode_report(encode_report(report)) == report
