"""`kvcli group`: the replicas of one partition, looked at and changed by hand.

Owns the words and columns. What may be done is judged by the store that leads the partition; a refusal is
printed as that store worded it, with exit code 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from kvclient.cli.app import App, current
from kvclient.cli.command import KvCommand, command
from kvclient.cli.failure import Failure
from kvclient.cli.output import Cell
from kvclient.cli.units import show_seconds
from kvclient.errors import Conflict, Exit, OutcomeUnknown, Unavailable
from kvclient.health import LAG_ENTRIES_MAX, is_led

_LIST_COLUMNS = ("partition", "leader", "term", "voters", "learners", "commit", "applied_lag", "problem")
_MEMBER_COLUMNS = ("node", "role", "match", "lag", "state", "last_heard")

_PARTITION = click.IntRange(0, 4095)

Row = dict[str, Any]


@click.group("group")
def group() -> None:
    """Show and change the replicas of one partition.

    NODE is a node's name or id, as in `kvcli status`. To move a replica: add-learner, promote, then remove
    the old one. Nothing is done that would cost the partition its majority.
    """


@command("ls")
@click.option("--problems", is_flag=True, help="Only partitions that lack a leader or a replica, or lag.")
def list_groups(problems: bool) -> None:
    """Show every partition: leader, term, voters, learners, commit index, the largest lag, what is wrong."""
    app = current()
    answer = app.client().admin("status")
    if "groups" not in answer:
        raise Failure(Exit.ERROR, "the stores do not replicate: there are no groups", "NO_GROUPS")
    names, factor = _names(answer), answer["replicas"]
    found = [_json_row(row, names, problem_of(row, names, factor)) for row in answer["groups"]]
    table = [row for row in found if row["problem"] or not problems]
    if not table:
        app.note("no partition has a problem")
    if app.output.form in ("json", "jsonl"):
        for document in [{"groups": table}] if app.output.form == "json" else table:
            app.output.document(document)
        return
    with app.output.rows("groups", _LIST_COLUMNS) as rows:
        for row in table:
            cells = row | {name: ",".join(row[name]) for name in ("voters", "learners")}
            rows.add(*(cells[column] for column in _LIST_COLUMNS))


def _json_row(row: Row, names: dict[int, str], problem: str) -> Row:
    return {
        "partition": row["partition"],
        "leader": names.get(row["leader"]),
        "term": row["term"],
        "voters": [names.get(node, str(node)) for node in row["voters"]],
        "learners": [names.get(node, str(node)) for node in row["learners"]],
        "commit": row["commit"],
        "applied_lag": _largest_lag(row),
        "problem": problem,
    }


def problem_of(row: Row, names: dict[int, str], factor: int) -> str:
    """Why an operator should look at this partition; "" if there is no reason."""
    found = [] if is_led(row) else ["no leader that answers"]
    if row["voters"] and len(row["voters"]) < factor:
        found.append(f"{len(row['voters'])} of {factor} voters")
    for replica in row["replicas"]:
        name = names.get(replica["id"], str(replica["id"]))
        if not replica["up"]:
            found.append(f"{name} does not answer")
        elif (replica["lag"] or 0) > LAG_ENTRIES_MAX:
            found.append(f"{name} is {replica['lag']:,} entries behind")
    return "; ".join(found)


@command("show")
@click.argument("partition", type=_PARTITION)
def show(partition: int) -> None:
    """Show one partition as its leader sees it: each member's role, match index, lag and state."""
    app = current()
    try:
        answer = app.client().admin("group", "show", partition)
    except Unavailable as error:
        error.hint = "see what its replicas say: kvcli group ls --problems"
        raise
    names = _names(app.client().admin("status"))
    if app.output.form in ("json", "jsonl"):
        for member in answer["members"]:
            member["name"] = names.get(member["id"])
        app.output.document(answer)
        return
    if app.output.form == "table":
        app.output.line(_headline(answer, names))
    with app.output.rows("members", _MEMBER_COLUMNS) as rows:
        for member in answer["members"]:
            heard = member["heard_ms"]
            rows.add(
                names.get(member["id"], str(member["id"])),
                member["role"],
                member["match"],
                member["lag"],
                member["state"],
                None if heard is None else show_seconds(heard / 1000),
            )


