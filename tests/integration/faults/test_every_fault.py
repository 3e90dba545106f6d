"""Every fault of this room in one cluster, in any order: what one leaves behind meets the next."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.faults import test_killed_processes, test_paused_processes
from tests.integration.faults.cluster import STORES
from tests.integration.faults.disk import FailingSync
from tests.integration.faults.test_failing_disks import sync_faults
from tests.integration.faults.test_partitioned_network import faults_of, spread
from tests.integration.faults.trial import LONG, Trial, endure


@pytest.mark.long
@pytest.mark.timeout(LONG * 3 + 300)
def test_every_fault_in_any_order(tmp_path: Path) -> None:
    with ExitStack() as stack:
        disks = {node: FailingSync(tmp_path, f"store{node}") for node in STORES}
        cluster, network = spread(stack, tmp_path, {node: disk.prefix for node, disk in disks.items()})
        faults = [
            *test_killed_processes.FAULTS,
            *test_paused_processes.FAULTS,
            *sync_faults(disks),
            *faults_of(network),
        ]
        endure(Trial(cluster), faults, LONG)
