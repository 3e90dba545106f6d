"""Networks that lose what some hosts send to others: in one direction or both, for one store or the leader,
between stores only, between routers and a store only.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.faults.cluster import STORES, Cluster
from tests.integration.faults.network import HERE, Network
from tests.integration.faults.trial import LONG, SHORT, Fault, Trial, endure

CUT_SECONDS = 2.0
"""How long a cut lasts after which nothing has to happen: elections and leases end earlier."""

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

    def part_a_store_from_routers_only(trial: Trial) -> None:
        """It may lead, which nobody can help then."""
        network.part([HERE], [trial.dice.choice(STORES)])
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
        isolate_the_leader,
        nobody_hears_the_leader,
        the_leader_hears_nobody,
        part_the_leader_from_stores_only,
        part_a_store_from_routers_only,
        one_store_does_not_hear_another,
        everybody_is_alone,
    ]


def _another_has_to_lead(trial: Trial, network: Network, *, outgoing: bool, incoming: bool) -> None:
    tag = trial.dice.choice(trial.workload.tags)
    node = trial.cluster.leader(tag)
    network.isolate(node, outgoing=outgoing, incoming=incoming)
    trial.workload.wait_for_writes([tag])
    trial.cluster.until(lambda: trial.cluster.leader(tag) != node, "another leader")
    network.heal()


def run(directory: Path, seconds: float) -> None:
    with ExitStack() as stack:
        network = Network(stack, len(STORES))
        cluster = Cluster(
            stack,
            directory,
            hosts={node: network.address(node) for node in STORES},
            prefixes={node: network.prefix(node) for node in STORES},
        )
        endure(Trial(cluster), faults_of(network), seconds)


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
