"""Names that stand for several routers."""

from __future__ import annotations

import socket
import threading

import pytest

from kvclient import names
from kvclient.names import spread
from kvclient.url import ENDPOINTS_MAX, Endpoint

NAME = Endpoint("routers.example", 7100)


@pytest.fixture
def known(monkeypatch):
    """What the resolver knows: host to addresses."""
    table = {}

    def look_up(host, port, family, kind):
        assert (family, kind) == (socket.AF_INET, socket.SOCK_STREAM)
        if host not in table:
            raise socket.gaierror("unknown")
        return [(family, kind, 6, "", (address, port)) for address in table[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


def test_a_name_is_itself_and_its_further_addresses(known):
    known[NAME.host] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert spread([NAME]) == [NAME, Endpoint("10.0.0.2", 7100), Endpoint("10.0.0.3", 7100)]


def test_addresses_and_names_with_one_address_stay_what_they_are(known, monkeypatch):
    known[NAME.host] = ["10.0.0.1"]
    endpoints = [NAME, Endpoint("127.0.0.1", 7100), Endpoint("::1", 7100), Endpoint("nobody", 1)]
    assert spread(endpoints) == endpoints
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert spread(endpoints[1:3]) == endpoints[1:3], "an address is not looked up"


def test_what_is_there_already_is_not_there_twice(known):
    known[NAME.host] = known["other"] = ["10.0.0.1", "10.0.0.2"]
    second = Endpoint("10.0.0.2", 7100)
    assert spread([second, NAME, NAME._replace(host="other")]) == [second, NAME, Endpoint("other", 7100)]


def test_a_name_with_hundreds_of_addresses_is_bounded(known):
    known[NAME.host] = [f"10.0.{number}.1" for number in range(256)]
    assert len(spread([NAME])) == ENDPOINTS_MAX


def test_a_resolver_that_hangs_keeps_nobody_from_what_is_known(known, monkeypatch):
    release, quick = threading.Event(), socket.getaddrinfo
    known["quick"] = ["10.0.0.1", "10.0.0.2"]

    def hang(host, *rest):
        if host == NAME.host:
            release.wait(60)
        return quick(host, *rest)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(names, "LOOKUP_SECONDS", 0.05)
    try:
        assert spread([NAME]) == [NAME]
        monkeypatch.setattr(names, "LOOKUP_SECONDS", 60)
        release.set()
        assert spread([Endpoint("quick", 1)]) == [Endpoint("quick", 1), Endpoint("10.0.0.2", 1)]
    finally:
        release.set()
