"""The forms of keys and values: each can be read back to the same bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvclient.cli import text


@given(st.binary(max_size=50))
def test_json_form_is_read_back(data: bytes) -> None:
    assert text.from_json(json.loads(json.dumps(text.to_json(data)))) == data


@given(st.binary(max_size=50))
def test_plain_form_is_one_cell_and_is_read_back(data: bytes) -> None:
    line = text.to_line(data)
    assert not set(line) & set(b"\t\n\r")
    assert text.from_line(line) == data


@given(st.binary(max_size=50), st.sampled_from(["hex", "base64"]))
def test_encodings_are_read_back(data: bytes, encoding: str) -> None:
    shown = text.encode_shown(data, encoding)
    assert shown is not None
    assert text.decode_argument(shown, encoding) == data


def test_json_form_golden() -> None:
    assert text.to_json("grüße".encode()) == "grüße"
    assert text.to_json(b"\xff\x00") == {"b64": "/wA="}


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (1, "must be a string"),
        (None, "must be a string"),
        ({"b64": "!"}, "invalid base64"),
        ({"b64": "AA==", "x": 1}, "must be a string"),
        ("\ud800", "surrogate"),
    ],
)
def test_json_form_refused(form: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        text.from_json(form)


def test_plain_form_refuses_what_it_never_writes() -> None:
    with pytest.raises(ValueError, match="backslash"):
        text.from_line(b"a\\x")
    with pytest.raises(ValueError, match="backslash"):
        text.from_line(b"a\\")


def test_terminal_form_is_harmless() -> None:
    assert text.to_terminal(b"plain \xc3\xa4") == "plain ä"
    assert text.to_terminal(b"\x1b[2Jx\xff") == "\\x1b[2Jx\\xff"
    assert text.to_terminal("\u202e".encode()) == "\\u202e"


def test_bad_encoding_is_named() -> None:
    with pytest.raises(ValueError, match="'zz' is not hex"):
        text.decode_argument(b"zz", "hex")
