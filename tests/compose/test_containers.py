"""The composed cluster is killed, paused, cut off and replaced under load: no acknowledged write is lost,
writes go on, and it is whole again afterwards.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import kvclient
from tests.compose.project import IMAGE, PATIENCE_S, ROOT, Project, Writer, wait_for

pytestmark = pytest.mark.timeout(1500)


def whole(project: Project) -> None:
    project.kvcli("wait", "--healthy", "--timeout", "100s")


README = re.compile(
    r"^docker compose -f compose/docker-compose.yml run --rm cli (.*?)(?:\s+# (.*))?$", re.MULTILINE
)


def test_put_and_get_as_the_readme_has_it(project: Project) -> None:
    lines = README.findall((ROOT / "README.md").read_text())
    assert [command for command, _ in lines] == ["put a 1", "get a"]
    for command, answer in lines:
        said = project.kvcli(*command.split())
        assert not answer or said == f"{answer}\n"


def test_processes_have_no_rights_that_they_do_not_need(project: Project) -> None:
    for service in ("store1", "router1"):
        container = project.container(service)
        assert container.exec_run(["id", "-u"]).output.strip() == b"10001"
        assert container.exec_run(["touch", "/opt/ringkv/x"]).exit_code != 0
        assert container.attrs["HostConfig"]["CapDrop"] == ["ALL"]


def test_nobody_without_a_key_gets_an_answer(project: Project) -> None:
    """From this machine, and from a container in the stores' own network."""
    project.kvcli("put", "secret", "1")
    with (
        pytest.raises(kvclient.KVError),
        kvclient.connect(project.url, timeout=5) as stranger,
    ):
        stranger.get("secret")
    ask = "import zmq; s = zmq.Context().socket(zmq.DEALER); s.linger = 0; s.connect('tcp://{}'); "
    ask += "s.send(bytes([0x93, 1, 4, 7])); print(s.poll(3000))"  # PING of docs/architecture.md section 3
    for address in ("store1:7200", "store2:7200", "store3:7200"):
        said = project.compose(
            "run",
            "--rm",
            "-T",
            "--entrypoint",
            "python",
            "cli",
            "-c",
            ask.format(address),
            seconds=PATIENCE_S,
        )
        assert said.strip() == "0", address


def test_stores_are_not_reached_from_outside(project: Project) -> None:
    for number in (1, 2, 3):
        assert not any(project.container(f"store{number}").ports.values())


def test_the_monitor_sees_all_of_it(project: Project) -> None:
    address = f"http://127.0.0.1:{project.port('monitor', 7300)}/api/v1/status"

    def all_are_heard() -> bool:
        with urllib.request.urlopen(address, timeout=10) as answer:
            status = json.load(answer)
        heard = [one for one in (*status["nodes"], *status["routers"]) if not one["gone"]]
        return status["verdict"]["level"] == "ok" and len(heard) == 5

    wait_for("three stores and two routers", all_are_heard)


def test_a_killed_store(project: Project, writer: Writer) -> None:
    store = project.container("store1")
    store.kill("SIGKILL")
    writer.go_on()
    store.start()
    project.wait_until_healthy("store1")
    whole(project)
    writer.go_on()


def test_a_paused_store(project: Project, writer: Writer) -> None:
    store = project.container("store2")
    store.pause()
    try:
        writer.go_on()
    finally:
        store.unpause()
    whole(project)
    writer.go_on()


def test_a_store_that_is_cut_off(project: Project, writer: Writer) -> None:
    network, store = project.network(), project.container("store3")
    network.disconnect(store)
    try:
        writer.go_on()
    finally:
        network.connect(store, aliases=["store3"])
    whole(project)
    writer.go_on()


def test_a_killed_router(project: Project, writer: Writer) -> None:
    project.container("router1").kill("SIGKILL")
    writer.go_on()
    project.container("router1").start()
    project.wait_until_healthy("router1")


def test_containers_that_are_made_anew_keep_the_data(project: Project, writer: Writer) -> None:
    for service in ("store1", "store2", "store3"):
        project.container(service).stop(timeout=20)
        project.container(service).remove()
        project.compose("up", "-d", "--no-deps", service)
        project.wait_until_healthy(service)
        whole(project)
    writer.go_on()


@pytest.fixture
def newcomer(project: Project, tmp_path: Path) -> Iterator[Any]:
    """A fourth store, with the configuration that kvcli prints for it, and keys of its own."""
    arguments = ("--rpc", "tcp://store4:7200", "--data-dir", "/var/lib/ringkv/data")
    config = yaml.safe_load(project.kvcli("node", "add", "store4", *arguments))
    config["listen"] = {"rpc": "tcp://0.0.0.0:7200"}
    config["node"]["rpc"] = "tcp://store4:7200"
    config["security"] = {"keys": "/etc/ringkv/keys"}
    path = tmp_path / "store4.yaml"
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o644)
    add = ("kvcli", "keys", "add", "/keys/operator", "store4", "--role", "node", "--address", "store4")
    project.compose("run", "--rm", "-T", "keys", *add)
    volume = project.engine.volumes.create(f"{project.name}_keys-store4")
    project.compose("run", "--rm", "-T", "-v", f"{volume.name}:/keys/store4", "keys")
    network = project.network().name
    container = project.engine.containers.create(
        IMAGE,
        ["kv-store", "--config", "/etc/ringkv/store.yaml"],
        name=f"{project.name}_store4",
        volumes={
            str(path): {"bind": "/etc/ringkv/store.yaml", "mode": "ro"},
            volume.name: {"bind": "/etc/ringkv/keys", "mode": "ro"},
        },
        network=network,
        networking_config={network: project.engine.api.create_endpoint_config(aliases=["store4"])},
    )
    yield container
    container.remove(force=True, v=True)
    volume.remove()


def test_a_store_whose_disk_is_lost_is_replaced_by_a_new_one(
    project: Project, writer: Writer, newcomer: Any
) -> None:
    """The last test of the module: the cluster has other stores afterwards."""
    newcomer.start()
    wait_for("store4 joins", lambda: "store4" in project.kvcli("-o", "json", "node", "ls"))
    lost = project.container("store3")
    lost.kill("SIGKILL")
    lost.remove(v=True)
    writer.go_on()
    wait_for("store3 is missed", lambda: '"down"' in project.kvcli("-o", "json", "node", "ls"))
    project.kvcli("node", "remove", "store3", "--force", "--yes", "--wait", "--within", "100s")
    whole(project)
    assert "store3" not in project.kvcli("-o", "json", "node", "ls")
    writer.go_on()
