"""`kvcli group`: what it asks the router, and what it prints of hand-made answers."""

from __future__ import annotations

import io
import json
from typing import Any

import click
import pytest

from kvclient.cli.app import App
from kvclient.cli.failure import Failure
from kvclient.cli.main import cli
from kvclient.cli.output import Output
from kvclient.errors import Conflict, Exit, KVError, OutcomeUnknown, Unavailable
from tests.unit.kvcli.test_kvcli_status import LAG_ENTRIES_MAX, away, cluster, node, replica, row

STATUS = cluster(
    row(0, replica(1), replica(2), replica(3)) | {"learners": [4]},
    row(1, replica(1), replica(2, lag=LAG_ENTRIES_MAX + 1), replica(3)),
    row(2, replica(1, role="follower"), replica(2), away(3), leader=3),
    row(3, replica(1, role="follower"), away(2), replica(3), leader=0),
    nodes=[node(number) for number in (1, 2, 3, 4)],
)

SHOWN = {
    "partition": 0,
    "leader": 1,
    "term": 7,
    "commit": 12_345,
    "applied": 12_345,
    "first": 2,
    "last": 12_346,
    "voters": [1, 2],
    "outgoing": [],
    "learners": [4],
    "change": 0,
    "transfer": 0,
    "members": [
        {"id": 1, "role": "leader", "match": 12_346, "lag": 0, "state": "replicate", "heard_ms": 0},
        {"id": 2, "role": "voter", "match": 12_000, "lag": 345, "state": "replicate", "heard_ms": 61},
        {"id": 4, "role": "learner", "match": 0, "lag": 12_345, "state": "snapshot", "heard_ms": None},
    ],
}

CHANGED = {
    "partition": 0,
    "command": "promote",
    "node": 4,
    "leader": 1,
    "voters": [1, 2, 4],
    "learners": [],
    "changed": True,
    "index": 9,
}


