"""docs/configuration.md names every setting of every process, with its default, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.config import MonitorConfig
from router.config import RouterConfig
from shared.config import dump, load
from storenode.config import StoreConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text()
ROW = re.compile(r"^\| `([\w.]+)` \| (?:`([^`]*)` )?\|", re.MULTILINE)

NODES = [{"id": n, "name": f"store{n}", "rpc": f"tcp://127.0.0.1:{7190 + 10 * n}"} for n in (1, 2, 3)]
STORE = {
    "node": {"id": 1, "name": "store1"},
    "data": {"dir": "/data"},
    "cluster": {"name": "c", "nodes": NODES},
}
ROUTER = {"router": {"name": "router1"}, "stores": ["tcp://127.0.0.1:7200"]}
MONITOR = {"stores": ["tcp://127.0.0.1:7200"]}


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@pytest.mark.parametrize(
    ("chapter", "cls", "given"),
    [
        ("## 1.", StoreConfig, STORE),
        ("## 2.", RouterConfig, ROUTER),
        ("## 3.", MonitorConfig, MONITOR),
    ],
)
def test_the_page_has_every_setting_and_its_default(
    chapter: str, cls: type[Any], given: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(given))
    in_force = dict(leaves(yaml.safe_load(dump(load(cls, path, {})))))
    required = dict(leaves(given))
    expected = {
        name: None if name in required else str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in in_force.items()
    }
    text = PAGE[PAGE.index(chapter) :].split("\n## ", 2)
    rows = {match[1]: match[2] for match in ROW.finditer(text[0])}
    assert rows == expected
