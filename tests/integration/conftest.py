"""A real local cluster per test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.localcluster import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """3 stores, 2 routers, running; stopped and checked for a clean end after the module."""
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        running.up("--stores", "3", "--routers", "2")
        yield running
    finally:
        running.dev("down")