class Answers:
    """A client whose routers answer so."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []

    def admin(self, command: str, *arguments: Any) -> Any:
        if command == "status":
            return STATUS
        self.asked.append((command, *arguments))
        if isinstance(self.answer, KVError):
            raise self.answer
        return self.answer


def run(answer: Any, *arguments: str, form: str = "table") -> tuple[str, Answers]:
    """stdout, and what was asked."""
    app, stream, client = App(), io.BytesIO(), Answers(answer)
    app._output = Output(stream, form, "utf8", False)
    app._client = client  # type: ignore[assignment]
    with cli.make_context("kvcli", ["group", *arguments], obj=app) as context:
        cli.invoke(context)
    return stream.getvalue().decode(), client


def test_ls_has_a_row_for_each_partition() -> None:
    text, _ = run(None, "ls", form="csv")
    assert text.splitlines() == [
        "partition,leader,term,voters,learners,commit,applied_lag,problem",
        '0,store1,7,"store1,store2,store3",store4,50,0,',
        f'1,store1,7,"store1,store2,store3",,50,{LAG_ENTRIES_MAX + 1},'
        f'"store2 is {LAG_ENTRIES_MAX + 1:,} entries behind"',
        '2,store3,7,"store1,store2,store3",,50,0,no leader that answers; store3 does not answer',
        '3,-,7,"store1,store2,store3",,50,0,no leader that answers; store2 does not answer',
    ]


def test_too_few_voters_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATUS, "groups", [STATUS["groups"][0] | {"voters": [1, 2]}])
    (found,) = json.loads(run(None, "ls", "--problems", form="json")[0])["groups"]
    assert found["problem"] == "2 of 3 voters"


def test_ls_problems_leaves_out_what_is_well() -> None:
    text, _ = run(None, "ls", "--problems", form="json")
    assert [one["partition"] for one in json.loads(text)["groups"]] == [1, 2, 3]


def test_ls_in_json_has_lists() -> None:
    first = {
        "partition": 0,
        "leader": "store1",
        "term": 7,
        "voters": ["store1", "store2", "store3"],
        "learners": ["store4"],
        "commit": 50,
        "applied_lag": 0,
        "problem": "",
    }
    assert json.loads(run(None, "ls", form="json")[0])["groups"][0] == first
    assert json.loads(run(None, "ls", form="jsonl")[0].splitlines()[0]) == first


def test_ls_without_problems_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STATUS, "groups", STATUS["groups"][:1])
    text, _ = run(None, "ls", "--problems", form="plain")
    assert (text, capsys.readouterr().err) == ("", "no partition has a problem\n")


def test_ls_of_stores_that_do_not_replicate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(STATUS, "groups")
    with pytest.raises(Failure, match="the stores do not replicate") as failed:
        run(None, "ls")
    assert failed.value.exit_code == Exit.ERROR


def test_show_is_a_headline_and_a_row_for_each_member() -> None:
    text, client = run(SHOWN, "show", "0")
    assert client.asked == [("group", "show", 0)]
    assert text.splitlines() == [
        "partition 0 · store1 leads in term 7 · commit 12,345, applied 12,345 · log 2 to 12,346",
        "NODE    ROLE     MATCH    LAG  STATE      LAST HEARD",
        "store1  leader   12346      0  replicate  0ms",
        "store2  voter    12000    345  replicate  61ms",
        "store4  learner      0  12345  snapshot   -",
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"outgoing": [1, 2, 3]}, "JOINT: voters store1,store2 and store1,store2,store3"),
        ({"change": 12_346}, "a change is under way at entry 12,346"),
        ({"transfer": 2}, "leadership goes to store2"),
    ],
)
def test_show_tells_what_is_under_way(fields: dict[str, Any], words: str) -> None:
    assert words in run(SHOWN | fields, "show", "0")[0]


def test_show_in_json_is_the_answer_with_names() -> None:
    document = json.loads(run(json.loads(json.dumps(SHOWN)), "show", "0", form="json")[0])
    assert [member["name"] for member in document["members"]] == ["store1", "store2", "store4"]
    assert (document["schema"], document["commit"], document["learners"]) == (1, 12_345, [4])


def test_show_of_a_partition_without_a_leader_says_where_to_look() -> None:
    with pytest.raises(Unavailable) as failed:
        run(Unavailable("partition 3 is not served"), "show", "3")
    assert failed.value.hint == "see what its replicas say: kvcli group ls --problems"


@pytest.mark.parametrize("verb", ["transfer-leader", "add-learner", "promote", "remove"])
def test_the_verbs_pass_partition_node_and_dry_run(verb: str) -> None:
    assert run(CHANGED, verb, "0", "store4")[1].asked == [("group", verb, 0, "store4", False)]
    assert run(CHANGED, verb, "3", "4", "--dry-run")[1].asked == [("group", verb, 3, 4, True)]


@pytest.mark.parametrize(
    ("verb", "fields", "line"),
    [
        ("promote", {}, "partition 0: store4 is a voter; voters store1,store2,store4"),
        (
            "add-learner",
            {"voters": [1, 2], "learners": [4]},
            "partition 0: store4 is a learner; voters store1,store2, learners store4",
        ),
        ("remove", {"voters": [1, 2]}, "partition 0: store4 is no member; voters store1,store2"),
        ("transfer-leader", {"leader": 4}, "partition 0: store4 leads; voters store1,store2,store4"),
        (
            "promote",
            {"changed": False, "dry_run": True},
            "partition 0: would be: store4 is a voter; voters store1,store2,store4",
        ),
        (
            "promote",
            {"changed": False, "text": "store4 (node 4) is a voter already"},
            "partition 0: nothing to do, store4 (node 4) is a voter already; voters store1,store2,store4",
        ),
    ],
)
def test_what_a_person_reads(verb: str, fields: dict[str, Any], line: str) -> None:
    assert run(CHANGED | {"command": verb} | fields, verb, "0", "4")[0] == line + "\n"


def test_json_has_lists_of_names_and_whether_something_changed() -> None:
    document = json.loads(run(CHANGED, "promote", "0", "4", form="json")[0])
    assert document == {
        "schema": 1,
        "partition": 0,
        "command": "promote",
        "node": "store4",
        "leader": "store1",
        "voters": ["store1", "store2", "store4"],
        "learners": [],
        "changed": True,
        "dry_run": False,
    }


def test_a_refusal_is_exit_code_4_in_the_words_of_the_store() -> None:
    with pytest.raises(Failure) as failed:
        run(Conflict("store4 (node 4) is 1,001 entries behind, 1,000 are allowed"), "promote", "0", "4")
    assert failed.value.exit_code == Exit.CONFLICT
    assert failed.value.name == "REFUSED"
    assert failed.value.message == (
        "promote of 4 in partition 0 is refused: store4 (node 4) is 1,001 entries behind, 1,000 are allowed."
    )


def test_an_unknown_outcome_says_where_to_look() -> None:
    with pytest.raises(OutcomeUnknown) as failed:
        run(OutcomeUnknown("not done in time, and it goes on"), "remove", "5", "4")
    assert failed.value.hint == "see what became of it: kvcli group show 5"


@pytest.mark.parametrize("arguments", [("show",), ("show", "4096"), ("promote", "0"), ("remove", "x", "4")])
def test_wrong_arguments_are_told_before_anything_is_asked(arguments: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        run(None, *arguments)
