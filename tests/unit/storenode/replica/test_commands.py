"""storenode/replica/commands.py: the bytes of docs/raft.md section 2."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvclient.errors import Corruption
from storenode.replica import commands
from storenode.replica.commands import Command
from storenode.replica.proposal import Proposal


def proposal(client_id: int, sequence: int, acked_below: int, flags: int, ops: bytes) -> Proposal:
    return Proposal((b"router", 1), client_id, sequence, acked_below, flags, ops, 1.0)


def test_an_entry_has_these_bytes() -> None:
    """They lie in logs, and other versions read them."""
    data = commands.encode(1000, 7, [proposal(5, 2, 1, 1, b"\x92\x01\xc4\x01k"), proposal(0, 0, 0, 0, b"")])
    assert data.hex(" ") == ("93 cd 03 e8 07 92 95 05 02 01 01 c4 05 92 01 c4 01 6b 95 00 00 00 00 c4 00")


uint = st.integers(0, (1 << 64) - 1)


@given(
    uint, uint, st.lists(st.tuples(uint, uint, uint, st.integers(0, 3), st.binary(max_size=50)), max_size=9)
)
def test_what_is_encoded_comes_back(
    stamp_ms: int, session_ms: int, writes: list[tuple[int, int, int, int, bytes]]
) -> None:
    data = commands.encode(stamp_ms, session_ms, [proposal(*write) for write in writes])
    assert commands.decode(data) == Command(stamp_ms, session_ms, tuple(writes))


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x93\x01",
        msgpack.packb(5),
        msgpack.packb([1, 2]),
        msgpack.packb([1, 2, 3]),
        msgpack.packb([1, 2, [], 4]),
        msgpack.packb([1, 2, [[1, 2, 3, 4]]]),
        msgpack.packb([1, 2, [[1, 2, 3, 4, b"", 6]]]),
        msgpack.packb([1, 2, [[1, 2, 3, 4, "text"]]]),
        msgpack.packb([1, 2, [[1, 2, 3, True, b""]]]),
        msgpack.packb([1, 2, [[1, 2.0, 3, 4, b""]]]),
        msgpack.packb([1, 2, [[None, 2, 3, 4, b""]]]),
        msgpack.packb([1, 2, []]) + b"\x00",
        msgpack.packb(["1", 2, []]),
        msgpack.packb([1, None, []]),
    ],
)
def test_what_no_leader_can_have_made_is_corruption(data: bytes) -> None:
    with pytest.raises(Corruption, match="no command that this software knows"):
        commands.decode(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_command_or_corruption(data: bytes) -> None:
    with contextlib.suppress(Corruption):
        commands.decode(data)
