"""kv:// addresses: what they mean, and what is refused by name."""

from __future__ import annotations

import pytest

from kvclient import url
from kvclient.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("kv://host", ["host:7100"]),
        ("kv://host:1,10.0.0.2:65535", ["host:1", "10.0.0.2:65535"]),
        ("kv://[::1],[fe80::1%eth0]:7101", ["[::1]:7100", "[fe80::1%eth0]:7101"]),
        ("kv://a,a:7100,b/", ["a:7100", "b:7100"]),
    ],
)
def test_endpoints(text, endpoints):
    assert [*map(str, url.parse(text).endpoints)] == endpoints


@pytest.mark.parametrize(
    ("text", "namespace"),
    [
        ("kv://h", b""),
        ("kv://h/", b""),
        ("kv://h/app:", b"app:"),
        ("kv://h/a/b?timeout=1s", b"a/b"),
        ("kv://h/%C3%A4%00%ff", b"\xc3\xa4\x00\xff"),
        ("kv://h/ä", "ä".encode()),
    ],
)
def test_the_namespace_is_the_path_as_written(text, namespace):
    assert url.parse(text).namespace == namespace


def test_defaults():
    address = url.parse("kv://h")
    assert (address.timeout, address.connect_timeout, address.read, address.codec) == (
        5.0,
        2.0,
        "linearizable",
        "bytes",
    )


def test_options():
    address = url.parse("kv://h?timeout=250ms&connect_timeout=1.5&read=stale:3s&codec=json")
    assert (address.timeout, address.connect_timeout, address.read, address.codec) == (
        0.25,
        1.5,
        "stale:3s",
        "json",
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("host:7100", "kv://"),
        ("http://host", "kv://"),
        ("kv://", "host name"),
        ("kv://a,,b", "host name"),
        ("kv://a b", "host name"),
        ("kv://h:0", "port '0'"),
        ("kv://h:65536", "port '65536'"),
        ("kv://h:", "port ''"),
        ("kv://h:7\u0661", "port"),
        ("kv://::1", "brackets"),
        ("kv://[::1", "IPv6"),
        ("kv://[::1]x", "IPv6"),
        ("kv://me@h", "user names"),
        ("kv://h?timout=5s", "did you mean 'timeout'"),
        ("kv://h?zzz=1", "known: timeout"),
        ("kv://h?timeout=1s&timeout=2s", "twice"),
        ("kv://h?timeout=0", "timeout='0'"),
        ("kv://h?timeout=soon", "timeout='soon'"),
        ("kv://h?timeout=-1s", "timeout='-1s'"),
        ("kv://h?read=stael:1s", "read='stael:1s'"),
        ("kv://h?codec=jsn", "did you mean 'json'"),
        ("kv://" + ",".join(f"h{i}" for i in range(65)), "65 routers"),
    ],
)
def test_what_is_wrong_is_named(text, part):
    with pytest.raises(InvalidRequest) as caught:
        url.parse(text)
    assert part in str(caught.value) + str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("250ms", 0.25), ("2m", 120), ("1h", 3600), ("7d", 604800), ("3", 3)]
)
def test_durations(text, seconds):
    assert url.parse_duration(text, "x") == seconds


@pytest.mark.parametrize(
    ("text", "number"),
    [("linearizable", 0), ("lease", 1), ("stale:5s", 5000), ("stale:1ms", 2), ("stale:999d", 0xFFFFFFFF)],
)
def test_read_modes(text, number):
    assert url.read_mode(text) == number


@pytest.mark.parametrize("text", ["stale", "stale:", "stale:0", "Linearizable", ""])
def test_bad_read_modes(text):
    with pytest.raises(InvalidRequest):
        url.read_mode(text)


def test_the_default_is_the_environment_then_the_local_router():
    assert url.default_url({}) == "kv://127.0.0.1:7100"
    assert url.default_url({"RINGKV_URL": ""}) == "kv://127.0.0.1:7100"
    assert url.default_url({"RINGKV_URL": "kv://there"}) == "kv://there"
