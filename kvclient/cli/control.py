"""What the commands about the cluster's shape share: asking the controller, waiting for what it does.

Owns the wording of its refusals and of waiting. The commands' names, arguments and answers are those of
docs/control.md section 4; routers pass them on (docs/protocol.md section 6, `control`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgpack

from kvclient.cli.app import App
from kvclient.cli.failure import Failure
from kvclient.cli.progress import Progress
from kvclient.cli.retrying import is_transient
from kvclient.cli.units import show_bytes, show_seconds
from kvclient.errors import Conflict, ConnectError, Exit, InvalidRequest, KVError, OutcomeUnknown, Unavailable

CONTROL: Final = 0xFFFF
"""The number of the control partition."""

# The controller looks at the cluster once a second: asking more often shows nothing new.
_POLL_SECONDS = 0.5

Row = dict[str, Any]


class Left(NamedTuple):
    """What there is still to do: replicas (0: done), their bytes, and why nothing happens ("": it does)."""

    replicas: int
    bytes: int
    waits: str


def ask(
    app: App, what: str, command: str, arguments: dict[str, Any] | None = None, dry_run: bool = False
) -> Row:
    """The controller's answer; `what` is the command in words, for when it is refused."""
    packed = msgpack.packb(arguments or {}, use_bin_type=True)
    try:
        answer: Row = app.client().admin("control", command, packed, dry_run)
    except Conflict as refused:
        text = f"{what} is refused: {refused.message.rstrip('.')}."
        raise Failure(Exit.CONFLICT, text, "REFUSED") from refused
    except InvalidRequest as wrong:
        raise Failure(Exit.USAGE, f"{what}: {wrong.message.rstrip('.')}.", "INVALID_REQUEST") from wrong
    except OutcomeUnknown as unknown:
        unknown.hint = "See what became of it: kvcli node ls, kvcli rebalance status"
        raise
    except ConnectError:
        raise
    except Unavailable as error:
        error.hint = "Reads and writes do not need the controller; who is missing: kvcli status"
        raise
    return answer


def show(app: App) -> Row:
    """What the controller knows of the whole cluster."""
    return ask(app, "asking the controller", "show")


def names(shown: Row) -> dict[int, str]:
    """By id; 0, which stands for no node, is "-"."""
    return {0: "-"} | {node["id"]: node["name"] for node in shown["nodes"]}


def find(shown: Row, node: str) -> Row | None:
    """The node of that name, or of that id."""
    found = [one for one in shown["nodes"] if node in (one["name"], str(one["id"]))]
    return min(found, key=lambda one: bool(one["name"] != node), default=None)


def partition_name(number: int) -> int | str:
    """`control` for the control partition."""
    return "control" if number == CONTROL else number


def left_of(moves: list[Row], held: int = 0) -> Left:
    """Of these moves; `held`: how many replicas there are to move at least, queued already or not."""
    size = sum(int((move["bytes"] or 0) * (1 - (move["done"] or 0))) for move in moves)
    waits = [move["waits"] for move in moves]
    return Left(max(len(moves), held), size, waits[0] if waits and all(waits) else "")


def wait_until_done(
    app: App, what: str, look: Callable[[Row], Left], within: float | None, again: str
) -> None:
    """Watches until nothing is left, drawing progress on a terminal; without one, each new reason why nothing
    happens is told once. Failure when it takes longer than `within`; `again` is the command that goes on
    watching. Trouble of the cluster is waited for, too.
    """
    began = time.monotonic()
    progress: Progress | None = None
    replicas, size, told = 0, 0, ""
    try:
        while True:
            try:
                left = look(show(app))
                trouble = left.waits
                if not left.replicas:
                    break
                if progress is None:
                    replicas, size = left.replicas, left.bytes
                    unit = f"of {replicas} replicas done"
                    progress = Progress(f"{what}:", size, not app.settings.quiet, unit)
                note = f" · waits: {trouble}" if trouble else f" · {show_bytes(left.bytes)} left"
                progress.update(max(0, replicas - left.replicas), max(0, size - left.bytes), note)
            except KVError as error:
                if not is_transient(error):
                    raise
                trouble = error.message
                if isinstance(error, ConnectError):
                    app.close()
            if within is not None and time.monotonic() - began > within:
                reason = f" It waits: {trouble}." if trouble else ""
                text = (
                    f"{what} is not done after {show_seconds(within)} and goes on.{reason} Watch it: {again}"
                )
                raise Failure(Exit.UNAVAILABLE, text, "NOT_DONE")
            if trouble and trouble != told and (progress is None or not progress.shown):
                app.note(f"{what} waits: {trouble}")
            told = trouble
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        app.note(f"{what} goes on without being watched; watch it: {again}")
        raise
    finally:
        if progress is not None:
            progress.clear()
    app.note(f"{what}: done after {show_seconds(time.monotonic() - began)}")
