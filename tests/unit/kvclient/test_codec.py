"""Codecs: what goes in comes out, and what does not fit says so."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient import codec
from kvclient.errors import CodecError, InvalidRequest, KVError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
msgpack_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=8,
)


def round_trip(name, value):
    chosen = codec.resolve(name)
    data = chosen.encode(value)
    assert type(data) is bytes
    return chosen.decode(data)


@settings(max_examples=50, deadline=None)
@given(st.binary())
def test_bytes(value):
    assert round_trip("bytes", value) == value


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_str(value):
    assert round_trip("str", value) == value


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_json(value):
    assert round_trip("json", value) == value


@settings(max_examples=100, deadline=None)
@given(msgpack_values)
def test_msgpack(value):
    assert round_trip("msgpack", value) == value


def test_buffers_are_copied():
    buffer = bytearray(b"abc")
    data = codec.BYTES.encode(buffer)
    buffer[0] = 0
    assert data == b"abc"


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("bytes", "text", "codec='str'"),
        ("bytes", 5, "not int"),
        ("bytes", None, "NoneType"),
        ("str", b"x", "not bytes"),
    ],
)
def test_wrong_types_are_type_errors_that_say_what_to_do(name, value, part):
    with pytest.raises(TypeError, match=part):
        codec.resolve(name).encode(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("str", "\ud800"),
        ("json", {1, 2}),
        ("json", float("nan")),
        ("msgpack", 1 << 70),
        ("msgpack", object()),
    ],
)
def test_what_cannot_be_written(name, value):
    with pytest.raises(CodecError):
        codec.resolve(name).encode(value)


@pytest.mark.parametrize(
    ("name", "data"),
    [("str", b"\xff"), ("json", b"{"), ("json", b"\xff"), ("msgpack", b"\xc1"), ("msgpack", b"")],
)
def test_what_cannot_be_read(name, data):
    with pytest.raises(CodecError) as caught:
        codec.resolve(name).decode(data)
    assert isinstance(caught.value, KVError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.hint


def test_a_codec_object_is_taken_as_it_is_and_an_unknown_name_is_refused():
    class Upper:
        name = "upper"

        def encode(self, value):
            return value.upper()

        def decode(self, data):
            return data.lower()

    mine = Upper()
    assert codec.resolve(mine) is mine
    with pytest.raises(InvalidRequest, match="known: bytes, str, json, msgpack"):
        codec.resolve("pickle")
