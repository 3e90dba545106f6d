"""monitor/status.py: the document has the members of the page, of its types, and null where it says null."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from monitor import status
from tests.unit.monitor.watchedworld import World

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "monitor.md").read_text()
TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool}


def document(world: World, seconds: float = 3600) -> Any:
    made = status.document(world.model.picture, world.model.history, seconds)
    return json.loads(json.dumps(made, allow_nan=False))


def promised(chapter: str) -> dict[str, tuple[str, bool]]:
    """Name -> (type, whether it may be null) of a paragraph of the page that begins so."""
    paragraph = PAGE[PAGE.index(chapter) :].split("\n\n")[0].removeprefix(chapter)
    return {
        name: (kind, null == "?")
        for name, kind, null in re.findall(r"`(\w+)` (int|float|str|bool)(\??)", paragraph)
    }


def check(row: dict[str, Any], chapter: str) -> None:
    members = promised(chapter)
    flat = {name: value for name, value in row.items() if not isinstance(value, (list, dict))}
    assert flat.keys() == members.keys() - {"node", "role"} or flat.keys() == members.keys()
    for name, value in flat.items():
        kind, null = members[name]
        assert (value is None and null) or isinstance(value, TYPES[kind]), (chapter, name, value)
        assert type(value) is not bool or kind == "bool", (chapter, name, value)


def test_every_member_of_the_page_is_there_with_its_type() -> None:
    world = World()
    world.moves = [{"id": 1, "partition": 2, "source": 1, "target": 3, "reason": "drain", "stage": "learner"}]
    world.second(5)
    whole = document(world)
    table = PAGE[PAGE.index("| member | type |") :].split("\n\n")[0]
    assert whole.keys() == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert whole["version"] == 1
    check(whole["totals"], "`totals`:")
    for row in whole["nodes"]:
        check(row, "A node:")
    for row in whole["routers"]:
        check(row, "A router:")
    assert [row["id"] for row in whole["partitions"]] == [0, 1, 2, 3]
    (move,) = whole["moves"]
    assert (move["source"], move["target"], move["stage"], move["done"]) == (
        "store1",
        "store3",
        "learner",
        None,
    )
    assert len({len(line) for line in whole["history"].values()}) == 1


def test_a_healthy_cluster_is_ok() -> None:
    world = World()
    world.second(5)
    whole = document(world)
    assert whole["verdict"] == {"level": "ok", "text": "all is well", "remedy": ""}
    assert (whole["problems"], whole["cluster"]["controller"]) == ([], "store2")
    totals = whole["totals"]
    assert (totals["nodes_up"], totals["routers_up"], totals["partitions_ok"]) == (3, 2, 4)
    assert (totals["ops_per_s"], totals["requests_per_s"], totals["errors_per_s"]) == (2200, 102, 2)
    assert totals["keys"] == 300, "of each partition once"
    assert whole["partitions"][0]["replicas"][0] == {
        "node": "store1",
        "role": "leader",
        "state": "ok",
        "lag": 0,
    }


def test_of_who_is_gone_everything_that_only_it_could_say_is_null() -> None:
    world = World()
    world.second(3)
    world.silent |= {"store3", "router1"}
    world.second(6)
    whole = document(world)
    store, router = whole["nodes"][2], whole["routers"][0]
    known = {name for name, value in store.items() if value is not None}
    assert known == {"id", "name", "zone", "rpc", "state", "gone", "heard_s", "controller", "partitions"}
    assert {name for name, value in router.items() if value is not None} == {
        "name",
        "front",
        "gone",
        "heard_s",
    }
    assert whole["verdict"]["level"] == "critical"
    assert "and 2 more" in whole["verdict"]["text"]
    states = [row["state"] for row in whole["partitions"]]
    assert states == ["degraded", "degraded", "down", "degraded"]
    found = {one["node"]: (one["role"], one["state"]) for one in whole["partitions"][2]["replicas"]}
    assert found == {"store1": ("follower", "ok"), "store2": ("follower", "ok"), "store3": ("gone", "gone")}


def test_a_document_without_a_map_is_whole() -> None:
    whole = document(World())
    assert (whole["cluster"]["name"], whole["cluster"]["epoch"], whole["nodes"]) == (None, 0, [])
    assert whole["verdict"]["level"] == "warning"


def test_the_history_is_as_long_as_asked_for() -> None:
    world = World()
    world.second(20)
    assert len(document(world, 10)["history"]["at_s"]) == 5
    assert document(world, 0)["history"]["ops_per_s"] == []
