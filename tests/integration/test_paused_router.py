"""A router that stood still while the cluster went on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.integration.localcluster import KVCLI, Cluster


def test_a_write_that_lay_in_a_paused_router_is_not_applied_again(tmp_path: Path) -> None:
    """Its retry went through the other router; the store was killed and forgot; then the router went on."""
    cluster = Cluster(tmp_path / "cluster")
    cluster.up("--stores", "1", "--routers", "2")
    try:
        cluster.ready()
        with cluster.connect(timeout=15) as db:
            assert db.increment("counter") == 1
            primary = cluster.processes()[db.ping().router]
            os.kill(primary, signal.SIGSTOP)
            try:
                assert db.increment("counter") == 2
                cluster.dev("kill", "store1")
                start = [KVCLI, "dev", "start", "store1", "--dir", str(cluster.directory)]
                with subprocess.Popen(start, env=cluster.environment()):  # returns when all routers answer
                    assert db.get("counter") == b"2"
                    time.sleep(2.5)  # longer than a router takes for a short hiccup
                    os.kill(primary, signal.SIGCONT)
            finally:
                os.kill(primary, signal.SIGCONT)
            time.sleep(1.5)  # what lay there has been passed on by now
            assert db.get("counter") == b"2"
    finally:
        cluster.dev("down")
