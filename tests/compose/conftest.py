"""An engine, the image, and one composed cluster for each module."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import docker
import pytest

from tests.compose.project import Project, Writer

SERVERS = ("store1", "store2", "store3", "router1", "router2", "monitor")


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    if shutil.which("docker") is None:
        pytest.skip("no Docker engine: there is not even its client")
    asked = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60, check=False)
    if asked.returncode != 0:
        pytest.skip(f"no Docker engine answers: {asked.stderr.strip()}")
    client = docker.from_env(timeout=60)
    yield client
    client.close()


@pytest.fixture(scope="module")
def project(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = Project(engine, f"ringkvtest{os.getpid()}", tmp_path_factory.mktemp("operator"))
    made.compose("build", "store1")
    try:
        made.compose("up", "-d")
        made.wait_until_healthy(*SERVERS)
        made.copy_keys()
        made.kvcli("wait", "--healthy", "--timeout", "100s")
        yield made
    finally:
        made.down()


@pytest.fixture
def writer(project: Project, request: pytest.FixtureRequest) -> Iterator[Writer]:
    """A load; nothing that was acknowledged may be missing at the end."""
    running = Writer(project, request.node.name)
    try:
        running.go_on()
        yield running
    finally:
        running.stop()
    assert running.lost() == []
