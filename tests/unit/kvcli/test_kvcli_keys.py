"""`kvcli keys`: what it makes, shows and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvclient.cli.main import run
from kvclient.errors import Exit
from kvclient.keys import Grants, Limits, load


@pytest.fixture
def directory(tmp_path: Path) -> str:
    assert run(["keys", "init", str(tmp_path / "keys")]) == Exit.OK
    return str(tmp_path / "keys")


def told(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capfd.readouterr()
    assert run(["-o", "json", "keys", *arguments]) == Exit.OK
    return json.loads(capfd.readouterr().out)


def test_a_directory_is_made_once_with_a_key_for_the_operator(directory: str) -> None:
    assert [one.role for one in load(Path(directory)).certificates.values()] == ["admin"]
    assert run(["keys", "init", directory]) == Exit.CONFLICT


def test_add_ls_and_show(directory: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "add", directory, "s1", "--role", "node", "--address", "tcp://H:7200"]) == Exit.OK
    arguments = ["--read", "a:", "--write", "b:", "--ops-per-second", "7", "--bytes-per-second", "1MiB"]
    assert run(["keys", "add", directory, "app", *arguments]) == Exit.OK
    assert run(["keys", "add", directory, "all"]) == Exit.OK
    known = load(Path(directory)).certificates
    assert known["s1"].addresses == ("h:7200",)
    assert known["app"].grants == Grants((b"a:",), (b"b:",))
    assert known["app"].limits == Limits(0, 7, 1 << 20)
    assert known["all"].grants == Grants((b"",), (b"",))
    rows = {row["name"]: row for row in told(capfd, "ls", directory)["keys"]}
    assert rows.keys() == {"admin", "s1", "app", "all"}
    assert rows["app"]["limits"] == "7 ops/s, 1.0 MiB/s"
    shown = told(capfd, "show", directory, "app")
    assert shown["grants"] == {"read": ["a:"], "write": ["b:"], "admin": False}
    secret = json.loads((Path(directory) / "private" / "app.key").read_text())["secret_key"]
    assert secret not in json.dumps(shown)


def test_replacing_keeps_everything_but_the_key(directory: str) -> None:
    assert run(["keys", "add", directory, "app", "--read", "a:"]) == Exit.OK
    before = load(Path(directory)).certificates["app"]
    assert run(["keys", "add", directory, "app"]) == Exit.CONFLICT
    assert run(["keys", "add", directory, "app", "--replace"]) == Exit.OK
    after = load(Path(directory)).certificates["app"]
    assert after.public_key != before.public_key
    assert after._replace(public_key="") == before._replace(public_key="")
    assert run(["keys", "add", directory, "nobody", "--replace"]) == Exit.NOT_FOUND


def test_revoking_asks_first_and_takes_both_halves(directory: str) -> None:
    assert run(["keys", "add", directory, "app"]) == Exit.OK
    assert run(["keys", "revoke", directory, "app", "--yes"]) == Exit.OK
    assert not list(Path(directory).rglob("app.*"))
    assert run(["keys", "revoke", directory, "app", "--yes"]) == Exit.NOT_FOUND


@pytest.mark.parametrize(
    "arguments",
    [
        ["a b"],
        ["s", "--role", "node", "--read", "x"],
        ["c", "--address", "h:1"],
        ["s", "--role", "node", "--address", "h:99999"],
        ["s", "--role", "king"],
    ],
)
def test_wrong_usage(directory: str, arguments: list[str]) -> None:
    assert run(["keys", "add", directory, *arguments]) == Exit.USAGE
    assert list(load(Path(directory)).certificates) == ["admin"]


def test_two_at_one_address_are_refused(directory: str) -> None:
    assert run(["keys", "add", directory, "s1", "--role", "node", "--address", "h:1"]) == Exit.OK
    assert run(["keys", "add", directory, "s2", "--role", "node", "--address", "h:1"]) == Exit.CONFLICT
    assert run(["keys", "add", directory, "r1", "--role", "router", "--address", "h:1"]) == Exit.OK
    assert run(["keys", "add", directory, "s3", "--role", "node"]) == Exit.OK
    assert run(["keys", "add", directory, "s4", "--role", "node"]) == Exit.CONFLICT


def test_a_directory_with_errors_is_told_whole(directory: str, capfd: pytest.CaptureFixture[str]) -> None:
    (Path(directory) / "certificates" / "bad.json").write_text("[]")
    (Path(directory) / "private" / "admin.key").chmod(0o644)
    assert run(["keys", "ls", directory]) == Exit.USAGE
    told_of = capfd.readouterr().err
    assert "bad.json" in told_of
    assert "chmod 600" in told_of