def _headline(answer: Row, names: dict[int, str]) -> str:
    parts = [
        f"partition {answer['partition']}",
        f"{names.get(answer['leader'])} leads in term {answer['term']}",
        f"commit {answer['commit']:,}, applied {answer['applied']:,}",
        f"log {answer['first']:,} to {answer['last']:,}",
    ]
    if answer["outgoing"]:
        voters, outgoing = _listed(answer["voters"], names), _listed(answer["outgoing"], names)
        parts.append(f"JOINT: voters {voters} and {outgoing}")
    elif answer["change"]:
        parts.append(f"a change is under way at entry {answer['change']:,}")
    if answer["transfer"]:
        parts.append(f"leadership goes to {names.get(answer['transfer'])}")
    return " · ".join(parts)


def _verb(verb: str, text: str, done: Callable[[str, Row, dict[int, str]], str]) -> KvCommand:
    """One of the four commands that change something; `done` words what is the case then."""

    @command(verb, help=text)
    @click.argument("partition", type=_PARTITION)
    @click.argument("node")
    @click.option("--dry-run", is_flag=True, help="Only say what would happen, or why it would be refused.")
    def run(partition: int, node: str, dry_run: bool) -> None:
        app = current()
        who: int | str = int(node) if node.isascii() and node.isdecimal() else node
        try:
            answer = app.client().admin("group", verb, partition, who, dry_run)
        except Conflict as refused:
            message = f"{verb} of {node} in partition {partition} is refused: {refused.message}."
            raise Failure(Exit.CONFLICT, message, "REFUSED") from refused
        except OutcomeUnknown as unknown:
            unknown.hint = f"see what became of it: kvcli group show {partition}"
            raise
        _tell(app, answer, done)

    assert isinstance(run, KvCommand)
    return run


def _tell(app: App, answer: Row, done: Callable[[str, Row, dict[int, str]], str]) -> None:
    names = _names(app.client().admin("status"))
    node = names.get(answer["node"], str(answer["node"]))
    voters, learners = _listed(answer["voters"], names), _listed(answer["learners"], names)
    dry = bool(answer.get("dry_run"))
    fields: dict[str, Cell] = {
        "partition": answer["partition"],
        "command": answer["command"],
        "node": node,
        "leader": names.get(answer["leader"]),
        "voters": voters,
        "learners": learners,
        "changed": answer.get("changed"),
        "dry_run": dry,
    }
    if app.output.form in ("json", "jsonl"):
        lists = {name: [names.get(one, str(one)) for one in answer[name]] for name in ("voters", "learners")}
        app.output.document(fields | lists)
        return
    if app.output.form == "csv":
        app.output.record(fields, ())
        return
    what = ("would be: " if dry else "") + done(node, answer, names)
    if "text" in answer:
        what = f"nothing to do, {answer['text']}"
    after = f"voters {voters}" + (f", learners {learners}" if learners else "")
    app.output.line(f"partition {answer['partition']}: {what}; {after}")


transfer_leader = _verb(
    "transfer-leader",
    "Hand the leadership of PARTITION to NODE, a voter that has caught up.",
    lambda node, answer, names: f"{names.get(answer['leader'])} leads",
)
add_learner = _verb(
    "add-learner",
    "Let NODE take part in PARTITION without a vote; it is sent the data.",
    lambda node, answer, names: f"{node} is a learner",
)
promote = _verb(
    "promote",
    "Make NODE, a learner of PARTITION that has caught up, a voter.",
    lambda node, answer, names: f"{node} is a voter",
)
remove = _verb(
    "remove",
    "Take NODE out of PARTITION; its copy of the data stays where it is, unused.",
    lambda node, answer, names: f"{node} is no member",
)


def _names(status: Row) -> dict[int, str]:
    return {node["id"]: node["name"] for node in status["nodes"]}


def _listed(nodes: list[int], names: dict[int, str]) -> str:
    return ",".join(names.get(node, str(node)) for node in nodes)


def _largest_lag(row: Row) -> int | None:
    lags = [replica["lag"] for replica in row["replicas"] if replica["lag"] is not None]
    return max(lags, default=None)


for _command in (list_groups, show, transfer_leader, add_learner, promote, remove):
    group.add_command(_command)
