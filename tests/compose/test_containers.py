"""The composed cluster is killed, paused, cut off and replaced under load: no acknowledged write is lost,
writes go on, and it is whole again afterwards.
"""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest

import kvclient
from tests.compose import strangers
from tests.compose.project import PATIENCE_S, Project, Writer, block_of_page, wait_for
from tests.compose.strangers import Place
from tests.documents import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]


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


def test_a_client_of_this_machine_gets_a_key_as_the_page_has_it(project: Project, tmp_path: Path) -> None:
    commands = block_of_page("keys add /keys/operator app1")
    project.play(commands.replace("kv://127.0.0.1:7100,127.0.0.1:7101", project.url), tmp_path)
    assert project.kvcli("get", "app:1") == "hello\n"


LISTENING = {
    **{store: {7200: "rpc", 7201: "bus", 7202: "events"} for store in ("store1", "store2", "store3")},
    **{router: {7100: "front"} for router in ("router1", "router2")},
    "monitor": {7300: "http"},
}
WELCOME = {
    "front": ["client", "admin", "monitor"],
    "rpc": ["monitor", "router", "node"],
    "bus": ["node"],
    "events": ["monitor", "router", "node"],
    "http": [],
}
"""As the table in docs/security.md has it."""


def test_nothing_else_listens(project: Project) -> None:
    for service, ports in LISTENING.items():
        assert project.listening(service) == set(ports), service


@pytest.fixture(scope="module")
def app(project: Project) -> None:
    """A client's key, which the routers know."""
    project.compose(
        "run", "--rm", "-T", "keys", "kvcli", "keys", "add", "/keys/operator", "app", "--read", ""
    )
    project.compose("run", "--rm", "-T", "keys")
    project.copy_keys()

    def known() -> bool:
        try:
            for router in project.url.removeprefix("kv://").split(","):
                key = project.keys / "private" / "app.key"
                kvclient.connect(f"kv://{router}", keys=str(key), connect_timeout=1).close()
        except kvclient.KVError:
            return False
        return True

    wait_for("the routers know the client", known)


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("outside", [True, False], ids=["from this machine", "from the stores' network"])
def test_every_port_answers_its_roles_and_says_nothing_to_anybody_else(
    project: Project, outside: bool
) -> None:
    places = [
        Place(service, domain, "127.0.0.1", project.port(service, port))
        if outside
        else Place(service, domain, service, port)
        for service, ports in LISTENING.items()
        for port, domain in ports.items()
        if not outside or domain in ("front", "http")
    ]
    assert len(places) == (3 if outside else 12)
    if outside:
        heard = strangers.knock(project.keys, places, WELCOME)
    else:
        arguments = ["/keys/operator", json.dumps(WELCOME), *map(json.dumps, places)]
        program = f"{strangers.__file__}:/strangers.py:ro"
        run = ("run", "--rm", "-T", "-v", program, "--entrypoint", "python", "cli", "/strangers.py")
        heard = json.loads(project.compose(*run, *arguments, seconds=PATIENCE_S))
    welcome = sorted([role, str(place)] for place in places for role in WELCOME[place.domain])
    assert [list(who) for who in heard["answered"]] == welcome
    assert [list(who) for who in heard["let_in"]] == welcome
    assert len(heard["told"]) == len(places) * len(strangers.RAW)
    for who, told in heard["told"].items():
        if who.endswith(" http"):
            assert bytes.fromhex(told).startswith(b"HTTP/1.") == who.startswith("HTTP")
        else:
            assert GREETING.match(bytes.fromhex(told)), who


GREETING = re.compile(rb"\xff.{8}\x7f(\x03\x01CURVE\0{15}.{32})?|", re.DOTALL)
"""All that a ZeroMQ port says before it knows who is there, the longer one to who begins as ZeroMQ does."""


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
    with project.cut_off("store3"):
        writer.go_on()
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


def test_a_store_whose_volume_is_lost_is_replaced_as_the_page_has_it(
    project: Project, writer: Writer, tmp_path: Path
) -> None:
    """The last test of the module: the cluster has other stores afterwards."""
    lost = project.container("store3")
    lost.kill("SIGKILL")
    lost.remove()
    project.engine.volumes.get(f"{project.name}_store3").remove()
    writer.go_on()
    project.compose("up", "-d", "--no-deps", "store3")
    wait_for("store3 refuses", lambda: project.container("store3").attrs["State"]["ExitCode"] == 78)
    assert b"kvcli node remove store3 --force" in project.container("store3").logs()

    project.add_file("more.yml", block_of_page("# more.yml"), tmp_path)
    project.play("".join(block_of_page("up -d store4").splitlines(keepends=True)[:3]), tmp_path)
    project.play(block_of_page("node remove store3"), tmp_path)
    project.wait_until_healthy("store4")
    nodes = json.loads(project.kvcli("-o", "json", "node", "ls"))
    assert "store3" not in str(nodes)
    assert "store4" in str(nodes)
    writer.go_on()
