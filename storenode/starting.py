"""Who this store is: told by its data directory, or settled with the others before anything else runs
(docs/control.md section 7).

Owns the order of what is made durable: map, identity, and the end of the claim. Whoever is asked is asked in
a loop of its own; signals end it. Knows nothing of replicas.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from shared import logs, sockets
from shared.clustermap import ClusterMap, Node
from shared.commandline import REFUSED, CannotStart
from shared.config import ConfigError, Problem
from shared.hashing import xxh64
from shared.reactor import Reactor
from storenode import mapfile
from storenode.config import StoreConfig
from storenode.directory import (
    DataDirectory,
    DirectoryRefused,
    Identity,
    check,
    open_directory,
)
from storenode.founders import Founding
from storenode.joining import Joining, Newcomer
from storenode.mapfile import MapFileDamaged
from storenode.registry import Registry

_log = logs.get("starting")


class Network(NamedTuple):
    """`bind` makes the rpc socket, when its time has come; `watch` is told each loop that runs. `is_member`:
    of a name, whether a store or a router of the cluster has it; None: there are no keys, and no names.
    """

    context: sockets.Context
    bind: Callable[[], sockets.Socket]
    watch: Callable[[Reactor], object]
    is_member: Callable[[str], bool] | None = None


class Home(NamedTuple):
    """What a store has that keeps data."""

    directory: DataDirectory
    identity: Identity
    registry: Registry


class Start(NamedTuple):
    """What a store begins with. `first`: the map that the cluster was founded with, None if this node came
    later; `map`: the newest it has. `home`: None on a no-op store. `network.bind` gives the rpc socket.
    """

    node: int
    map: ClusterMap
    first: ClusterMap | None
    home: Home | None
    network: Network


def prepare(config: StoreConfig, noop: bool, network: Network, stack: ExitStack) -> Start | None:
    """None: a signal ended the waiting. ConfigError, CannotStart, DirectoryRefused, OSError. `stack` takes
    what has to be closed.
    """
    first = _first_map(config) if config.cluster.nodes else None
    if noop:
        if first is None:
            raise ConfigError(
                [Problem("", "cluster.join", "a no-op store joins no cluster: give cluster.nodes")]
            )
        return Start(config.node.id, first, first, None, network)
    directory = open_directory(Path(config.data.dir))
    stack.callback(directory.close)
    if first is None:
        return _prepare_joined(config, directory, network)
    return _prepare_founder(config, directory, first, network)


def _home(directory: DataDirectory, identity: Identity) -> Home:
    cluster = xxh64(identity.cluster_id.encode())
    return Home(
        directory, identity, Registry(directory.path, identity.node_id, identity.incarnation, cluster)
    )


# -- a founder


def _prepare_founder(
    config: StoreConfig, directory: DataDirectory, first: ClusterMap, network: Network
) -> Start | None:
    wanted = Identity(first.name, first.cluster_id, config.node.id, first.partition_count, "", True)
    found = directory.identity()
    if found is not None:
        if not found.founder:
            raise DirectoryRefused(
                f"data directory {directory.path} belongs to node {found.node_id}, which joined cluster "
                f"{found.cluster_name} when it ran: give cluster.join instead of cluster.nodes and node.id"
            )
        check(directory.path, found, wanted)
        identity = found if found.incarnation else directory.settle(found)
    else:
        if len(first.nodes) > 1:
            socket = network.bind()
            network = network._replace(bind=lambda: socket)
            if not _may_claim(directory, first, config.node.id, network):
                return None
        identity = directory.settle(wanted)
    directory.forget_claim()
    newest = _read_map(directory, identity) or first
    return Start(identity.node_id, newest, first, _home(directory, identity), network)


def _may_claim(directory: DataDirectory, first: ClusterMap, node: int, network: Network) -> bool:
    """False: a signal ended the waiting. CannotStart if the node was there before, on another disk."""
    reactor = Reactor()
    reactor.stop_on_signals()
    network.watch(reactor)
    founding = Founding(reactor, network.context, network.bind(), first, node)
    try:
        reactor.run()
    finally:
        founding.close()
        reactor.close()
    before = founding.ballot.before
    if before is None:
        return founding.granted
    name = first.node(node).name
    seeds = ", ".join(one.rpc for one in first.nodes if one.id != node)
    lines = [
        f"data directory {directory.path} is empty, but node {node} ({name}) had a disk before: incarnation "
        f"{before.incarnation}, says {before.witness.name}. What it had promised the others was on that "
        "disk, so it cannot come back under its id. If the disk is only not mounted, mount it. If it is "
        "lost, make this store a new node:",
        f"  kvcli node remove {name} --force",
        "then, in its configuration, in the place of node.id and cluster.nodes:",
        f"  cluster: {{name: {first.name}, join: [{seeds}]}}",
        "and start it again.",
    ]
    raise CannotStart("\n".join(lines), REFUSED)


def _first_map(config: StoreConfig) -> ClusterMap:
    section = config.cluster
    nodes = [
        Node(node.id, node.name, node.rpc, node.bus, node.events, node.zone, node.weight)
        for node in section.nodes
    ]
    try:
        return ClusterMap.bootstrap(section.name, section.partitions, section.replicas, nodes)
    except ValueError as error:
        raise ConfigError([Problem("", "cluster", str(error))]) from None


# -- one that joins


def _prepare_joined(config: StoreConfig, directory: DataDirectory, network: Network) -> Start | None:
    identity = directory.identity()
    if identity is None:
        identity = _join(config, directory, network)
        if identity is None:
            return None
    directory.forget_claim()
    if identity.cluster_name != config.cluster.name:
        check(directory.path, identity, identity._replace(cluster_name=config.cluster.name))
    if identity.founder:
        raise DirectoryRefused(
            f"data directory {directory.path} belongs to node {identity.node_id}, a founder of cluster "
            f"{identity.cluster_name}, whose groups begin with cluster.nodes: give node.id and cluster.nodes "
            "as they were, instead of cluster.join"
        )
    newest = _read_map(directory, identity)
    if newest is None:
        here = shlex.quote(str(directory.path))
        raise DirectoryRefused(
            f"data directory {directory.path} has no {mapfile.NAME}: copy that of another store of cluster "
            f"{identity.cluster_name}:  cp OTHER_DATA_DIR/{mapfile.NAME} {here}/"
        )
    return Start(identity.node_id, newest, None, _home(directory, identity), network)


def _join(config: StoreConfig, directory: DataDirectory, network: Network) -> Identity | None:
    """None: a signal ended the waiting. CannotStart if the cluster does not want this store."""
    node, addresses = config.node, config.addresses
    incarnation = directory.claim()
    newcomer = Newcomer(node.name, *addresses, node.zone, node.weight, incarnation)
    reactor = Reactor()
    reactor.stop_on_signals()
    network.watch(reactor)
    joining = Joining(reactor, network.context, newcomer, config.cluster.name, config.cluster.join)
    try:
        reactor.run()
    finally:
        joining.close()
        reactor.close()
    if joining.refusal is not None:
        raise CannotStart(joining.refusal, REFUSED)
    if joining.joined is None:
        return None
    joined = joining.joined
    mapfile.write(directory.path, joined.map)
    _log.info("joined", cluster=joined.map.name, node_id=joined.node, epoch=joined.map.epoch)
    return directory.settle(
        Identity(
            joined.map.name,
            joined.map.cluster_id,
            joined.node,
            joined.map.partition_count,
            incarnation,
            False,
        )
    )


def _read_map(directory: DataDirectory, identity: Identity) -> ClusterMap | None:
    try:
        found = mapfile.read(directory.path)
    except MapFileDamaged as error:
        here = shlex.quote(str(directory.path))
        raise DirectoryRefused(
            f"{error}: copy that of another store of cluster {identity.cluster_name}:  "
            f"cp OTHER_DATA_DIR/{mapfile.NAME} {here}/"
        ) from None
    if found is not None and found.cluster_id != identity.cluster_id:
        raise DirectoryRefused(
            f"{directory.path / mapfile.NAME} is the map of cluster {found.name} (id {found.cluster_id}), "
            f"the data belongs to {identity.cluster_name} (id {identity.cluster_id}): put the right one there"
        )
    return found
