"""The local cluster of `kvcli dev`: what is where in its directory, which ports, which configuration.

    cluster.json          what was asked for when the directory was made
    added.json            the stores that came later (`devmembers`)
    config/store1.yaml    one file per process      data/store1/    log/store1.log    run/store1.pid

Router i listens on P+i-1; store i has P+100+10(i-1) and the two ports behind it, from the eleventh on ten
more; the monitor has P+200. P is the port base. Knows nothing of processes.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvclient.cli import devmembers, keyfiles
from kvclient.cli.devmembers import ADDED_FILE, Added
from kvclient.cli.failure import Failure
from kvclient.cli.resume import replace_file
from kvclient.errors import Exit
from kvclient.keys import Certificate, Role

HOST = "127.0.0.1"
CLUSTER_NAME = "dev"
CLUSTER_FILE = "cluster.json"
LOCK_FILE = "lock"

# What a cluster keeps in its directory besides its file and its lock.
_SUBDIRECTORIES = ("config", "data", "log", "run")
_KEYS = "keys"
_GROUPS = ("all", "stores", "routers")
PORT_BASE_DEFAULT = 7100

# The layout of ports: routers below +100, ten ports per store above, but for the monitor's ten. The limits
# keep all inside.
ROUTERS_MAX = 20
STORES_MAX = 50
_STORE_PORTS = 100
_MONITOR_PORT = 200
_PORTS = _STORE_PORTS + 10 * (STORES_MAX + 1)
PORT_BASE_MAX = 65_000 - 10 * STORES_MAX

# Below the kernel's usual range for outgoing connections (from 32768), so that no reconnecting client sits on
# a port of ours, and above those that the tests of this project give to single servers.
_FREE_PORTS = range(20_000, 32_768)
_FREE_TRIES = 200


@dataclass(frozen=True)
class Member:
    """One process of the cluster."""

    name: str
    role: str
    module: str
    ports: tuple[int, ...]
    directory: Path

    @property
    def config_file(self) -> Path:
        return self.directory / "config" / f"{self.name}.yaml"

    @property
    def data(self) -> Path:
        """A store's."""
        return self.directory / "data" / self.name

    @property
    def log_file(self) -> Path:
        return self.directory / "log" / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        return self.directory / "run" / f"{self.name}.pid"

    @property
    def cuts_file(self) -> Path:
        """Whom a store does not connect to (`devnetwork`)."""
        return self.directory / "run" / f"{self.name}.cuts"


@dataclass(frozen=True)
class Shape:
    """What a cluster is made of; kept in cluster.json and never changed."""

    stores: int
    routers: int
    partitions: int
    port_base: int
    secure: bool = False

    def is_sound(self) -> bool:
        """Whether it can be a cluster at all; a file edited by hand may say anything."""
        fields = (self.stores, self.routers, self.partitions, self.port_base)
        return (
            all(type(field) is int for field in fields)
            and 1 <= self.stores <= STORES_MAX
            and 1 <= self.routers <= ROUTERS_MAX
            and 1 <= self.port_base <= PORT_BASE_MAX
        )


