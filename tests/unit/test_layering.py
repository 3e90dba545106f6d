"""The import rules of docs/architecture.md section 1, read from the files themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kvclient", "shared", "router", "storenode", "monitor")
PUBLIC_PROTOCOL = {"kvclient.protocol", "kvclient.errors"}
KEY_FILES = "kvclient.keys"
JUDGEMENT = "kvclient.health"
FILE_CALLS = re.compile(r"(?<![\w.])(?:open|os\.(?:open|rename|replace|unlink|remove|link))\(")


def sources(package: str) -> list[Path]:
    return [path for suffix in ("*.py", "*.pyx") for path in sorted((ROOT / package).rglob(suffix))]


def imports(path: Path) -> Iterator[str]:
    """Dotted names that `path` imports, also inside functions; for Cython by its import lines."""
    text = path.read_text()
    if path.suffix == ".pyx":
        for match in re.finditer(
            r"^\s*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w.]+))", text, re.MULTILINE
        ):
            yield match[1] or match[2]
        return
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room they reach into"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in ROOMS}


def outside(path: Path, allowed: tuple[str, ...]) -> set[str]:
    def is_allowed(name: str) -> bool:
        return any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)

    return {
        name for name in room_imports(path) if not is_allowed(name) and name not in {"kvclient", "shared"}
    }


ALLOWED: dict[str, tuple[str, ...]] = {
    "kvclient": ("kvclient",),
    "shared": ("shared", KEY_FILES, *PUBLIC_PROTOCOL),
    "router": ("router", "shared", JUDGEMENT, *PUBLIC_PROTOCOL),
    "storenode": ("storenode", "shared", *PUBLIC_PROTOCOL),
    "monitor": ("monitor", "shared", JUDGEMENT, *PUBLIC_PROTOCOL),
}


@pytest.mark.parametrize("room", [room for room in ROOMS if (ROOT / room).is_dir()])
def test_a_room_imports_only_what_the_architecture_allows(room: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in sources(room)
        if (found := outside(path, ALLOWED[room]))
    }
    assert not wrong


def test_the_engine_knows_neither_sockets_nor_the_cluster() -> None:
    allowed = ("storenode.engine", "shared.clock", *PUBLIC_PROTOCOL)
    for path in sources("storenode/engine"):
        assert not outside(path, allowed), path
        assert not {name for name in imports(path) if name.split(".")[0] in {"zmq", "asyncio", "socket"}}, (
            path
        )


def test_raft_is_pure() -> None:
    """Neither sockets, files, threads nor clocks; of `random` the class only, for its state is handed in."""
    allowed = ("storenode.raft", "shared.frames", *PUBLIC_PROTOCOL)
    impure = {"zmq", "asyncio", "socket", "threading", "time", "os", "io", "pathlib", "random", "select"}
    for path in sources("storenode/raft"):
        assert not outside(path, allowed), path
        names = set(imports(path)) - {"random.Random"}
        if "from random import Random" in path.read_text():
            names.discard("random")
        assert not {name for name in names if name.split(".")[0] in impure}, path


def test_the_controller_is_pure() -> None:
    """Time is handed in; what it decides follows from the state and the reports alone."""
    allowed = ("storenode.control", "shared", *PUBLIC_PROTOCOL)
    impure = {"zmq", "asyncio", "socket", "threading", "time", "os", "io", "pathlib", "random", "select"}
    for path in sources("storenode/control"):
        assert not outside(path, allowed), path
        assert not foreign(path) & impure, path


def test_only_vfs_opens_files_in_the_engine_and_in_the_raft_log() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*sources("storenode/engine"), *sources("storenode/raftlog")]
        if path.name != "vfs.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FILE_CALLS.search(line.split("#")[0]) and not line.lstrip().startswith(("def ", "cpdef ", "cdef "))
    ]
    assert not offenders


def test_the_raft_log_knows_files_checksums_and_shapes_only() -> None:
    allowed = (
        "storenode.raftlog",
        "storenode.engine.vfs",
        "storenode.engine.codec",
        "storenode.raft.messages",
        "storenode.raft.storage",
        *PUBLIC_PROTOCOL,
    )
    for path in sources("storenode/raftlog"):
        assert outside(path, allowed) <= {"storenode.engine"}, (
            path
        )  # as in `from storenode.engine import codec`
        assert not {name for name in imports(path) if name.split(".")[0] in {"zmq", "threading", "time"}}, (
            path
        )


def foreign(path: Path) -> set[str]:
    """Top-level names that `path` imports and that are none of ours."""
    return {name.split(".")[0] for name in imports(path)} - set(ROOMS)


OUTSIDE_WORLD = {"zmq", "asyncio", "socket", "select", "threading", "queue", "time", "os", "io", "pathlib"}


def test_a_replica_knows_raft_and_neither_log_nor_engine_nor_anything_outside() -> None:
    allowed = ("storenode.replica", "storenode.raft", "shared.clock", "shared.logs", *PUBLIC_PROTOCOL)
    for path in sources("storenode/replica"):
        assert not outside(path, allowed), path
        assert not foreign(path) & OUTSIDE_WORLD, path


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        (
            "groups.py",
            ("storenode.raft", "storenode.raftlog", "storenode.replica", "storenode.engine.errors"),
        ),
        ("founding.py", ("storenode.raft", "storenode.raftlog", "storenode.replica", "storenode.groups")),
        ("outbox.py", ("shared.frames", "shared.messages")),
    ],
)
def test_what_drives_replicas_touches_no_socket_no_thread_and_no_file(
    name: str, allowed: tuple[str, ...]
) -> None:
    path = ROOT / "storenode" / name
    assert not outside(path, (*allowed, "shared.clock", "shared.logs", *PUBLIC_PROTOCOL))
    assert not foreign(path) & OUTSIDE_WORLD


@pytest.mark.parametrize("name", ["logthread.py", "snapshots.py"])
def test_threads_and_snapshots_know_no_socket(name: str) -> None:
    path = ROOT / "storenode" / name
    assert not foreign(path) & {"zmq", "asyncio", "socket", "select"}
    assert "shared.sockets" not in set(imports(path))


def test_only_these_files_of_a_store_get_sockets() -> None:
    users = {path.name for path in sources("storenode") if "shared.sockets" in set(imports(path))}
    assert users <= {
        "service.py", "bus.py", "bulk.py", "events.py", "storerequests.py", "node.py",
        "dataplane.py", "controlplane.py", "asking.py", "founders.py", "joining.py", "starting.py",
    }  # fmt: skip


def test_only_the_shells_touch_zmq() -> None:
    shells = {
        "kvclient/transport.py",
        "kvclient/connection.py",
        "kvclient/aioconnection.py",
        "kvclient/cli/keyfiles.py",
        "shared/curve.py",
        "shared/cuts.py",
        "shared/reactor.py",
        "shared/sockets.py",
        "shared/zap.py",
        "router/service.py",
        "router/backends.py",
        "router/events.py",
        "storenode/service.py",
    }
    users = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in sources(room)
        if any(name.split(".")[0] == "zmq" for name in imports(path))
    }
    assert users <= shells


def test_the_cli_never_imports_a_server() -> None:
    for path in sources("kvclient/cli"):
        assert not {name for name in room_imports(path) if name.split(".")[0] != "kvclient"}, path


def test_a_relative_or_forbidden_import_is_seen(tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text("def f():\n    from storenode.engine import open\n")
    assert outside(probe, ALLOWED["router"]) == {"storenode.engine", "storenode.engine.open"}
