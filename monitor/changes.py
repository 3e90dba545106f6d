"""What happened between two pictures, in sentences: the recent events. Owns the words; keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kvclient.health import CRITICAL, WARNING, is_led, ranges
from monitor import reading
from monitor.picture import OK, Picture, Row, StoreSeen

MOVES_TOLD: Final = 3
"""Of moves that end in the same second; more are counted."""

Change = tuple[str, str]
"""Level and text."""


def between(before: Picture, after: Picture) -> list[Change]:
    """What to tell people of."""
    if before.map is None or after.map is None:
        return []
    return [
        *_stores(before, after),
        *_routers(before, after),
        *_controller(before, after),
        *_leaders(before, after),
        *_moves(before, after),
    ]


def _stores(before: Picture, after: Picture) -> Iterator[Change]:
    known = {store.id: store for store in before.stores}
    for store in after.stores:
        was = known.pop(store.id, None)
        if was is None:
            yield OK, f"{store.name} has joined the cluster"
        else:
            yield from _store(was, store)
    for store in known.values():
        yield OK, f"{store.name} has left the cluster"


def _store(was: StoreSeen, store: StoreSeen) -> Iterator[Change]:
    if store.gone and not was.gone:
        yield WARNING, f"{store.name} is silent"
    elif was.gone and not store.gone and store.figures:
        yield OK, f"{store.name} is heard"
    elif _pid(was) is not None and _pid(store) not in (None, _pid(was)):
        yield WARNING, f"{store.name} was restarted"
    if store.state != was.state and store.figures and was.figures:
        level = OK if store.state in ("up", "draining") else WARNING
        yield level, f"{store.name} is {store.state}, before {was.state}"


def _pid(process: Any) -> float | None:
    return reading.number(process.figures, "pid")


def _routers(before: Picture, after: Picture) -> Iterator[Change]:
    known = {router.front: router for router in before.routers}
    for router in after.routers:
        was = known.pop(router.front, None)
        if was is None:
            yield OK, f"{router.name} is there, at {router.front}"
        elif router.gone and not was.gone:
            yield WARNING, f"{router.name} does not answer"
        elif was.gone and not router.gone and router.figures:
            yield OK, f"{router.name} answers"
        elif _pid(was) is not None and _pid(router) not in (None, _pid(was)):
            yield WARNING, f"{router.name} was restarted"
    for router in known.values():
        yield OK, f"{router.name} is forgotten"


def _controller(before: Picture, after: Picture) -> Iterator[Change]:
    if after.controller != before.controller:
        if after.controller:
            yield OK, f"the controller runs on {after.names.get(after.controller, after.controller)}"
        else:
            yield WARNING, "no controller answers"


def _leaders(before: Picture, after: Picture) -> Iterator[Change]:
    changed: dict[tuple[int, int], list[int]] = {}
    for was, row in zip(before.table, after.table, strict=False):
        pair = (_leader(was), _leader(row))
        if pair[0] != pair[1]:
            changed.setdefault(pair, []).append(row["partition"])
    names = after.names
    for (old, new), partitions in changed.items():
        which, verb = _partitions(partitions), "is" if len(partitions) == 1 else "are"
        if not new:
            yield CRITICAL, f"{which} {'has' if verb == 'is' else 'have'} no leader"
        else:
            since = f", before by {names.get(old, old)}" if old else ""
            yield OK, f"{which} {verb} led by {names.get(new, new)}{since}"


def _leader(row: Row) -> int:
    leader: int = row["leader"]
    return leader if is_led(row) else 0


def _partitions(numbers: list[int]) -> str:
    return f"partition{'s' * (len(numbers) > 1)} {ranges(numbers)}"


def _moves(before: Picture, after: Picture) -> Iterator[Change]:
    if before.show is None or after.show is None:
        return
    known = {move["id"]: move for move in moves(before)}
    now = {move["id"] for move in moves(after)}
    queued = len(now - known.keys())
    if queued:
        yield OK, f"{queued} move{'s' * (queued > 1)} queued"
    ended = [move for identity, move in known.items() if identity not in now]
    if len(ended) > MOVES_TOLD:
        yield OK, f"{len(ended)} moves have ended"
        return
    names = after.names
    for move in ended:
        source, target = names.get(move["source"], "nobody"), names.get(move["target"], "nobody")
        yield OK, f"the move of partition {move['partition']} from {source} to {target} has ended"


def moves(picture: Picture) -> list[Row]:
    """The moves that the controller tells of, as far as they are understood."""
    told = (picture.show or {}).get("moves")
    rows = told if isinstance(told, (list, tuple)) else ()
    whole = ("id", "partition", "source", "target")
    return [row for row in rows if type(row) is dict and all(type(row.get(name)) is int for name in whole)]
