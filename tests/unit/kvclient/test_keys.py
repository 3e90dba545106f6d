"""The key directory: what is read from it, and what is refused, all at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zmq

from kvclient.cli import keyfiles
from kvclient.keys import (
    Certificate,
    Grants,
    KeysError,
    Limits,
    decode_certificate,
    encode_certificate,
    load,
    load_client,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    keyfiles.init(tmp_path / "keys")
    return tmp_path / "keys"


def test_a_certificate_comes_back_as_it_was_written() -> None:
    key = zmq.curve_keypair()[0].decode()
    client = Certificate("a", "client", key, (), Grants((b"", "ä:".encode()), (b"x",), True), Limits(1, 2, 3))
    router = Certificate("b", "router", key, ("10.0.0.1:7100", "[::1]", "host.example"))
    for one in (client, router, Certificate("c", "monitor", key)):
        assert decode_certificate(one.name, encode_certificate(one)) == one


def test_a_client_without_grants_may_do_nothing() -> None:
    key = zmq.curve_keypair()[0].decode()
    bare = json.dumps({"version": 1, "role": "client", "public_key": key}).encode()
    assert decode_certificate("a", bare).grants == Grants((), (), False)


def test_all_that_is_wrong_is_told_at_once(directory: Path) -> None:
    twin = keyfiles.add(directory, Certificate("one", "node", "", ("a:1",)))
    (directory / "certificates" / "two.json").write_bytes(encode_certificate(twin))
    certificates = directory / "certificates"
    (certificates / "bad.json").write_text(
        '{"version": 1, "role": "king", "public_key": 7, "grants": {"read": "x", "fly": 1}}'
    )
    (certificates / "no name.json").write_text("{}")
    (certificates / "torn.json").write_text('{"version": 1, "role"')
    (certificates / "new.json").write_text('{"version": 2}')
    (directory / "private" / "one.key").chmod(0o640)
    (directory / "certificates" / "one.json").chmod(0o664)
    with pytest.raises(KeysError) as caught:
        load(directory)
    told = str(caught.value)
    for part in (
        "bad.json role must be one of",
        "bad.json public_key must be",
        "bad.json has an unknown member grants.fly",
        "no name.json is not called like a key",
        "torn.json is no JSON object",
        "new.json has another version",
        "one and two have the same public key",
        "both have the address a:1",
        "one.key has mode 0640: others may read",
        "one.json has mode 0664: others may change",
    ):
        assert part in told, part
    assert len(caught.value.problems) == 11


@pytest.mark.parametrize(
    "grants",
    [{"read": [""], "fly": 1}, {"read": "a"}, {"read": [1]}, {"admin": 1}, {"write": ["\ud800"]}, []],
)
def test_grants_are_checked(grants: object) -> None:
    key = zmq.curve_keypair()[0].decode()
    fields = {"version": 1, "role": "client", "public_key": key, "grants": grants}
    with pytest.raises(KeysError):
        decode_certificate("a", json.dumps(fields).encode())


def test_who_is_expected_where(directory: Path) -> None:
    for name, addresses in (("a", ("h:1", "h:2")), ("b", ("h",)), ("c", ())):
        keyfiles.add(directory, Certificate(name, "node", "", addresses))
    keyfiles.add(directory, Certificate("r", "router", "", ("h:1",)))
    keys = load(directory)

    def expected(address: str) -> str:
        found = keys.server(address, "node")
        return "" if found is None else found.name

    assert [expected(address) for address in ("h:1", "H:2", "h:3", "elsewhere:1")] == ["a", "a", "b", "c"]
    assert keys.server("elsewhere:1", "router") is None


def test_private_files_are_the_owners_alone_and_nothing_half_written_stays(directory: Path) -> None:
    keyfiles.add(directory, Certificate("app", "client", ""))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (directory / "private").iterdir()}
    assert modes == {"admin.key": 0o600, "app.key": 0o600}
    assert (directory / "private").stat().st_mode & 0o777 == 0o700
    assert {path.name for path in (directory / "certificates").iterdir()} == {"admin.json", "app.json"}


def test_which_key_a_client_takes(directory: Path) -> None:
    assert load_client(str(directory)).name == "admin"
    keyfiles.add(directory, Certificate("app", "client", ""))
    assert load_client(str(directory)).name == "admin"
    assert load_client(str(directory / "private" / "app.key")).name == "app"
    (directory / "private" / "admin.key").unlink()
    assert load_client(str(directory)).name == "app"
    keyfiles.add(directory, Certificate("app2", "client", ""))
    with pytest.raises(KeysError, match="several keys"):
        load_client(str(directory))


def test_a_private_key_that_is_not_that_of_the_certificate_is_refused(directory: Path) -> None:
    keyfiles.add(directory, Certificate("app", "client", ""))
    old = (directory / "private" / "app.key").read_bytes()
    keyfiles.add(directory, Certificate("app", "client", ""))
    (directory / "private" / "app.key").write_bytes(old)
    with pytest.raises(KeysError, match="is not the key of"):
        load_client(str(directory / "private" / "app.key"))
    keyfiles.revoke(directory, "app")
    (directory / "private" / "app.key").write_bytes(old)
    (directory / "private" / "app.key").chmod(0o600)
    with pytest.raises(KeysError, match="no certificate app"):
        load_client(str(directory / "private" / "app.key"))


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="no key directory"):
        load(tmp_path)
