"""`kvcli dev` without servers: layout, ports, configuration, pid files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from kvclient.cli import devrun, processes
from kvclient.cli.devcluster import (
    ROUTERS_MAX,
    STORES_MAX,
    DevCluster,
    Shape,
    default_directory,
    find_port_base,
    is_free,
    require_free,
)
from kvclient.cli.failure import Failure
from kvclient.cli.main import run
from kvclient.errors import Exit
from kvclient.keys import load


def test_ports_are_laid_out_as_documented() -> None:
    cluster = DevCluster(Path("/x"), Shape(3, 2, 16, 7100))
    ports = {member.name: member.ports for member in cluster.members}
    assert ports == {
        "store1": (7200, 7201, 7202),
        "store2": (7210, 7211, 7212),
        "store3": (7220, 7221, 7222),
        "router1": (7100,),
        "router2": (7101,),
        "monitor": (7300,),
    }
    many = DevCluster(Path("/x"), Shape(STORES_MAX, ROUTERS_MAX, 16, 7100))
    ports_of_all = [port for member in many.members for port in member.ports]
    assert len(set(ports_of_all)) == len(ports_of_all)
    assert cluster.url == "kv://127.0.0.1:7100,127.0.0.1:7101"


def test_a_secure_cluster_has_a_key_for_each_process_and_keeps_them(tmp_path: Path) -> None:
    cluster = DevCluster(tmp_path / "dev", Shape(2, 1, 16, 7100, secure=True))
    cluster.save()
    known = load(tmp_path / "dev" / "keys")
    roles = {name: one.role for name, one in known.certificates.items()}
    processes = {"store1": "node", "store2": "node", "router1": "router", "monitor": "monitor"}
    assert roles == {**processes, "admin": "admin"}
    assert set(known.private_names()) == roles.keys()
    for member in cluster.members:
        written = yaml.safe_load(member.config_file.read_text())
        assert written["security"] == {"keys": str(tmp_path / "dev" / "keys")}
        for port in member.ports:
            expected = known.server(f"127.0.0.1:{port}", "node", "router")
            assert member.role == "monitor" or (expected is not None and expected.name == member.name)
    loaded = DevCluster.load(tmp_path / "dev")
    assert loaded is not None
    loaded.add("store9", None)
    again = load(tmp_path / "dev" / "keys").certificates
    assert again.keys() == roles.keys() | {"store9"}
    assert all(again[name] == one for name, one in known.certificates.items())
    cluster.purge()
    assert not (tmp_path / "dev").exists()


def test_a_cluster_file_from_before_there_were_keys_is_read(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"stores": 1, "routers": 1, "partitions": 16, "port_base": 7100}')
    cluster = DevCluster.load(tmp_path)
    assert cluster is not None
    assert cluster.keys == ""


def test_configurations_are_yaml_with_the_documented_fields(tmp_path: Path) -> None:
    directory = tmp_path / "with 'quotes\" and ä: #"
    cluster = DevCluster(directory, Shape(2, 1, 16, 7100))
    cluster.save()
    router = yaml.safe_load(cluster.routers[0].config_file.read_text())
    store = yaml.safe_load(cluster.stores[1].config_file.read_text())
    assert router == {
        "router": {"name": "router1", "listen": "tcp://127.0.0.1:7100"},
        "stores": ["tcp://127.0.0.1:7200", "tcp://127.0.0.1:7210"],
    }
    assert yaml.safe_load(cluster.monitor.config_file.read_text()) == {
        "http": {"listen": "tcp://127.0.0.1:7300"},
        "stores": router["stores"],
    }
    assert store["node"] == {"id": 2, "name": "store2"}
    assert store["data"]["dir"] == str(directory / "data" / "store2")
    assert store["cluster"]["partitions"] == 16
    assert [node["rpc"] for node in store["cluster"]["nodes"]] == router["stores"]
    loaded = DevCluster.load(directory)
    assert loaded is not None
    assert loaded.shape == cluster.shape


def test_a_damaged_directory_is_named(tmp_path: Path) -> None:
    assert DevCluster.load(tmp_path) is None
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(Failure, match="damaged"):
        DevCluster.load(tmp_path)


def test_members_are_selected_by_name_and_group() -> None:
    cluster = DevCluster(Path("/x"), Shape(2, 1, 16, 7100))
    assert [member.name for member in cluster.select(("router1", "stores", "store1"))] == [
        "router1",
        "store1",
        "store2",
    ]
    assert [member.name for member in cluster.select(("all",))] == ["store1", "store2", "router1", "monitor"]
    with pytest.raises(Failure, match="no 'store9'") as caught:
        cluster.select(("store9",))
    assert caught.value.exit_code == Exit.USAGE


def test_a_taken_port_is_named_with_its_member_and_the_remedy() -> None:
    base = find_port_base(1, 1, 16)
    members = DevCluster(Path("/x"), Shape(1, 1, 16, base)).members
    require_free(members)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", base + 101))
        holder.listen(1)
        assert not is_free(base + 101)
        with pytest.raises(Failure, match=rf"port {base + 101} is in use, store1 needs it.*--port-base 0"):
            require_free(members)
    require_free(members)


def test_free_ports_are_below_the_outgoing_ones() -> None:
    for _ in range(20):
        base = find_port_base(3, 2, 16)
        assert 20_000 <= base < 32_768 - 130


@pytest.fixture
def sleeper(tmp_path: Path):  # type: ignore[no-untyped-def]
    pid_file, log = tmp_path / "p.pid", tmp_path / "log"
    program = "import time; print('up', flush=True); time.sleep(60)"
    child = processes.spawn([sys.executable, "-c", program], tmp_path, pid_file, log)
    deadline = time.monotonic() + 20
    while not log.exists() or not log.read_bytes():
        assert time.monotonic() < deadline, "the interpreter does not start"
        time.sleep(0.01)
    yield child, pid_file
    child.kill()
    child.wait()


def test_a_recorded_process_is_signalled(sleeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    child, pid_file = sleeper
    identity = processes.recorded(pid_file)
    assert identity is not None
    assert identity.pid == child.pid
    used = processes.usage(identity)
    assert used is not None
    assert used.resident_bytes > 1 << 20
    assert 0 <= used.uptime < 60
    assert os.getsid(child.pid) == child.pid
    assert processes.send_signal(pid_file, signal.SIGTERM)
    assert processes.wait_gone([pid_file], 10) == []
    assert processes.recorded(pid_file) is None
    assert not processes.send_signal(pid_file, signal.SIGTERM)


class DiesAfterALook(subprocess.Popen[bytes]):
    """A child that dies right after it was seen alive."""

    def poll(self) -> int | None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            while processes.identify(self.pid) is not None:
                pass
        return None


def test_how_a_child_ended_is_known_whenever_it_ended(tmp_path: Path) -> None:
    cluster = DevCluster(tmp_path, Shape(1, 1, 16, 7100))
    cluster.save()
    member = cluster.stores[0]
    child = DiesAfterALook([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = processes.identify(child.pid)
    assert identity is not None
    member.pid_file.write_text(json.dumps(identity._asdict()))
    while not devrun.ended(member, {member.name: child}):
        child.kill()
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("field", ["started", "boot"])
def test_a_reused_pid_is_never_killed(sleeper: tuple[subprocess.Popen[bytes], Path], field: str) -> None:
    child, pid_file = sleeper
    fields = json.loads(pid_file.read_text())
    fields[field] = fields[field] - 1 if field == "started" else "another"
    pid_file.write_text(json.dumps(fields))
    assert processes.recorded(pid_file) is None
    assert not processes.send_signal(pid_file, signal.SIGKILL)
    assert child.poll() is None


@pytest.mark.parametrize("text", ["", "7", "[]", '{"pid": "x", "started": 1, "boot": ""}'])
def test_damaged_pid_files_mean_no_process(tmp_path: Path, text: str) -> None:
    (tmp_path / "p").write_text(text)
    assert processes.recorded(tmp_path / "p") is None


def test_a_zombie_does_not_run() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.identify(child.pid) is None
    child.wait()


HEADLESS = """
import ctypes, os, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # ends this thread alone
"""


def test_a_process_runs_as_long_as_any_of_its_threads() -> None:
    """A killed store's ports were taken for a moment after it was said to be gone: it did not start again."""
    child = subprocess.Popen([sys.executable, "-c", HEADLESS], stdin=subprocess.PIPE)
    assert child.stdin is not None
    state = Path(f"/proc/{child.pid}/stat")
    while state.read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    assert processes.identify(child.pid) is not None
    child.stdin.close()
    while processes.identify(child.pid) is not None:
        pass
    child.wait()


