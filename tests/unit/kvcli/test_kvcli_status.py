"""`kvcli status` and `kvcli route`: what they print of hand-made answers of a router."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from click import UsageError

from kvclient.cli.app import App
from kvclient.cli.cluster import show_route, show_status
from kvclient.cli.failure import Quit
from kvclient.cli.main import cli
from kvclient.cli.output import Output
from kvclient.errors import ConnectError, Exit, KVError, Unavailable
from kvclient.health import CRITICAL, LAG_ENTRIES_MAX, WARNING, judge, problems

ROUTE = {
    "partition": 2,
    "hashed_part": b"k",
    "epoch": 3,
    "state": "up",
    "replicas": [
        {"id": 1, "name": "store1", "leader": False},
        {"id": 2, "name": "store2", "leader": True},
    ],
}


def replica(node: int, **fields: Any) -> dict[str, Any]:
    role = "leader" if node == 1 else "follower"
    known = {
        "up": True,
        "role": role,
        "term": 7,
        "commit": 50,
        "applied": 50,
        "last": 51,
        "match": 50,
        "lag": 0,
    }
    return {"id": node, **known, **fields}


def away(node: int, **fields: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("role", "term", "commit", "applied", "last", "match", "lag"))
    return {"id": node, "up": False, **nothing, **fields}


def row(partition: int, *replicas: dict[str, Any], leader: int = 1) -> dict[str, Any]:
    indexes = {"term": 7, "commit": 50, "applied": 50, "last": 51, "voters": [1, 2, 3], "learners": []}
    return {"partition": partition, "leader": leader, **indexes, "replicas": list(replicas)}


def node(number: int, **fields: Any) -> dict[str, Any]:
    known = {"state": "up", "partitions": 4, "leads": 4 if number == 1 else 0, "lag": 0, "keys": 1000}
    sizes = {"disk_bytes": 1 << 20, "memory_bytes": 64 << 20, "uptime_s": 3600.0, "version": "1.0"}
    address = {"name": f"store{number}", "rpc": f"tcp://127.0.0.1:{7190 + 10 * number}"}
    return {"id": number, **address, **known, **sizes, **fields}


def cluster(*groups: dict[str, Any], nodes: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    about = {"name": "dev", "id": "0" * 16, "epoch": 1, "router": "router1", "partitions": 4, "replicas": 3}
    return about | {"nodes": nodes or [node(1), node(2), node(3)], "groups": list(groups)}


def healthy() -> dict[str, Any]:
    return cluster(*(row(partition, replica(1), replica(2), replica(3)) for partition in range(4)))


def degraded() -> dict[str, Any]:
    """store3 is down; partition 2 was led by it, partition 3 has one replica left, store2 is slow."""
    down = {"id": 3, "name": "store3", "rpc": "tcp://127.0.0.1:7220", "state": "down", "partitions": 4}
    return cluster(
        row(0, replica(1), replica(2, lag=LAG_ENTRIES_MAX + 1), away(3)),
        row(1, replica(1), replica(2), away(3)),
        row(2, replica(1, role="follower"), replica(2), away(3), leader=3),
        row(3, replica(1, role="follower"), away(2), away(3), leader=0),
        nodes=[node(1, leads=2), node(2, lag=LAG_ENTRIES_MAX + 1), down | {"leads": None, "lag": None}],
    )


def printed(answer: dict[str, Any], form: str = "table", partitions: bool = False) -> tuple[str, int]:
    """stdout and the exit code."""
    app, stream = App(), io.BytesIO()
    app._output = Output(stream, form, "utf8", False)
    try:
        show_status(app, answer, partitions)
        code = 0
    except Quit as quit_:
        code = quit_.exit_code
    return stream.getvalue().decode(), code


def test_what_a_store_says_of_its_own_trouble_is_a_problem() -> None:
    answer = healthy()
    answer["nodes"][1] |= {
        "failed": {"2": "partition 2 is out of service on this store: Corruption: 000007.sst"},
        "failing_jobs": ["flush: No space left on device"],
    }
    assert problems(answer) == [
        "store2 does not serve 1 of its replicas: "
        "partition 2 is out of service on this store: Corruption: 000007.sst. See: kvcli group ls --problems",
        "store2 cannot flush or compact: flush: No space left on device. "
        "Writes end when it lasts: look at its disk and its log",
    ]
    assert printed(answer)[1] == Exit.DEGRADED


@pytest.mark.parametrize(
    ("name", "answer", "partitions", "code"),
    [
        ("healthy", healthy(), False, 0),
        ("degraded", degraded(), False, Exit.DEGRADED),
        ("partitions", degraded(), True, Exit.DEGRADED),
    ],
)
def test_what_a_person_sees(name: str, answer: dict[str, Any], partitions: bool, code: int) -> None:
    """The whole screen; change the file only when the change is meant."""
    golden = Path(__file__).with_name("golden") / f"status_{name}.txt"
    assert printed(answer, partitions=partitions) == (golden.read_text(), code)


def test_plain_rows_go_to_stdout_and_problems_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    text, code = printed(degraded(), "plain")
    assert [line.split("\t")[:5] for line in text.splitlines()] == [
        ["store1", "up", "2", "4", "0"],
        ["store2", "up", "0", "4", "10001"],
        ["store3", "down", "-", "4", "-"],
    ]
    assert code == Exit.DEGRADED
    assert "problem: store3 is down" in capsys.readouterr().err


def test_json_carries_all() -> None:
    answer = degraded()
    text, code = printed(answer, "json")
    document = json.loads(text)
    assert document == {"schema": 1, "healthy": False, "problems": problems(answer), "cluster": answer}
    assert code == Exit.DEGRADED


def test_a_forgotten_pause_is_a_problem() -> None:
    answer = healthy() | {"controller": 1, "moves": [{"id": 1}, {"id": 2}], "paused": True}
    assert problems(answer) == [
        "moves are paused, 2 wait: nothing is drained, rebalanced or replaced, not even a store that is "
        "lost. Go on: kvcli rebalance resume"
    ]
    assert printed(answer)[1] == Exit.DEGRADED
    assert problems(answer | {"moves": []})[0].startswith("moves are paused: nothing is drained")
    assert problems(answer | {"paused": False}) == []
    assert problems(answer | {"paused": None, "moves": None}) == []


def test_stores_without_groups_have_the_columns_that_they_had() -> None:
    answer = healthy()
    del answer["groups"]
    text, code = printed(answer, "csv")
    assert text.splitlines()[0] == "node,state,partitions,entries,disk,memory,uptime,address"
    assert code == 0
    assert printed(answer, "plain", partitions=True) == ("", 0)


def silent(number: int, state: str, **fields: Any) -> dict[str, Any]:
    """A node that does not answer the router: it has no figures."""
    return {name: value for name, value in node(number, state=state).items() if name != "uptime_s"} | fields


def test_a_node_that_is_down_is_told_once_and_not_again_with_its_partitions() -> None:
    answer = cluster(
        *(row(partition, replica(1), replica(2), away(3)) for partition in range(4)),
        nodes=[node(1), node(2), silent(3, "down")],
    )
    assert problems(answer) == [
        "store3 is down: 4 partitions lack it. Start it again at tcp://127.0.0.1:7220"
    ]


CONTROLLED = {"controller": 2, "control": [1, 2, 3], "moves": [], "paused": False, "settings": {}}


def test_the_headline_names_the_controller_and_counts_moves() -> None:
    first = printed(healthy() | CONTROLLED)[0].splitlines()[0]
    assert first.endswith("epoch 1 · controller store2 · via router1")
    moving = CONTROLLED | {"moves": [{}, {}], "paused": True}
    assert "controller store2 · 2 moves, paused · via" in printed(healthy() | moving)[0]


def test_a_cluster_without_a_controller_has_a_problem() -> None:
    nothing = {"controller": 0, "moves": None, "paused": None, "settings": None}
    answer = healthy() | CONTROLLED | nothing | {"control_text": "store1, store2 do not answer"}
    assert problems(answer) == [
        "no controller: store1, store2 do not answer. Reads and writes go on; stores are neither drained nor "
        "replaced. Start the stores that do not run"
    ]
    text, code = printed(answer)
    assert "controller - · via" in text
    assert code == Exit.DEGRADED


def test_a_store_that_is_drained_is_no_problem_while_it_answers() -> None:
    answer = healthy()
    answer["nodes"][1]["state"] = "draining"
    assert problems(answer) == []
    assert "3 of 3 nodes up" in printed(answer)[0]
    answer["nodes"][1] = silent(2, "draining")
    assert problems(answer) == [
        "store2 is draining: 4 partitions lack it. Start it again at tcp://127.0.0.1:7210"
    ]


def test_a_store_that_only_the_controller_misses_is_told_so() -> None:
    answer = healthy()
    answer["nodes"][2]["state"] = "suspect"
    assert problems(answer)[0].startswith("store3 answers routers, but the controller takes it for suspect.")


def test_of_a_lost_store_status_says_how_to_start_and_how_to_remove_it() -> None:
    answer = healthy()
    answer["nodes"][2] = silent(3, "down", heard_ms=40_000)
    assert problems(answer)[0] == (
        "store3 is down: 4 partitions lack it. Start it again at tcp://127.0.0.1:7220. "
        "If it does not come back: kvcli node remove store3 --force"
    )
    answer["nodes"][2] = node(3, state="foreign")
    assert problems(answer)[0].startswith("store3 runs with another identity than it had, as after its disk")
    assert "kvcli node remove store3 --force" in problems(answer)[0]


def test_a_replica_that_a_node_does_not_tell_of_is_a_problem_of_its_own() -> None:
    answer = cluster(row(0, replica(1), replica(2), away(3)), row(1, replica(1), replica(2), replica(3)))
    assert problems(answer) == [
        "partition 0 has 2 of 3 replicas reachable: store3 is missing. See: kvcli group ls --problems"
    ]


def test_a_lag_within_the_bound_is_no_problem() -> None:
    assert problems(cluster(row(0, replica(1), replica(2, lag=LAG_ENTRIES_MAX)))) == []


def test_what_stops_reads_or_writes_is_critical_and_the_rest_a_warning() -> None:
    found = judge(degraded())
    assert [problem.level for problem in found] == [WARNING, CRITICAL, CRITICAL, WARNING, WARNING]
    assert all(problem.remedy for problem in found)


@pytest.mark.parametrize(
    ("free", "size", "told"),
    [
        (1 << 29, 100 << 30, True),
        (2 << 30, 100 << 30, False),
        (1 << 20, 10 << 20, False),
        (1 << 18, 10 << 20, True),
    ],
)
def test_a_disk_that_is_nearly_full_is_critical(free: int, size: int, told: bool) -> None:
    """Of a small disk less than 5 %, of a large one less than 1 GiB."""
    answer = healthy()
    answer["nodes"][0] |= {"disk_free_bytes": free, "disk_size_bytes": size}
    found = judge(answer)
    assert [problem.level for problem in found] == [CRITICAL] * told
    assert all(problem.text.startswith("store1 has") for problem in found)


class Asked:
    """A client that notes what it was asked, and gives these answers in turn."""

    def __init__(self, *answers: KVError | None) -> None:
        self.answers = list(answers)
        self.commands: list[str] = []

    def admin(self, command: str, *, timeout: float) -> None:
        self.commands.append(command)
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("arguments", "command"), [((), "ready"), (("--ready",), "ready"), (("--healthy",), "healthy")]
)
def test_wait_asks_until_it_is_so(
    arguments: tuple[str, ...], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app, client = App(), Asked(Unavailable("partition 3 has no leader"), ConnectError("nobody"), None)
    app.client = lambda: client  # type: ignore[assignment, method-assign, return-value]
    with cli.make_context("kvcli", ["wait", *arguments, "-v"], obj=app) as context:
        cli.invoke(context)
    assert client.commands == [command] * 3
    said = capsys.readouterr().err.splitlines()
    assert said == [f"not {command} yet: partition 3 has no leader", f"not {command} yet: nobody", command]


def test_wait_takes_one_of_both() -> None:
    with pytest.raises(UsageError), cli.make_context("kvcli", ["wait", "--ready", "--healthy"]) as context:
        cli.invoke(context)


def shown(answer: dict[str, Any], form: str) -> str:
    app, stream = App(), io.BytesIO()
    app._output = Output(stream, form, "utf8", False)
    show_route(app, b"k", answer)
    return stream.getvalue().decode()


def test_route_marks_the_leader() -> None:
    assert shown(ROUTE, "plain") == "k\t2\tstore1,store2\tup\tk\t3\tstore2\n"
    assert shown(ROUTE | {"term": 9, "commit": 4}, "table") == (
        "KEY  PARTITION  NODES          STATE  HASHED PART  EPOCH  LEADER  TERM\n"
        "k            2  store1,store2  up     k                3  store2     9\n"
    )
    document = json.loads(shown(ROUTE | {"term": 9, "commit": 4}, "json"))
    assert (document["term"], document["replicas"]) == (9, ROUTE["replicas"])


def test_route_of_a_partition_that_nobody_leads() -> None:
    replicas = [{"id": 1, "name": "store1", "leader": False}]
    answer = ROUTE | {"state": "down", "replicas": replicas, "term": 9}
    assert shown(answer, "plain") == "k\t2\tstore1\tdown\tk\t3\t-\t9\n"
