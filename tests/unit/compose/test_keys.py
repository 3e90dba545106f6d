"""The script that makes the composed cluster's keys: every process gets a directory that it accepts, and no
private key but its own; what changes later is spread.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvclient import keys
from shared.security import Guard

COMPOSE = Path(__file__).resolve().parents[3] / "compose"
ROLES: dict[str, keys.Role] = {
    "store1": "node",
    "store2": "node",
    "store3": "node",
    "router1": "router",
    "router2": "router",
    "monitor": "monitor",
}


def run(*command: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the containers have at /keys, with a directory for each volume that Compose mounts there."""
    made = tmp_path_factory.mktemp("keys")
    service: dict[str, Any] = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())["services"]["keys"]
    targets = [volume.split(":")[1] for volume in service["volumes"]]
    for target in targets:
        if target.startswith("/keys/"):
            (made / target.removeprefix("/keys/")).mkdir()
    run("sh", str(COMPOSE / "keys.sh"), str(made))
    return made


def test_every_process_has_a_directory_that_it_accepts_and_one_private_key(root: Path) -> None:
    assert {path.name for path in root.iterdir()} == {"operator", *ROLES}
    for name, role in ROLES.items():
        Guard(root / name, name, role)
        assert keys.load(root / name).private_names() == [name]
        assert keys.load(root / name).certificates.keys() == {"admin", *ROLES}


def test_clients_find_both_routers_from_inside_and_from_the_machine(root: Path) -> None:
    mine = keys.load_client(str(root / "operator"))
    assert mine.name == "admin"
    mine.require_routers(["router1:7100", "router2:7100", "127.0.0.1:7100", "127.0.0.1:7101"])


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_running_it_again_changes_nothing_and_spreads_what_was_changed(root: Path) -> None:
    before = content(root)
    run("sh", str(COMPOSE / "keys.sh"), str(root))
    assert content(root) == before
    operator = str(root / "operator")
    run("kvcli", "keys", "add", operator, "app1")
    run("sh", str(COMPOSE / "keys.sh"), str(root))
    assert keys.load(root / "router1").certificates["app1"].role == "client"
    assert keys.load(root / "router1").private_names() == ["router1"]
    run("kvcli", "keys", "revoke", operator, "app1", "--yes")
    run("sh", str(COMPOSE / "keys.sh"), str(root))
    assert content(root) == before