@pytest.mark.parametrize("command", [["status"], ["down"], ["kill", "all"], ["start", "all"], ["logs"]])
def test_no_cluster_is_told_with_the_remedy(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["dev", *command, "--dir", str(tmp_path)]) == Exit.NOT_FOUND
    assert f"kvcli dev up --dir {tmp_path}" in capsys.readouterr().err


def test_another_shape_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DevCluster(tmp_path, Shape(2, 1, 16, 7100)).save()
    assert run(["dev", "up", "--stores", "3", "--dir", str(tmp_path)]) == Exit.USAGE
    assert "has --stores 2, not 3" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["dev", "up", "--dir", str(tmp_path / "file" / "x")]) == Exit.ERROR
    assert "cannot be written" in capsys.readouterr().err


def test_purge_takes_only_what_is_the_clusters(tmp_path: Path) -> None:
    cluster = DevCluster(tmp_path / "mine", Shape(1, 1, 16, 7100))
    cluster.save()
    cluster.purge()
    assert not cluster.directory.exists()
    cluster.save()
    (cluster.directory / "thesis.tex").write_text("years of work")
    cluster.purge()
    assert [path.name for path in cluster.directory.iterdir()] == ["thesis.tex"]


def test_taken_ports_do_not_stick_to_a_new_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = find_port_base(1, 1, 1)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", base))
        holder.listen(1)
        up = ["dev", "up", "--stores", "1", "--routers", "1", "--dir", str(tmp_path / "d")]
        assert run([*up, "--port-base", str(base)]) == Exit.ERROR
    assert f"port {base} is in use" in capsys.readouterr().err
    assert DevCluster.load(tmp_path / "d") is None


def test_an_empty_directory_name_is_not_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["dev", "up", "--dir", ""]) == Exit.USAGE
    assert "--dir" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_printed_so_that_it_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    shape = Shape(1, 1, 16, 7100)
    assert DevCluster(Path("/a b"), shape).option == " --dir '/a b'"
    assert DevCluster(default_directory(), shape).option == ""
    assert run(["dev", "down", "--dir", "/no such"]) == Exit.NOT_FOUND
    assert "kvcli dev up --dir '/no such'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "shape",
    [
        '{"stores": 1, "routers": 1, "partitions": 16, "port_base": 99999}',
        '{"stores": 0, "routers": 1, "partitions": 16, "port_base": 7100}',
        '{"stores": "x", "routers": 1, "partitions": 16, "port_base": 7100}',
    ],
)
def test_a_shape_that_no_cluster_has_is_called_damage(tmp_path: Path, shape: str) -> None:
    (tmp_path / "cluster.json").write_text(shape)
    with pytest.raises(Failure, match="damaged"):
        DevCluster.load(tmp_path)
