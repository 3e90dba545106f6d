"""What tests of the groups of a node are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.storenode.groups.writes import PARTITIONS
from tests.unit.storenode.replicaworld import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Three stores with the same partitions; store 1 leads them all. Logs are short."""
    made = World(tmp_path, partitions=PARTITIONS, segment_bytes=1 << 16, log_bytes_max=1 << 17)
    made.lead()
    made.tick()
    yield made
    made.close()
