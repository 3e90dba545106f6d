"""A client with keys: which router it expects where, and what it says when it gets no answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from kvclient import options, transport
from kvclient.cli import keyfiles
from kvclient.keys import Certificate, ClientKeys, KeysError, load, load_client
from kvclient.url import Endpoint, parse


@pytest.fixture
def keys(tmp_path: Path) -> ClientKeys:
    directory = tmp_path / "keys"
    keyfiles.init(directory)
    keyfiles.add(directory, Certificate("named", "router", "", ("routers.example:7100",)))
    keyfiles.add(directory, Certificate("numbered", "router", "", ("10.0.0.1:7100", "127.0.0.1")))
    return load_client(str(directory))


def expected(keys: ClientKeys, url: str, endpoint: Endpoint) -> str:
    key = transport._router_key(parse(url)._replace(keys=keys), endpoint)
    return next(one.name for one in keys.keys.certificates.values() if one.public_key == key)


def test_the_addresses_of_a_name_expect_the_router_of_that_name(keys: ClientKeys) -> None:
    url = "kv://routers.example:7100,10.0.0.1:7100"
    assert expected(keys, url, Endpoint("routers.example", 7100)) == "named"
    assert expected(keys, url, Endpoint("10.0.0.1", 7100)) == "numbered"
    assert expected(keys, url, Endpoint("10.9.9.9", 7100)) == "named"


def test_a_router_that_nobody_knows_is_told_before_anything_is_opened(keys: ClientKeys) -> None:
    with pytest.raises(KeysError, match=r"no certificate of a router at other:7100") as caught:
        options.with_keys(parse("kv://other:7100,10.0.0.1"), keys.keys.directory)
    assert "kvcli keys add" in str(caught.value.hint)


def test_the_environment_names_keys_and_an_empty_text_none(
    keys: ClientKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = parse("kv://127.0.0.1:7100")
    monkeypatch.setenv("RINGKV_KEYS", str(keys.keys.directory))
    found = options.with_keys(address, None).keys
    assert found is not None
    assert found.name == "admin"
    assert options.with_keys(address, "").keys is None
    monkeypatch.delenv("RINGKV_KEYS")
    assert options.with_keys(address, None).keys is None


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(0)


@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [
        ("keys", None, "it wants a key"),
        ("keys", "keys", "it does not take the key admin"),
        ("none", "keys", "it has no keys"),
        ("none", None, "connected, but no answer in time"),
    ],
)
def test_why_nobody_answered(
    keys: ClientKeys, context: zmq.Context[zmq.Socket[bytes]], theirs: str, ours: str | None, reason: str
) -> None:
    with context.socket(zmq.ROUTER) as router:
        if theirs == "keys":
            pair = load(keys.keys.directory).pair("numbered")
            router.set(zmq.CURVE_SERVER, 1)
            router.set_string(zmq.CURVE_SECRETKEY, pair.secret_key)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        error = transport.diagnose([Endpoint("127.0.0.1", port)], keys if ours else None)
        assert reason in error.message
        assert ("kvcli keys" in str(error.hint)) == ("key" in reason)
