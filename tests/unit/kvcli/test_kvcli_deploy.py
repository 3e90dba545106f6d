"""`kvcli deploy` with a cluster that is made up, and an `ssh` on PATH that only notes what it is asked."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import msgpack
import pytest

import kvclient
from kvclient.calls import Pong
from kvclient.cli import deploy, inventory, main
from kvclient.cli.app import App
from kvclient.cli.deploy import Life
from kvclient.cli.failure import Failure
from kvclient.cli.main import cli
from kvclient.cli.output import Output
from kvclient.errors import ConnectError, Exit, Unavailable

# Notes host and command; a command `fail` fails, one that begins with `restart` restarts.
SSH = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
echo "$2 $3" >> "$NOTES"
case $3 in fail*) echo "no such unit"; exit 5;; esac
"""

INVENTORY = """\
# role  name    host  command
store   store1  h1    restart kv
store   store2  h2    restart kv --now
store   store3  h3    restart kv

router  router2 h2    restart router
router  router1 h1    restart router
store   store9  h9    restart kv
"""


class House:
    """The cluster: who was restarted how often is what `ssh` has noted."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        self.members = ["store1", "store2", "store3"]
        self.controller = 2
        self.never_back: set[str] = set()
        self.sick: dict[str, str] = {}
        """Host after whose restart nothing is healthy any more -> what is wrong then."""

    def restarted(self) -> list[str]:
        return [line.split()[0] for line in self.notes.read_text().splitlines()]

    def uptime(self, host: str) -> float:
        """That of a process which began just now, or an hour ago."""
        return 0.0 if host in self.restarted() and host not in self.never_back else 3600.0

    def admin(self, command: str, *arguments: Any, timeout: float | None = None) -> Any:
        if command == "control":
            assert arguments == ("show", msgpack.packb({}), False)
            nodes = [{"id": int(name[-1]), "name": name} for name in self.members]
            return {"nodes": nodes, "controller": self.controller, "moves": []}
        if command == "healthy":
            for host, problem in self.sick.items():
                if host in self.restarted() or not host:
                    raise Unavailable(problem)
        nodes = [
            {"name": name, "uptime_s": self.uptime(f"h{name[-1]}"), "version": "0.2"} for name in self.members
        ]
        return {"nodes": nodes}

    def close(self) -> None:
        pass


class Router:
    """A connection to one of the two routers."""

    def __init__(self, house: House, url: str) -> None:
        self.house = house
        self.number = url[-1]

    def __enter__(self) -> Router:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def admin(self, command: str) -> Any:
        again = f"h{self.number} restart router" in self.house.notes.read_text()
        return {"router_figures": {"uptime_s": 0.0 if again else 3600.0}}

    def ping(self) -> Any:
        return Pong(f"router{self.number}", "0.3", 1, 0.001)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    ssh, notes = tmp_path / "bin" / "ssh", tmp_path / "notes"
    ssh.parent.mkdir()
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    notes.touch()
    made = House(notes)

    def connect(url: str, **_: Any) -> Router:
        if url.endswith("9"):
            raise ConnectError("nobody listens")
        return Router(made, url)

    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.setattr(kvclient, "connect", connect)
    monkeypatch.setattr(deploy, "_POLL_SECONDS", 0.0)
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "inventory"
    path.write_text(INVENTORY)
    return path


def run(house: House, file: Path, *arguments: str, form: str = "json", url: str = "kv://a:1,a:2") -> str:
    app, stream = App(), io.BytesIO()
    app._output = Output(stream, form, "utf8", False)
    app.client = lambda: house  # type: ignore[assignment, method-assign, return-value]
    line = ["-u", url, "deploy", "--inventory", str(file), "--patience", "300ms", *arguments]
    with cli.make_context("kvcli", line, obj=app) as context:
        cli.invoke(context)
    return stream.getvalue().decode()


def test_one_after_the_other_the_controller_last_of_the_stores_and_routers_at_the_end(
    house: House, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = json.loads(run(house, file))["processes"]
    assert [one["name"] for one in done] == ["store1", "store3", "store2", "router2", "router1"]
    assert house.notes.read_text().splitlines() == [
        "h1 restart kv",
        "h3 restart kv",
        "h2 restart kv --now",
        "h2 restart router",
        "h1 restart router",
    ]
    said = capsys.readouterr().err
    assert "store9 is no member of the cluster: left alone" in said
    assert "store3 (2 of 5): restart kv" in said


def test_a_dry_run_restarts_nothing(house: House, file: Path) -> None:
    lines = run(house, file, "--dry-run", form="plain").splitlines()
    assert lines[2] == "3\tstore\tstore2\th2\t0.2\trestart kv --now"
    assert lines[3] == "4\trouter\trouter2\th2\t0.3\trestart router"
    assert house.restarted() == []
    house.sick[""] = "store1 is down"
    with pytest.raises(Failure, match=r"not healthy after 1\.0s: store1 is down"):
        run(house, file, "--dry-run")


def test_it_does_not_begin_while_something_is_wrong(house: House, file: Path) -> None:
    house.sick[""] = "store1 is down"
    with pytest.raises(Failure, match=r"stopped at store1 \(nothing was restarted before\)") as failed:
        run(house, file)
    assert failed.value.exit_code == Exit.UNAVAILABLE
    assert house.restarted() == []


def test_it_stops_when_the_cluster_does_not_recover_and_says_how_to_go_on(house: House, file: Path) -> None:
    house.sick["h3"] = "partition 3 lacks a replica"
    with pytest.raises(Failure) as failed:
        run(house, file)
    assert failed.value.exit_code == Exit.PARTIAL
    assert "stopped at store3 (1 restarted before)" in failed.value.message
    assert "partition 3 lacks a replica" in failed.value.message
    assert failed.value.message.endswith(
        f"go on:  kvcli deploy --inventory {file} store3 store2 router2 router1"
    )
    assert house.restarted() == ["h1", "h3"]


def test_a_command_that_changes_nothing_is_noticed(house: House, file: Path) -> None:
    house.never_back = {"h3"}
    with pytest.raises(Failure, match="store3 did not come back: the process of before still runs"):
        run(house, file)
    assert house.restarted() == ["h1", "h3"]


def test_a_command_that_fails_ends_it_with_what_it_said(house: House, file: Path) -> None:
    file.write_text(INVENTORY.replace("h1    restart kv", "h1    fail"))
    with pytest.raises(Failure) as failed:
        run(house, file)
    assert failed.value.exit_code == Exit.ERROR
    assert "the command on h1 ended with exit code 5\n  no such unit" in failed.value.message


def test_names_choose(house: House, file: Path) -> None:
    run(house, file, "router1", "store2")
    assert house.restarted() == ["h2", "h1"]
    with pytest.raises(Failure, match="'store7' is not among"):
        run(house, file, "store7")


def test_a_member_without_a_line_is_not_forgotten_silently(house: House, file: Path) -> None:
    house.members.append("store4")
    with pytest.raises(Failure, match="store4 would run on as before") as failed:
        run(house, file)
    assert (failed.value.exit_code, house.restarted()) == (Exit.USAGE, [])
    run(house, file, "store1")


def test_every_router_is_to_be_found_by_the_url(house: House, file: Path) -> None:
    with pytest.raises(Failure, match=r"router2 is none of the routers of the URL \(router1\)"):
        run(house, file, url="kv://a:1")
    with pytest.raises(ConnectError):
        run(house, file, url="kv://a:1,a:9")
    assert house.restarted() == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("store store1 h1", "line 1: a line is: store|router NAME HOST COMMAND"),
        ("# c\nmonitor m h1 x", "line 2: 'monitor' is neither store nor router"),
        ("store a h x\nrouter a h x", "line 2: a is there twice"),
        ("store a -oProxyCommand=x y", "is no host"),
        ("# nothing", "names no process"),
    ],
)
def test_inventories_that_are_none(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    with pytest.raises(Failure) as failed:
        inventory.read(file)
    assert problem in failed.value.message
    assert failed.value.exit_code == Exit.USAGE


def test_ssh_that_hangs_or_is_not_there(house: House, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (process, *_) = inventory.read(file)
    (Path(os.environ["PATH"].split(":")[0]) / "ssh").write_text("#!/bin/sh\nexec sleep 60\n")
    assert process.restart(0.1) == "the command on h1 has not ended after 0 s"
    monkeypatch.setenv("PATH", "/nonexistent")
    assert process.restart(1.0) == "ssh cannot be run: No such file or directory"


def test_lives() -> None:
    before = Life(uptime=5.0, seen=100.0, version="")
    assert not Life(uptime=8.0, seen=103.0, version="").is_after(before)
    assert Life(uptime=1.0, seen=103.0, version="").is_after(before)


@pytest.mark.parametrize("arguments", [[], ["--dev", "--inventory", "/dev/null"], ["--dir", "/x"]])
def test_one_cluster_is_to_be_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["deploy", *arguments]) == Exit.USAGE
    assert "give either --inventory FILE, or --dev" in capsys.readouterr().err


def test_no_local_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["deploy", "--dev", "--dir", str(tmp_path)]) == Exit.NOT_FOUND
    assert "there is no cluster in" in capsys.readouterr().err
