"""A store joins a local cluster that runs: start it, and wait until the routers know it.

Owns when it counts as a member. What it asks the cluster is the store's own matter (docs/control.md section
7).
"""

from __future__ import annotations

import time
from typing import Any

from kvclient.cli import devmembers, devrun
from kvclient.cli.devcluster import DevCluster, Member
from kvclient.cli.failure import Failure
from kvclient.errors import Exit, KVError

_POLL_SECONDS = 0.1

Row = dict[str, Any]


def join(cluster: DevCluster, member: Member) -> Row:
    """Start `member` and give its row of `kvcli status` once it is up in the eyes of every router that runs.
    Failure: it ended, or the time is over; one that never became a node is forgotten then.
    """
    try:
        routers = [router for router in cluster.routers if devrun.is_running(router)]
        if not routers:
            raise Failure(
                Exit.UNAVAILABLE,
                f"no router runs, so nobody can tell. Start it:  kvcli dev up --detach{cluster.option}",
                "NOT_RUNNING",
            )
        children = devrun.start([member])
        return _wait(cluster, member, routers, children)
    except BaseException:
        if not devmembers.has_joined(member.data):
            devrun.kill([member])
            cluster.forget(member)
        raise


def _wait(cluster: DevCluster, member: Member, routers: list[Member], children: devrun.Children) -> Row:
    deadline = time.monotonic() + devrun.READY_SECONDS
    row: Row = {}
    for router in routers:
        while (found := _row(router, member.name, cluster.keys)) is None:
            if devrun.ended(member, children):
                raise Failure(
                    Exit.ERROR,
                    f"{member.name} ended while joining. Its log says:\n{devrun.log_tail(member)}",
                    "START_FAILED",
                )
            if time.monotonic() > deadline:
                raise Failure(
                    Exit.UNAVAILABLE,
                    f"{member.name} is no member after {devrun.READY_SECONDS:.0f} s. "
                    f"What it waits for:  kvcli dev logs {member.name}{cluster.option}",
                    "NOT_READY",
                )
            time.sleep(_POLL_SECONDS)
        row = found
    return row


def _row(router: Member, name: str, keys: str) -> Row | None:
    """As this router sees it; None if it does not know it, or does not reach it."""
    from kvclient import connect

    try:
        with connect(f"kv://127.0.0.1:{router.ports[0]}", timeout=2.0, keys=keys) as client:
            nodes: list[Row] = client.admin("status")["nodes"]
    except KVError:
        return None
    return next((node for node in nodes if node["name"] == name and node["reachable"]), None)