class DevCluster:
    """A shape in a directory."""

    def __init__(self, directory: Path, shape: Shape, added: Sequence[Added] = ()) -> None:
        self.directory = directory
        self.shape = shape
        self.founders = [self._store(f"store{number}", number) for number in range(1, shape.stores + 1)]
        self.added = {one.name: one for one in added}
        self.routers = [self._router(number) for number in range(1, shape.routers + 1)]
        self.monitor = Member("monitor", "monitor", "monitor", (shape.port_base + _MONITOR_PORT,), directory)

    @property
    def stores(self) -> list[Member]:
        """Founders, then those that came later."""
        return self.founders + [self._store(one.name, one.number) for one in self.added.values()]

    @property
    def members(self) -> list[Member]:
        """In the order in which they start: stores, then routers, then the monitor."""
        return [*self.servers, self.monitor]

    @property
    def servers(self) -> list[Member]:
        """What serves clients: stores, then routers."""
        return self.stores + self.routers

    @property
    def removed(self) -> set[str]:
        """Names of the stores that the cluster has let go: nobody starts them unless they are named."""
        return devmembers.removed({store.name: store.data for store in self.stores})

    @property
    def url(self) -> str:
        """Where clients go."""
        return "kv://" + ",".join(f"{HOST}:{router.ports[0]}" for router in self.routers)

    @property
    def monitor_url(self) -> str:
        """What a browser opens."""
        return f"http://{HOST}:{self.monitor.ports[0]}"

    @property
    def keys(self) -> str:
        """Its key directory; "" if it has none."""
        return str(self.directory / _KEYS) if self.shape.secure else ""

    @property
    def option(self) -> str:
        """What a `kvcli dev` command must be given to find this cluster, with a blank in front; nothing for
        the default directory.
        """
        return directory_option(self.directory)

    def _store(self, name: str, number: int) -> Member:
        first = self.shape.port_base + _STORE_PORTS + 10 * (number - 1)
        if first >= self.shape.port_base + _MONITOR_PORT:
            first += 10
        return Member(name, "store", "storenode", (first, first + 1, first + 2), self.directory)

    def _router(self, number: int) -> Member:
        port = self.shape.port_base + number - 1
        return Member(f"router{number}", "router", "router", (port,), self.directory)

    @staticmethod
    def load(directory: Path) -> DevCluster | None:
        """The cluster of a directory; None if it holds none."""
        try:
            shape = Shape(**json.loads((directory / CLUSTER_FILE).read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError):
            shape = None
        if shape is None or not shape.is_sound():
            raise Failure(
                Exit.ERROR,
                f"{directory / CLUSTER_FILE} is damaged. Remove the directory, or use another --dir",
                "DEV_DIRECTORY",
            )
        return DevCluster(directory, shape, devmembers.load(directory))

    def add(self, name: str | None, zone: str | None) -> Member:
        """One more store, with its configuration written; Failure if it cannot be called so."""
        number = 1 + max([self.shape.stores, *(one.number for one in self.added.values())])
        name = f"store{number}" if name is None else name
        if name in (*_GROUPS, *(member.name for member in self.members)):
            raise Failure(Exit.USAGE, f"the name {name!r} is taken in this cluster", "USAGE")
        if number > STORES_MAX:
            raise Failure(Exit.USAGE, f"a local cluster has had at most {STORES_MAX} stores", "USAGE")
        self.added[name] = Added(name, number, zone or f"zone{number}")
        member = self.stores[-1]
        self._make_keys()
        for one in (member, *self.routers, self.monitor):  # those that start later may find no other store
            replace_file(one.config_file, to_yaml(self._config(one)).encode())
        devmembers.save(self.directory, self.added.values())
        return member

    def forget(self, member: Member) -> None:
        """Undo `add` of a store that never became one: its number and its name are free again."""
        del self.added[member.name]
        devmembers.save(self.directory, self.added.values())
        member.config_file.unlink(missing_ok=True)
        shutil.rmtree(member.data, ignore_errors=True)

    def save(self) -> None:
        """Make the directories, and write cluster.json and every configuration file."""
        for name in _SUBDIRECTORIES:
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._make_keys()
        for member in self.members:
            replace_file(member.config_file, to_yaml(self._config(member)).encode())
        replace_file(self.directory / CLUSTER_FILE, json.dumps(asdict(self.shape)).encode() + b"\n")

    def purge(self) -> None:
        """Delete what is the cluster's, and its directory if nothing else is in there: --dir may have been
        somebody's home.
        """
        for name in (*_SUBDIRECTORIES, _KEYS):
            if (self.directory / name).exists():
                shutil.rmtree(self.directory / name)
        for name in (CLUSTER_FILE, ADDED_FILE, LOCK_FILE):
            (self.directory / name).unlink(missing_ok=True)
        if not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _make_keys(self) -> None:
        """What is missing of a pair for each process."""
        if self.shape.secure:
            roles: dict[str, Role] = {"store": "node", "router": "router", "monitor": "monitor"}
            wanted = [
                Certificate(member.name, roles[member.role], "", _addresses(member))
                for member in self.members
            ]
            keyfiles.ensure(Path(self.keys), wanted)

    def _config(self, member: Member) -> dict[str, Any]:
        secured = {"security": {"keys": self.keys}} if self.shape.secure else {}
        return self._own_config(member) | secured

    def _own_config(self, member: Member) -> dict[str, Any]:
        stores = [endpoint(store.ports[0]) for store in self.stores]
        if member.role == "router":
            return {"router": {"name": member.name, "listen": endpoint(member.ports[0])}, "stores": stores}
        if member.role == "monitor":
            return {"http": {"listen": endpoint(member.ports[0])}, "stores": stores}
        added = self.added.get(member.name)
        if added is None:
            node: dict[str, Any] = {"id": self.founders.index(member) + 1, "name": member.name}
        else:
            node = {"name": member.name, "zone": added.zone}
        return {
            "node": node,
            "listen": dict(zip(("rpc", "bus", "events"), map(endpoint, member.ports), strict=True)),
            "data": {"dir": str(member.data)},
            "cluster": self._founding() if added is None else self._joining(member),
            "dev": {"cuts": str(member.cuts_file)},
        }

    def _founding(self) -> dict[str, Any]:
        return {
            "name": CLUSTER_NAME,
            "partitions": self.shape.partitions,
            "replicas": min(3, self.shape.stores),
            "nodes": [self._node(number, store) for number, store in enumerate(self.founders, 1)],
        }

    def _joining(self, member: Member) -> dict[str, Any]:
        return {
            "name": CLUSTER_NAME,
            "join": [endpoint(store.ports[0]) for store in self.stores if store.name != member.name],
        }

    @staticmethod
    def _node(number: int, store: Member) -> dict[str, Any]:
        rpc, bus, events = map(endpoint, store.ports)
        # A zone each: the point of a local cluster is to watch nodes fail one by one.
        return {
            "id": number,
            "name": store.name,
            "rpc": rpc,
            "bus": bus,
            "events": events,
            "zone": f"zone{number}",
            "weight": 1,
        }

    def select(self, names: tuple[str, ...]) -> list[Member]:
        """Members by name; `all`, `stores` and `routers` stand for many."""
        groups = dict(zip(_GROUPS, (self.members, self.stores, self.routers), strict=True))
        groups |= {member.name: [member] for member in self.members}
        chosen: dict[str, Member] = {}
        for name in names:
            if name not in groups:
                raise Failure(
                    Exit.USAGE,
                    f"there is no {name!r} in this cluster. There are: {', '.join(groups)}",
                    "USAGE",
                )
            chosen |= {member.name: member for member in groups[name]}
        return list(chosen.values())


def _addresses(member: Member) -> tuple[str, ...]:
    return tuple(f"{host}:{port}" for port in member.ports for host in (HOST, "localhost"))


def endpoint(port: int) -> str:
    """A ZeroMQ endpoint on this machine."""
    return f"tcp://{HOST}:{port}"


def to_yaml(fields: dict[str, Any], indent: str = "") -> str:
    """A tree of dicts, lists and scalars as YAML; scalars and list items in JSON, which YAML includes."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{name}:\n{to_yaml(value, indent + '  ')}")
        elif isinstance(value, list):
            lines.append(
                f"{indent}{name}:\n" + "".join(f"{indent}  - {json.dumps(item)}\n" for item in value)
            )
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}\n")
    return "".join(lines)


def default_directory() -> Path:
    """Where the cluster lives unless --dir says otherwise."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return (Path(state) / "ringkv" / "dev").absolute()


def directory_option(directory: Path) -> str:
    """` --dir DIRECTORY`, ready for a shell; empty for the default one."""
    return "" if directory == default_directory() else f" --dir {shlex.quote(str(directory))}"


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def is_listening(port: int) -> bool:
    """Whether a server takes connections there. Unlike `is_free` it is never in the server's way."""
    try:
        socket.create_connection((HOST, port), 1.0).close()
    except OSError:
        return False
    return True


def _ports(shape: Shape) -> Iterator[int]:
    for member in DevCluster(Path(), shape).members:
        yield from member.ports


def find_port_base(stores: int, routers: int, partitions: int) -> int:
    """A base whose ports are all free now, chosen at random so that two clusters started together hardly
    meet.
    """
    for _ in range(_FREE_TRIES):
        base = random.randrange(_FREE_PORTS.start, _FREE_PORTS.stop - _PORTS)
        if all(map(is_free, _ports(Shape(stores, routers, partitions, base)))):
            return base
    raise Failure(Exit.ERROR, "no free block of ports was found. Name one: --port-base 20000", "PORT_IN_USE")


def require_free(members: list[Member]) -> None:
    """Failure naming the first port that somebody else has."""
    for member in members:
        for port in member.ports:
            if not is_free(port):
                raise Failure(
                    Exit.ERROR,
                    f"port {port} is in use, {member.name} needs it. "
                    f"See who has it:  ss -ltnp 'sport = :{port}'  "
                    "Stop that process, or start a cluster elsewhere:  kvcli dev up --dir DIR --port-base 0",
                    "PORT_IN_USE",
                )
