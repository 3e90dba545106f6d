"""What tests of a replica are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.storenode.replicaworld import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Three replicas; at the end nobody waits for anything."""
    made = World(tmp_path)
    yield made
    made.cut.clear()
    made.tick(30)  # whoever waits for a leader or a quorum has an answer by then
    for store in made.stores.values():
        assert store.budget.used == 0, "every write gives its bytes back, whatever becomes of it"
        assert store.groups.idle, "every write and every read is answered"
    made.close()
