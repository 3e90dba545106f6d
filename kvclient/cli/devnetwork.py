"""Cuts in the network of a local cluster: which stores are kept from each other.

Every store of a local cluster looks at a file that names the endpoints which it does not connect to
(`dev.cuts`, docs/configuration.md), and repeats in `FILE.taken` what is in force. Clients and routers reach
every store: only what stores say to each other is cut.
"""

from __future__ import annotations

import time
from itertools import combinations

from kvclient.cli import devrun
from kvclient.cli.devcluster import DevCluster, Member, endpoint
from kvclient.cli.failure import Failure
from kvclient.cli.resume import replace_file
from kvclient.errors import Exit

TAKEN_SECONDS = 5.0
_POLL_SECONDS = 0.02

Pair = tuple[str, str]


def parse_sides(cluster: DevCluster, sides: tuple[str, ...]) -> set[Pair]:
    """The pairs of stores that are to be kept from each other. Stores of different sides are; of one side
    alone, each from the other, or a single store from all others.
    """
    groups = [_stores(cluster, side) for side in sides]
    if len(groups) == 1:
        alone = groups[0]
        others = [[store.name for store in cluster.stores if store.name not in alone]]
        groups = [[name] for name in alone] if len(alone) > 1 else [alone, *others]
    named = [name for group in groups for name in group]
    if len(named) != len(set(named)):
        raise Failure(Exit.USAGE, "a store is named twice", "USAGE")
    return {(one, other) for some, rest in combinations(groups, 2) for one in some for other in rest}


def _stores(cluster: DevCluster, side: str) -> list[str]:
    known = {store.name for store in cluster.stores}
    found = [name for name in side.split(",") if name]
    for name in found:
        if name not in known:
            there = ", ".join(sorted(known))
            raise Failure(Exit.USAGE, f"there is no store {name!r}. There are: {there}", "USAGE")
    if not found:
        raise Failure(Exit.USAGE, "a side names at least one store", "USAGE")
    return found


def cut(cluster: DevCluster, pairs: set[Pair]) -> None:
    """Cut exactly these; returns when every store that runs does so. Failure if one does not."""
    written = {store: _text(cluster, store, pairs) for store in cluster.stores}
    for store, text in written.items():
        replace_file(store.cuts_file, text.encode())
    deadline = time.monotonic() + TAKEN_SECONDS
    for store, text in written.items():
        while devrun.is_running(store) and _taken(store) != text:
            if time.monotonic() > deadline:
                raise Failure(
                    Exit.ERROR,
                    f"{store.name} has not taken it: was it started by another version? Start it again:  "
                    f"kvcli dev stop {store.name}{cluster.option}  "
                    f"kvcli dev up --detach{cluster.option}",
                    "NOT_TAKEN",
                )
            time.sleep(_POLL_SECONDS)


def pairs_cut(cluster: DevCluster) -> list[Pair]:
    """What is cut at the moment."""
    by_name = {store.name: store for store in cluster.stores}
    return [
        (one, other)
        for one, other in combinations(by_name, 2)
        if endpoint(by_name[other].ports[0]) in _read(by_name[one]).split()
    ]


def _text(cluster: DevCluster, store: Member, pairs: set[Pair]) -> str:
    return "".join(
        f"{endpoint(port)}\n"
        for other in cluster.stores
        if (store.name, other.name) in pairs or (other.name, store.name) in pairs
        for port in other.ports
    )


def _read(store: Member) -> str:
    try:
        return store.cuts_file.read_text()
    except FileNotFoundError:
        return ""


def _taken(store: Member) -> str | None:
    try:
        return store.cuts_file.with_name(f"{store.cuts_file.name}.taken").read_text()
    except FileNotFoundError:
        return None
