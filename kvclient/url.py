"""`kv://` addresses: where the routers are and how to talk to them.

    kv://host[:port][,host2[:port]]...[/namespace][?timeout=5s&connect_timeout=2s&read=lease&codec=json]

Owns the grammar, the defaults and the units. The namespace is a key prefix, exactly as written after the
first slash and percent-decoded: a separator such as ":" is part of it. IPv6 addresses stand in brackets. What
is not understood is refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from kvclient import protocol
from kvclient.errors import InvalidRequest

if TYPE_CHECKING:
    from kvclient.keys import ClientKeys

PORT_DEFAULT = 7100
URL_DEFAULT = f"kv://127.0.0.1:{PORT_DEFAULT}"
URL_VARIABLE = "RINGKV_URL"
TIMEOUT_DEFAULT = 5.0
CONNECT_TIMEOUT_DEFAULT = 2.0
# A client holds a socket per router; more addresses than this are a mistake in a script.
ENDPOINTS_MAX = 64

OPTIONS = ("timeout", "connect_timeout", "read", "codec")
CODECS = ("bytes", "str", "json", "msgpack")

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")


class Endpoint(NamedTuple):
    """A router's address; `str()` is `host:port`, with brackets around IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Address(NamedTuple):
    """A parsed URL."""

    endpoints: tuple[Endpoint, ...]
    namespace: bytes = b""
    timeout: float = TIMEOUT_DEFAULT
    connect_timeout: float = CONNECT_TIMEOUT_DEFAULT
    read: str = "linearizable"
    codec: str = "bytes"
    keys: ClientKeys | None = None
    """Not part of the URL."""


def default_url(environ: Mapping[str, str] = os.environ) -> str:
    """RINGKV_URL, or the router of a local cluster."""
    return environ.get(URL_VARIABLE) or URL_DEFAULT


def parse(url: str) -> Address:
    """Read a URL; InvalidRequest says which part is wrong."""
    scheme, found, rest = url.partition("://")
    if not found or scheme != "kv":
        raise InvalidRequest(f"{url!r} is no kv:// address", hint=f"write it like {URL_DEFAULT}")
    rest, _, query = rest.partition("?")
    hosts, _, path = rest.partition("/")
    endpoints = tuple(dict.fromkeys(_endpoint(host, url) for host in hosts.split(",")))
    if len(endpoints) > ENDPOINTS_MAX:
        raise InvalidRequest(f"{len(endpoints)} routers in one address, at most {ENDPOINTS_MAX} are allowed")
    address = Address(endpoints, namespace=_decode(path).encode("utf-8", "surrogateescape"))
    return _with_options(address, query)


def _endpoint(text: str, url: str) -> Endpoint:
    if "@" in text:
        raise InvalidRequest(f"user names in {url!r} are not supported")
    if text.startswith("["):
        host, found, port = text[1:].partition("]")
        if not found or ":" not in host or (port and not port.startswith(":")):
            raise InvalidRequest(f"{text!r} in {url!r} is no address; write IPv6 as [::1]:7100")
        port = port[1:] if port else str(PORT_DEFAULT)
    else:
        host, found, port = text.partition(":")
        if ":" in port:
            raise InvalidRequest(
                f"{text!r} in {url!r} has several colons; write IPv6 in brackets: [::1]:7100"
            )
        port = port if found else str(PORT_DEFAULT)
    if not host or re.search(r"[^\w.:%-]", host):
        raise InvalidRequest(f"{text!r} in {url!r} has no usable host name")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise InvalidRequest(f"port {port!r} in {url!r} is not in 1..65535")
    return Endpoint(host, int(port))


def _with_options(address: Address, query: str) -> Address:
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name not in OPTIONS:
            raise InvalidRequest(f"unknown option {name!r} in the address{_suggestion(name, OPTIONS)}")
        if name in options:
            raise InvalidRequest(f"option {name!r} stands twice in the address")
        options[name] = _decode(value)
    if "codec" in options and options["codec"] not in CODECS:
        raise InvalidRequest(f"unknown codec {options['codec']!r}{_suggestion(options['codec'], CODECS)}")
    if "read" in options:
        read_mode(options["read"])
    return address._replace(
        timeout=parse_duration(options.get("timeout", f"{TIMEOUT_DEFAULT}s"), "timeout"),
        connect_timeout=parse_duration(
            options.get("connect_timeout", f"{CONNECT_TIMEOUT_DEFAULT}s"), "connect_timeout"
        ),
        read=options.get("read", address.read),
        codec=options.get("codec", address.codec),
    )


def parse_duration(text: str, name: str) -> float:
    """Seconds of `250ms`, `5s`, `2m`, `1h`, `7d`; a bare number is seconds."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if seconds <= 0:
        raise InvalidRequest(f"{name}={text!r} is no duration above zero; write it like 5s or 250ms")
    return seconds


def read_mode(read: str) -> int:
    """The wire's number for `linearizable`, `lease` or `stale:5s` (answers may be that old)."""
    if read == "linearizable":
        return protocol.LINEARIZABLE
    if read == "lease":
        return protocol.LEASE
    kind, _, age = read.partition(":")
    if kind != "stale" or not age:
        raise InvalidRequest(f"read={read!r} is unknown; use linearizable, lease or stale:5s")
    return min(max(2, int(parse_duration(age, "stale") * 1000)), protocol.TIMEOUT_MS_MAX)


def _decode(text: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote

    return unquote(text, errors="surrogateescape")


def _suggestion(word: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
