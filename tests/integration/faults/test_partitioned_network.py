"""Networks that lose what some hosts send to others: in one direction or both, for one store or the leader,
between stores only, between routers and a store only.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.faults.cluster import ROUTERS, STORES, Cluster
from tests.integration.faults.network import HERE, Network
from tests.integration.faults.trial import LONG, SHORT, Fault, Trial, endure

CUT_SECONDS = 1.2
"""How long a cut lasts after which nothing has to happen: elections and leases end earlier."""

GIVEN_UP_SECONDS = 4.5
"""After so long a silence a router takes a store for lost (router/backends.py)."""

SHORT_FAULTS = 4
"""Of the list, in the short form: each is an election and a recovery, of seconds."""

PROBE_SECONDS = 20.0
SEND = """
import socket, sys
address, port, text = sys.argv[1:]
socket.socket(type=socket.SOCK_DGRAM).sendto(text.encode(), (address, int(port)))
"""


def faults_of(network: Network) -> list[Fault]:
    def isolate_the_leader(trial: Trial) -> None:
        _another_has_to_lead(trial, network, outgoing=True, incoming=True)

    def nobody_hears_the_leader(trial: Trial) -> None:
        _another_has_to_lead(trial, network, outgoing=True, incoming=False)

    def the_leader_hears_nobody(trial: Trial) -> None:
        """The others still hear it, and must not wait for it."""
        _another_has_to_lead(trial, network, outgoing=False, incoming=True)

    def part_the_leader_from_stores_only(trial: Trial) -> None:
        """Clients still reach it: it must not answer from what it has."""
        tag = trial.dice.choice(trial.workload.tags)
        node = trial.cluster.leader(tag)
        network.part([node], trial.others(node))
        trial.workload.wait_for_writes([tag])
        trial.hold(CUT_SECONDS)
        network.heal()

    def part_the_leader_and_a_router_from_all_others(trial: Trial) -> None:
        """Clients of that router find nobody else to ask, while those of the other one write elsewhere: at
        once, for that one has given the leader up before.
        """
        near, far = map(host_of, trial.dice.sample(ROUTERS, 2))
        tag = trial.dice.choice(trial.workload.tags)
        node = trial.cluster.leader(tag)
        network.part([node], [far])
        trial.hold(GIVEN_UP_SECONDS)
        network.part([node, near], [*trial.others(node), far])
        trial.workload.wait_for_writes([tag])
        trial.hold(CUT_SECONDS)
        network.heal()

    def part_a_store_from_routers_only(trial: Trial) -> None:
        """It may lead, which nobody can help then."""
        network.part(map(host_of, ROUTERS), [trial.dice.choice(STORES)])
        trial.hold(CUT_SECONDS)
        network.heal()

    def one_store_does_not_hear_another(trial: Trial) -> None:
        """If it does not hear its leader it asks for votes, of those who have heard the leader."""
        network.cut(*trial.dice.sample(STORES, 2))
        trial.workload.wait_for_writes()
        trial.hold(CUT_SECONDS)
        trial.workload.wait_for_writes()
        network.heal()

    def everybody_is_alone(trial: Trial) -> None:
        network.part([1], [2, 3])
        network.part([2], [3])
        trial.hold(CUT_SECONDS)
        network.heal()

    return [
        nobody_hears_the_leader,
        the_leader_hears_nobody,
        part_the_leader_and_a_router_from_all_others,
        part_the_leader_from_stores_only,
        one_store_does_not_hear_another,
        isolate_the_leader,
        part_a_store_from_routers_only,
        everybody_is_alone,
    ]


def _another_has_to_lead(trial: Trial, network: Network, *, outgoing: bool, incoming: bool) -> None:
    tag = trial.dice.choice(trial.workload.tags)
    node = trial.cluster.leader(tag)
    network.isolate(node, outgoing=outgoing, incoming=incoming)
    trial.resumed["cut off"].append(trial.workload.wait_for_writes([tag]))
    trial.cluster.until(lambda: trial.cluster.leader(tag) != node, "another leader")
    network.heal()


def host_of(router: str, stores: Sequence[int] = STORES) -> int:
    """The hosts behind those of the stores, which have the numbers of their nodes."""
    return len(stores) + 1 + ROUTERS.index(router)


def spread(
    stack: ExitStack,
    directory: Path,
    prefixes: Mapping[int, list[str]] | None = None,
    stores: Sequence[int] = STORES,
) -> tuple[Cluster, Network]:
    """A cluster with a host for each process; `prefixes` in front of the stores' commands."""
    network = Network(stack, len(stores) + len(ROUTERS))
    hosts: dict[int | str, int] = {node: node for node in stores}
    hosts |= {router: host_of(router, stores) for router in ROUTERS}
    before: dict[int | str, list[str]] = dict((prefixes or {}).items())
    cluster = Cluster(
        stack,
        directory,
        hosts={name: network.address(host) for name, host in hosts.items()},
        prefixes={name: network.prefix(host) + before.get(name, []) for name, host in hosts.items()},
        stores=stores,
    )
    return cluster, network


def run(directory: Path, seconds: float) -> None:
    with ExitStack() as stack:
        cluster, network = spread(stack, directory)
        faults = faults_of(network)
        endure(Trial(cluster), faults[:SHORT_FAULTS] if seconds == SHORT else faults, seconds)


def test_a_cut_loses_what_one_host_sends_to_another_and_nothing_else() -> None:
    with ExitStack() as stack:
        network = Network(stack, 2)
        ear = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        ear.bind((network.address(HERE), 0))
        ear.settimeout(PROBE_SECONDS)

        def send(host: int, text: str) -> None:
            to = [network.address(HERE), str(ear.getsockname()[1])]
            command = [*network.prefix(host), sys.executable, "-c", SEND, *to, text]
            subprocess.run(command, check=True, timeout=PROBE_SECONDS)

        network.cut(1, HERE)
        network.cut(HERE, 2)
        network.cut(2, 1)
        send(1, "lost")
        send(2, "heard")
        assert ear.recv(100) == b"heard"
        network.heal()
        send(1, "heard again")
        assert ear.recv(100) == b"heard again"


def test_a_parted_cluster_says_nothing_that_is_not_true(tmp_path: Path) -> None:
    run(tmp_path, SHORT)


@pytest.mark.long
@pytest.mark.timeout(LONG * 3 + 180)
def test_a_parted_cluster_for_long(tmp_path: Path) -> None:
    run(tmp_path, LONG)
