"""`kvcli node`, `rebalance` and `map`: what they ask the controller, and what they print of its answers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import msgpack
import pytest
import yaml

from kvclient.cli import control, main, progress
from kvclient.cli.app import App
from kvclient.cli.failure import Failure
from kvclient.cli.main import cli
from kvclient.cli.output import Output
from kvclient.errors import Conflict, ConnectError, Exit, InvalidRequest, KVError, OutcomeUnknown, Unavailable
from shared.ring import WEIGHT_MAX
from storenode.config import NodeSection


def node(number: int, **fields: Any) -> dict[str, Any]:
    known = {
        "id": number,
        "name": f"store{number}",
        "rpc": f"tcp://127.0.0.1:{7190 + 10 * number}",
        "zone": f"zone{number}",
        "weight": 1,
        "state": "up",
        "heard_ms": 400,
        "incarnation": str(number) * 32,
        "replicas": 12,
        "leads": 4,
        "bytes": 3 << 20,
        "disk_free": 5 << 30,
        "software": "0.2",
        "share": 12,
    }
    return known | fields


def move(number: int, source: int, target: int, **fields: Any) -> dict[str, Any]:
    known = {"partition": number, "reason": "drain", "stage": "waiting", "bytes": 1 << 20, "done": None}
    return {"id": number, "source": source, "target": target, "waits": ""} | known | fields


def shown(*nodes: dict[str, Any], moves: tuple[dict[str, Any], ...] = (), **fields: Any) -> dict[str, Any]:
    settings = {"replace_after_ms": 1_800_000, "transfers_per_node": 2, "bytes_per_second": 100 << 20}
    return {
        "cluster": "dev",
        "epoch": 9,
        "controller": 1,
        "control": [1, 2, 3],
        "nodes": list(nodes) or [node(1), node(2), node(3), node(4, replicas=0, share=9, heard_ms=None)],
        "moves": list(moves),
        "paused": False,
        "settings": settings,
    } | fields


PLAN = {
    "moves": [
        {"partition": 3, "source": 1, "target": 4, "bytes": 2 << 20},
        {"partition": 0xFFFF, "source": 0, "target": 4, "bytes": 100},
    ],
    "bytes": (2 << 20) + 100,
    "balance": {"before": 33.3, "after": 4.0},
    "loads": [{"node": 1, "before": 12, "after": 9}, {"node": 4, "before": 0, "after": 9}],
}

MAP = [
    3, "dev", "00ff", 9, 2, 2,
    [[1, "store1", "tcp://h:1", "tcp://h:2", "tcp://h:3", "z", 1, "up"],
     [2, "store2", "tcp://h:4", "tcp://h:5", "tcp://h:6", "z", 1, "up"]],
    [[1, 2], [2, 1]], [1], 100 << 20,
]  # fmt: skip

Answer = dict[str, Any] | KVError


class Controller:
    """A client whose cluster answers `show` with the next of these, the last one for ever, and any other
    command with `answer`.
    """

    def __init__(self, answer: Answer, shows: list[Answer]) -> None:
        self.answer = answer
        self.shows = shows
        self.asked: list[tuple[str, dict[str, Any], bool]] = []

    def admin(self, kind: str, command: str, arguments: bytes, dry_run: bool) -> Any:
        assert kind == "control"
        answer = self.answer
        if command == "show":
            answer = self.shows.pop(0) if len(self.shows) > 1 else self.shows[0]
        else:
            self.asked.append((command, msgpack.unpackb(arguments), dry_run))
        if isinstance(answer, KVError):
            raise answer
        return json.loads(json.dumps(answer))

    def cluster_map(self) -> Any:
        return MAP

    def close(self) -> None:
        pass


def run(
    answer: Answer, *arguments: str, form: str = "table", shows: list[Answer] | None = None, yes: bool = False
) -> tuple[str, Controller]:
    """stdout, and what was asked."""
    app, stream = App(), io.BytesIO()
    client = Controller(answer, shows or [shown()])
    app._output = Output(stream, form, "utf8", False)
    app.client = lambda: client  # type: ignore[assignment, method-assign, return-value]
    app.settings.yes = yes
    with cli.make_context("kvcli", list(arguments), obj=app) as context:
        cli.invoke(context)
    return stream.getvalue().decode(), client


def words(text: str) -> list[str]:
    """Its lines with single blanks."""
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_POLL_SECONDS", 0.0)


def test_weights_have_one_range_everywhere() -> None:
    """On the command line of both commands, in the configuration, at the controller and in the map."""
    for weight in (0, WEIGHT_MAX):
        _, client = run(
            {"cluster": "dev", "join": []}, "node", "add", "s", "--rpc", "tcp://h:1", "--weight", f"{weight}"
        )
        assert client.asked[0][1]["weight"] == weight
        _, client = run({"changed": True}, "node", "set-weight", "4", f"{weight}")
        assert client.asked[0][1]["weight"] == weight
        assert NodeSection(name="s", weight=weight).weight == weight
    for weight in (-1, WEIGHT_MAX + 1):
        with pytest.raises(click.BadParameter, match=f"0<=x<={WEIGHT_MAX}"):
            run({}, "node", "add", "s", "--rpc", "tcp://h:1", "--weight", f"{weight}")
        with pytest.raises(click.BadParameter, match=f"0<=x<={WEIGHT_MAX}"):
            run({}, "node", "set-weight", "4", f"{weight}")
        with pytest.raises(ValueError, match="must be between 0 and 1000000"):
            NodeSection(name="s", weight=weight)


def test_node_ls_has_a_row_for_each_store() -> None:
    text, _ = run({}, "node", "ls")
    head, first, *_, last = words(text)
    assert head == "NODE ID STATE ZONE WEIGHT REPLICAS SHARE LEADS BYTES DISK FREE HEARD SOFTWARE ADDRESS"
    assert first == "store1 1 up zone1 1 12 12 4 3.0 MiB 5.0 GiB 400ms ago 0.2 tcp://127.0.0.1:7200"
    assert last == "store4 4 up zone4 1 0 9 4 3.0 MiB 5.0 GiB - 0.2 tcp://127.0.0.1:7230"


def test_node_ls_in_json_is_the_controllers_answer() -> None:
    assert json.loads(run({}, "node", "ls", form="json")[0]) == {"schema": 1, "nodes": shown()["nodes"]}
    lines = run({}, "node", "ls", form="jsonl")[0].splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["store1", "store2", "store3", "store4"]


def test_node_show_has_its_moves() -> None:
    state = shown(moves=(move(1, 2, 4, waits="paused"), move(2, 3, 4), move(0xFFFF, 1, 2)))
    text, _ = run({}, "node", "show", "store2", shows=[state])
    assert "incarnation  22222222" in text
    assert words(text)[-2:] == ["1 store2 store4 drain waiting paused", "control store1 store2 drain waiting"]
    document = json.loads(run({}, "node", "show", "2", form="json", shows=[state])[0])
    assert (document["name"], document["controls"], len(document["moves"])) == ("store2", True, 2)


def test_node_show_of_nobody_names_those_there_are() -> None:
    with pytest.raises(Failure, match="There are: store1, store2, store3, store4") as failed:
        run({}, "node", "show", "store9")
    assert failed.value.exit_code == Exit.NOT_FOUND


def test_node_add_prints_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    answer = {"cluster": "dev", "join": ["tcp://127.0.0.1:7200", "tcp://127.0.0.1:7210"]}
    given = ("--rpc", "tcp://127.0.0.1:7240", "--zone", "z5", "--data-dir", "/var/lib/kv")
    text, client = run(answer, "node", "add", "store5", *given)
    assert client.asked == [
        ("node-add", {"name": "store5", "rpc": "tcp://127.0.0.1:7240", "zone": "z5"}, False)
    ]
    assert yaml.safe_load(text) == {
        "node": {"name": "store5", "zone": "z5"},
        "listen": {"rpc": "tcp://127.0.0.1:7240"},
        "data": {"dir": "/var/lib/kv"},
        "cluster": {"name": "dev", "join": answer["join"]},
    }
    assert "kv-store --config store5.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("node", "drain", "store4"), ("node-drain", {"node": "store4"}, False)),
        (("node", "drain", "4", "--dry-run"), ("node-drain", {"node": "4"}, True)),
        (("node", "undrain", "store4"), ("node-undrain", {"node": "store4"}, False)),
        (("node", "remove", "store4"), ("node-remove", {"node": "store4"}, False)),
        (("node", "remove", "store4", "--force"), ("node-remove", {"node": "store4", "force": True}, False)),
        (("node", "set-weight", "4", "0"), ("node-set-weight", {"node": "4", "weight": 0}, False)),
        (("rebalance", "pause"), ("rebalance-pause", {}, False)),
        (("rebalance", "resume", "--dry-run"), ("rebalance-resume", {}, True)),
        (("rebalance", "stop"), ("rebalance-stop", {}, False)),
    ],
)
def test_what_the_controller_is_asked(arguments: tuple[str, ...], asked: tuple[Any, ...]) -> None:
    text, client = run({"node": 4, "changed": True}, *arguments, yes=True)
    assert client.asked == [asked]
    assert text.count("\n") == 1
    assert ("would be" in text) is asked[2]
    assert "nothing to do" in run({"node": 4, "changed": False}, *arguments, yes=True)[0]
    document = json.loads(run({"node": 4, "changed": True}, *arguments, form="json", yes=True)[0])
    assert document == {"schema": 1, "node": 4, "changed": True, "dry_run": asked[2]}


def test_a_refusal_is_told_with_its_reason_and_exit_code() -> None:
    with pytest.raises(Failure) as failed:
        run(Conflict("3 stores with weight are left, 3 replicas need more"), "node", "drain", "store1")
    assert failed.value.exit_code == Exit.CONFLICT
    assert failed.value.message == (
        "draining store1 is refused: 3 stores with weight are left, 3 replicas need more."
    )
    with pytest.raises(Failure) as failed:
        run(InvalidRequest("there is no node store9"), "node", "drain", "store9")
    assert failed.value.exit_code == Exit.USAGE


def test_other_failures_say_where_to_look() -> None:
    with pytest.raises(OutcomeUnknown) as unknown:
        run(OutcomeUnknown("leadership was lost"), "node", "drain", "store1")
    assert "kvcli rebalance status" in str(unknown.value.hint)
    with pytest.raises(Unavailable) as away:
        run(Unavailable("no controller"), "rebalance", "plan")
    assert "kvcli status" in str(away.value.hint)


def test_removing_by_force_needs_a_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/null") as nowhere:
        monkeypatch.setattr("sys.stdin", nowhere)
        with pytest.raises(Failure, match="add --yes") as failed:
            run({"node": 4}, "node", "remove", "store4", "--force")
        assert failed.value.exit_code == Exit.USAGE
        assert run({"node": 4}, "node", "remove", "store4", "--force", "--dry-run")[1].asked


def test_drain_waits_until_the_store_holds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    control_moves = shown(
        node(1), node(4, state="draining", replicas=0), control=[1, 4], moves=(move(0xFFFF, 4, 1),)
    )
    steps: list[Answer] = [
        shown(node(1), node(4, state="draining", replicas=2), moves=(move(1, 4, 1, waits="paused"),)),
        Unavailable("the controller changes"),
        shown(node(1), node(4, state="draining", replicas=1), moves=(move(2, 4, 1, done=0.5),)),
        control_moves,
        shown(node(1), node(4, state="draining", replicas=0), control=[1]),
        KVError("asked too often"),
    ]
    run({"node": 4, "changed": True}, "node", "drain", "store4", "--wait", shows=steps)
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["drain store4 waits: paused", "drain store4 waits: the controller changes"]
    assert said[-1].startswith("drain store4: done after ")
    assert len(steps) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_is_drawn_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "DRAW_SECONDS", 0.0)
    steps: list[Answer] = [
        shown(
            node(1), node(4, state="draining", replicas=2), moves=(move(1, 4, 1), move(2, 4, 1)), control=[1]
        ),
        shown(
            node(1),
            node(4, state="draining", replicas=1),
            moves=(move(2, 4, 1, done=0.5, waits="paused"),),
            control=[1],
        ),
        shown(node(1), node(4, state="draining", replicas=0), control=[1]),
    ]
    run({"node": 4, "changed": True}, "node", "drain", "store4", "--wait", shows=steps)
    first, second, *_ = terminal.getvalue().split("\r")[1:]
    assert first.startswith("drain store4: 0 of 2 replicas done")
    assert " · 2.0 MiB left" in first
    assert second.startswith("drain store4: 1 of 2 replicas done, 1.5 MiB, ")
    assert "75%" in second
    assert " · waits: paused" in second
    assert terminal.getvalue().rpartition("\r")[2].startswith("\x1b[Kdrain store4: done after ")


def test_waiting_has_an_end() -> None:
    steps: list[Answer] = [shown(moves=(move(1, 1, 4, waits="node store4 is busy with 2 transfers"),))]
    with pytest.raises(Failure) as failed:
        run(PLAN, "rebalance", "start", "--wait", "--within", "1ms", shows=steps)
    assert failed.value.exit_code == Exit.UNAVAILABLE
    assert "It waits: node store4 is busy with 2 transfers. Watch it: kvcli rebalance" in failed.value.message


def test_waiting_does_not_hide_what_time_cannot_mend() -> None:
    with pytest.raises(KVError, match="a defect"):
        run(PLAN, "rebalance", "start", "--wait", shows=[shown(), KVError("a defect")])


def test_remove_by_force_waits_until_the_store_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[Answer] = [
        shown(node(1), node(4, state="draining", replicas=1, removing=True), moves=(move(1, 4, 1),)),
        shown(node(1), node(4, state="draining", replicas=0, removing=True), control=[1]),
        shown(node(1), node(5, name="store4"), control=[1]),
        KVError("asked too often"),
    ]
    answer = {"node": 4, "changed": True, "pending": True}
    text, client = run(answer, "node", "remove", "store4", "--force", "--wait", shows=steps, yes=True)
    assert "is replaced by others first, where any can" in text
    assert [command for command, *_ in client.asked] == ["node-remove"]
    assert "removing store4: done after" in capsys.readouterr().err
    assert len(steps) == 1


def test_a_drain_that_somebody_takes_back_is_not_waited_for() -> None:
    steps: list[Answer] = [shown(node(1), node(4, state="draining")), shown(node(1), node(4))]
    with pytest.raises(Failure, match="store4 is not being drained any more") as failed:
        run({"node": 4, "changed": True}, "node", "drain", "store4", "--wait", shows=steps)
    assert failed.value.exit_code == Exit.CONFLICT


def test_a_store_that_is_being_removed_is_told_so() -> None:
    rows = words(run({}, "node", "ls", shows=[shown(node(4, state="draining", removing=True))])[0])
    assert rows[1].startswith("store4 4 removing")


def test_a_name_goes_before_an_id() -> None:
    state = shown(node(2, name="1"), node(1))
    assert control.find(state, "1") == node(2, name="1")
    assert control.find(state, "2") == node(2, name="1")
    assert control.find(state, "3") is None


def test_a_plan_is_a_table_with_bytes_and_balance() -> None:
    text, client = run(PLAN, "rebalance", "plan")
    assert client.asked == [("rebalance-plan", {}, False)]
    assert words(text) == [
        "PARTITION SOURCE TARGET BYTES",
        "3 store1 store4 2.0 MiB",
        "control - store4 100 B",
        "NODE REPLICAS BEFORE REPLICAS AFTER",
        "store1 12 9",
        "store4 0 9",
        "2 moves, 2.0 MiB; largest deviation from the share: 33% now, 4% then",
    ]


def test_a_plan_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PLAN, "rebalance", "plan", form="plain")[0].splitlines() == [
        f"3\tstore1\tstore4\t{2 << 20}",
        "control\t-\tstore4\t100",
    ]
    assert "2 moves" in capsys.readouterr().err
    document = json.loads(run(PLAN, "rebalance", "start", "--dry-run", form="json")[0])
    assert document["balance"] == PLAN["balance"]
    assert document["moves"][0]["source_name"] == "store1"


def test_start_queues_and_says_so() -> None:
    text, client = run(PLAN, "rebalance", "start")
    assert client.asked == [("rebalance-start", {}, False)]
    assert "2 moves, 2.0 MiB, queued;" in text
    text, client = run(PLAN, "rebalance", "start", "--dry-run", "--wait")
    assert client.asked == [("rebalance-start", {}, True)]
    assert "would be queued" in text


def test_nothing_to_move() -> None:
    nothing = {"moves": [], "bytes": 0, "balance": {"before": 4.0, "after": 4.0}, "loads": []}
    text, _ = run(nothing, "rebalance", "plan")
    assert text == "nothing to move: the largest deviation from the share is 4%\n"


def test_status_shows_moves_and_why_they_wait(capsys: pytest.CaptureFixture[str]) -> None:
    state = shown(
        moves=(move(1, 1, 4, stage="learner", done=0.25), move(2, 2, 4, waits="node store4 is busy")),
        paused=True,
    )
    lines = words(run({}, "rebalance", "status", shows=[state])[0])
    assert lines[0].startswith("1 moves under way, 1 waiting, 1.8 MiB left · PAUSED")
    assert lines[2] == "1 1 store1 store4 drain learner 1.0 MiB 25%"
    assert lines[3] == "2 2 store2 store4 drain waiting 1.0 MiB - node store4 is busy"
    document = json.loads(run({}, "rebalance", "status", form="json", shows=[state])[0])
    assert (document["paused"], len(document["moves"]), document["epoch"]) == (True, 2, 9)
    assert run({}, "rebalance", "status")[0] == "no moves\n"
    run({}, "rebalance", "status", shows=[state | {"waits": ["2 of 4 stores are down"]}])
    assert capsys.readouterr().err == "the controller waits: 2 of 4 stores are down\n"


def test_settings() -> None:
    answer = {"settings": shown()["settings"] | {"bytes_per_second": 50 << 20}}
    given = ("--bandwidth", "50MiB", "--replace-after", "1h")
    text, client = run(answer, "rebalance", "set", *given)
    assert client.asked == [("set", {"replace_after_ms": 3_600_000, "bytes_per_second": 50 << 20}, False)]
    assert "bandwidth          50.0 MiB/s" in text
    text, client = run(answer, "rebalance", "set")
    assert (client.asked, "100.0 MiB/s" in text) == ([], True)


def test_map_show_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run({}, "map", "show")[0].splitlines() == [
        "cluster dev (00ff) · epoch 9 · 2 nodes · 2 partitions, replicas 2 · control store1",
        "PARTITION  PREFERRED  NODES",
        "        0  store1     store1,store2",
        "        1  store2     store2,store1",
    ]
    document = json.loads(run({}, "map", "export")[0])
    assert (document["schema"], document["nodes"][1]["bus"]) == (1, "tcp://h:5")
    run({}, "map", "export", "-f", str(tmp_path / "map.json"))
    assert json.loads((tmp_path / "map.json").read_text()) == document
    assert "map.json" in capsys.readouterr().err


def test_a_map_of_the_format_before_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Controller, "cluster_map", lambda _: [2, *MAP[1:-1]])
    assert "epoch 9" in run({}, "map", "show")[0]


def test_a_map_of_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ([4, *MAP[1:]], [2, *MAP[1:]], MAP[:-1], [], None):
        monkeypatch.setattr(Controller, "cluster_map", lambda _, wrong=wrong: wrong)
        with pytest.raises(Failure) as failed:
            run({}, "map", "show")
        assert failed.value.exit_code == Exit.VERSION


def test_lost_routers_are_waited_for() -> None:
    steps: list[Answer] = [shown(moves=(move(1, 1, 4),)), ConnectError("nobody"), shown()]
    run(PLAN, "rebalance", "start", "--wait", shows=[shown(), *steps])


def test_the_groups_are_in_the_list_of_commands() -> None:
    assert {"node", "rebalance", "map"} <= main.COMMANDS.keys()
