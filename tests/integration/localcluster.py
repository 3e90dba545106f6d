"""A real local cluster, run by `kvcli dev` on ports that it finds free."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kvclient

KVCLI = str(Path(sys.executable).with_name("kvcli"))


class Cluster:
    """The cluster in `directory`, driven the way an operator would: through kvcli."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = ""
        self.monitor = ""
        self.secure = False

    @property
    def keys(self) -> Path:
        """Of a cluster with keys."""
        return self.directory / "keys"

    def kvcli(
        self, *arguments: str, check: bool = True, timeout: float = 110, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run kvcli against this cluster, its output captured as bytes; `check`: it must exit 0."""
        done = subprocess.run(
            [KVCLI, *arguments],
            env=self.environment(),
            capture_output=True,
            timeout=timeout,
            check=False,
            **options,
        )
        assert not check or done.returncode == 0, (
            f"kvcli {arguments}: {done.returncode} {done.stderr.decode()}"
        )
        return done

    def environment(self) -> dict[str, str]:
        keys = str(self.keys) if self.secure else ""
        return {**os.environ, "RINGKV_URL": self.url, "RINGKV_KEYS": keys, "NO_COLOR": "1"}

    def dev(self, verb: str, *arguments: str) -> bytes:
        return bytes(self.kvcli("dev", verb, *arguments, "--dir", str(self.directory)).stdout)

    def up(self, *arguments: str) -> None:
        self.dev("up", "--detach", "--port-base", "0", *arguments)
        shape = json.loads((self.directory / "cluster.json").read_text())
        self.url = "kv://" + ",".join(
            f"127.0.0.1:{shape['port_base'] + number}" for number in range(shape["routers"])
        )
        self.monitor = f"127.0.0.1:{shape['port_base'] + 200}"
        self.secure = shape["secure"]

    def connect(self, **options: Any) -> kvclient.Client[bytes]:
        return kvclient.connect(self.url, **{"keys": str(self.keys) if self.secure else "", **options})

    def ready(self) -> None:
        self.kvcli("wait", "--ready", "--timeout", "60s")

    def nodes(self) -> list[dict[str, Any]]:
        """What `kvcli node ls` tells of each store of the map."""
        told = json.loads(self.kvcli("-o", "json", "node", "ls").stdout)
        return list(told["nodes"] if isinstance(told, dict) else told)

    def wait_until_missed(self, name: str, seconds: float = 60) -> None:
        """Until the controller has not heard the store for so long that it may be removed by force."""
        deadline = time.monotonic() + seconds
        while next(node["state"] for node in self.nodes() if node["name"] == name) == "up":
            assert time.monotonic() < deadline, f"nobody misses {name}"
            time.sleep(0.2)

    def processes(self) -> dict[str, int]:
        """Process id by name, from the pid files that kvcli dev keeps."""
        files = sorted(self.directory.glob("run/*.pid"))
        return {path.stem: int(json.loads(path.read_text())["pid"]) for path in files}


def resident_bytes(process_id: int) -> int:
    """Resident memory of a live process."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(process_id)
