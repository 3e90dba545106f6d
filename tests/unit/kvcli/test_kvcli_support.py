"""`kvcli support dump`: what is in the file, and what must not be."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kvclient.cli.app import App
from kvclient.cli.failure import Failure
from kvclient.cli.main import cli
from kvclient.cli.output import Output
from kvclient.errors import ConnectError, Exit
from tests.unit.kvcli.test_kvcli_status import degraded

USER = ("users-key-Ada", "users-value-Countess", "hunter2")
STATUS = degraded() | {"router_figures": {}, "damage": "a block with b'users-key-Ada'"}


class Client:
    """A cluster that answers, unless it is gone."""

    def __init__(self, gone: bool = False) -> None:
        self.gone = gone

    def admin(self, command: str, *arguments: Any) -> Any:
        if self.gone:
            raise ConnectError("cannot reach any router")
        return {"status": STATUS, "group": {"shown": arguments}, "control": {"moves": []}}[command]

    def cluster_map(self) -> Any:
        if self.gone:
            raise ConnectError("cannot reach any router")
        return [3, "dev"]

    def close(self) -> None:
        pass


def dump(file: Path, *arguments: str, gone: bool = False) -> dict[str, str]:
    """The files in the archive, by name."""
    app, stream = App(), io.BytesIO()
    app._output = Output(stream, "plain", "utf8", False)
    app.settings.url, app.settings.timeout = "kv://127.0.0.1:1/users-key-Ada", 0.2
    app.client = lambda: Client(gone)  # type: ignore[assignment, method-assign, return-value]
    with cli.make_context("kvcli", ["support", "dump", str(file), *arguments], obj=app) as context:
        cli.invoke(context)
    with tarfile.open(file) as archive:
        found = {entry.name: archive.extractfile(entry) for entry in archive.getmembers()}
        return {name: stored.read().decode() for name, stored in found.items() if stored is not None}


@pytest.fixture(autouse=True)
def _no_local_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_everything_is_in_one_private_file(tmp_path: Path) -> None:
    file = tmp_path / "x.tar.gz"
    parts = dump(file)
    assert {name.removeprefix("ringkv-support/") for name in parts} == {
        "README.txt",
        "about.json",
        "status.json",
        "control.json",
        "map.json",
        "routers/127.0.0.1_1.json",
        *(f"groups/{partition:04}.json" for partition in (0, 1, 2, 3)),
    }
    assert json.loads(parts["ringkv-support/status.json"])["epoch"] == 1
    assert "cannot reach" in json.loads(parts["ringkv-support/routers/127.0.0.1_1.json"])["error"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob("*.partial")) == []


def test_secrets_keys_and_values_are_not_in_it(tmp_path: Path) -> None:
    config, log = tmp_path / "store1.yaml", tmp_path / "store1.log"
    config.write_text("node: {name: store1}\nsecurity: {password: hunter2}\n")
    log.write_text(
        '{"event":"defect","exception":"KeyError: b\'users-key-Ada\'\\nput(b\\"users-value-Countess\\")"}\n'
        + "".join(f'{{"event":"line","number":{number}}}\n' for number in range(6000))
    )
    parts = dump(tmp_path / "x.tar.gz", "--config", str(config), "--log", str(log))
    whole = "".join(parts.values())
    assert [word for word in USER if word in whole] == []
    (name,) = [name for name in parts if "/log/" in name]
    assert parts[name].splitlines()[-1] == '{"event":"line","number":5999}'
    assert len(parts[name].splitlines()) == 5000
    (name,) = [name for name in parts if "/config/" in name]
    assert parts[name] == "node: {name: store1}\nsecurity: {password: [redacted]}\n"


def test_a_cluster_that_is_gone_is_no_reason_to_give_up(tmp_path: Path) -> None:
    parts = dump(tmp_path / "x.tar.gz", "--log", str(tmp_path / "nothing.log"), gone=True)
    assert "cannot reach any router" in parts["ringkv-support/status.json"]
    (log,) = [content for name, content in parts.items() if "/log/" in name]
    assert "No such file" in log


def test_a_directory_without_a_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure) as failed:
        dump(tmp_path / "x.tar.gz", "--dir", str(tmp_path))
    assert failed.value.exit_code == Exit.NOT_FOUND
    assert not (tmp_path / "x.tar.gz").exists()
