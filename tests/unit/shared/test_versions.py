"""What another process says that it speaks is checked, and compared with what this one does."""

from __future__ import annotations

import pytest

from kvclient.errors import ProtocolError
from shared.versions import NAMES_MAX, SPOKEN, Versions, decode, mismatch

MINE: Versions = {"messages": (1, 1), "map": (2, 3)}


@pytest.mark.parametrize("theirs", [MINE, {}, {"map": (3, 4)}, {"map": (1, 2)}, {"other": (9, 9)}])
def test_one_version_in_common_is_enough(theirs: Versions) -> None:
    assert mismatch(theirs, MINE) is None


@pytest.mark.parametrize(
    ("theirs", "text"),
    [
        ({"map": (4, 5)}, "map: the other side speaks versions 4 to 5, this side versions 2 to 3"),
        ({"map": (1, 1)}, "map: the other side speaks version 1, this side versions 2 to 3"),
        ({"messages": (2, 3)}, "messages: the other side speaks versions 2 to 3, this side version 1"),
    ],
)
def test_none_in_common_is_refused_with_both_numbers(theirs: Versions, text: str) -> None:
    assert str(mismatch(theirs, MINE)).startswith(text)


def test_what_this_side_says_is_understood() -> None:
    assert decode(dict(SPOKEN)) == SPOKEN


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        7,
        {1: (1, 1)},
        {"map": 3},
        {"map": (1,)},
        {"map": (1, -1)},
        {"map": ("1", 1)},
        {"map": (1, 65536)},
        {str(number): (1, 1) for number in range(NAMES_MAX + 1)},
    ],
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ProtocolError, match="version"):
        decode(value)
