"""A store's data directory: whose it is, and that only one process uses it.

Owns `LOCK`, `identity.json` and `joining.json`; everything else in the directory belongs to others. The
identity is written once, durably, before any data, and compared at every later start: data never answers for
another cluster, another node or another partition count. Knows nothing of configuration files and nothing of
how an identity is come by; every refusal says what to do.

A directory is empty, claimed (`joining.json`: the incarnation under which the cluster is being asked) or
somebody's (`identity.json`). The incarnation tells this disk from every other that was or will be there under
the same name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from storenode import durable

FORMAT_VERSION: Final = 2
"""Of identity.json: 2 has an incarnation and says whether the node is a founder."""
READABLE_VERSIONS: Final = (1, 2)
CLAIM_VERSION: Final = 1

IDENTITY: Final = "identity.json"
CLAIM: Final = "joining.json"
LOCK: Final = "LOCK"
MAP: Final = "map.bin"

_HARMLESS: Final = {LOCK, IDENTITY + ".new", CLAIM, CLAIM + ".new", "lost+found"}
"""What a directory without identity may hold and still be new."""
_HARMLESS_CLAIMED: Final = {*_HARMLESS, MAP, MAP + ".new"}
"""The same, if it was claimed: the map comes before the identity."""
_IDENTITY_BYTES_MAX: Final = 64 << 10
"""Ours is under 300 bytes; a file of another kind is not read into memory."""
_INCARNATION: Final = re.compile("[0-9a-f]{32}")


class DirectoryRefused(Exception):
    """The data directory cannot be used; the text says why and what to do. `final`: time does not mend it."""

    def __init__(self, text: str, *, final: bool = True) -> None:
        super().__init__(text)
        self.final = final


class Identity(NamedTuple):
    """Whose data a directory holds. `incarnation` is "" only in what software before format 2 has written;
    `founder`: the node is one of those that the cluster was founded with.
    """

    cluster_name: str
    cluster_id: str
    node_id: int
    partition_count: int
    incarnation: str
    founder: bool


class DataDirectory:
    """An open, locked data directory. `close` gives the lock back, as does the end of the process."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def partition(self, number: int) -> Path:
        """Where the engine of a partition lives; sorts like the numbers."""
        return self.path / "partitions" / f"{number:04}"

    def free_bytes(self) -> int:
        """What this process may still write on the directory's file system."""
        return self.room()[0]

    def room(self) -> tuple[int, int]:
        """The same, and the size of that file system."""
        figures = os.statvfs(self.path)
        return figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize

    def close(self) -> None:
        os.close(self._lock)

    def identity(self) -> Identity | None:
        """Whose it is; None if it is nobody's yet. DirectoryRefused if that cannot be told."""
        with _explained(self.path):
            stored = _read(self.path / IDENTITY)
            if stored is not None:
                return _parse_identity(self.path, stored)
            harmless = _HARMLESS_CLAIMED if (self.path / CLAIM).exists() else _HARMLESS
            foreign = sorted(entry.name for entry in self.path.iterdir() if entry.name not in harmless)
        if foreign:
            raise DirectoryRefused(
                f"data directory {self.path} holds {', '.join(foreign[:3])} but no {IDENTITY}: it is not a "
                f"store's, or its identity was lost. Put {IDENTITY} back from a backup, or give this store "
                f"an empty data.dir: {_aside(self.path)}"
            )
        return None

    def claim(self) -> str:
        """The incarnation under which this directory shall belong to a cluster: the same for each call until
        `settle`, also after a crash.
        """
        with _explained(self.path):
            stored = _read(self.path / CLAIM)
            if stored is not None:
                return _parse_claim(self.path, stored)
            incarnation = new_incarnation()
            durable.replace(self.path / CLAIM, _to_json(CLAIM_VERSION, {"incarnation": incarnation}))
            durable.sync_way(self.path)
        return incarnation

    def settle(self, identity: Identity) -> Identity:
        """Makes the directory that node's, durably, and ends a claim; gives what was written: an identity
        without an incarnation gets a new one.
        """
        if not identity.incarnation:
            identity = identity._replace(incarnation=new_incarnation())
        with _explained(self.path):
            durable.sync_way(self.path)
            durable.replace(self.path / IDENTITY, _to_json(FORMAT_VERSION, identity._asdict()))
            self.forget_claim()
        return identity

    def forget_claim(self) -> None:
        """What is left of a claim when the process ended behind `settle`."""
        if (self.path / CLAIM).exists():
            durable.remove(self.path / CLAIM)


def new_incarnation() -> str:
    """32 hexadecimal digits that nobody had before."""
    return secrets.token_hex(16)


def is_incarnation(value: object) -> bool:
    """Whether it has the form of one."""
    return type(value) is str and _INCARNATION.fullmatch(value) is not None


def open_directory(path: Path) -> DataDirectory:
    """Creates the directory if it is missing, and locks it; DirectoryRefused otherwise."""
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)
        return DataDirectory(path, _lock(path))


def check(path: Path, found: Identity, wanted: Identity) -> None:
    """DirectoryRefused unless the data that was found is what was wanted; whose disk it was is not compared.

    The most telling difference first: the cluster id covers the name, the partition count and the nodes' ids
    and names.
    """
    other = f"give this store an empty data.dir: {_aside(path)}"
    if found.cluster_name != wanted.cluster_name:
        raise DirectoryRefused(
            f"data directory {path} belongs to cluster {found.cluster_name}, the configuration describes "
            f"{wanted.cluster_name}: correct the cluster section, or {other}"
        )
    if found.partition_count != wanted.partition_count:
        raise DirectoryRefused(
            f"data directory {path} was made for {found.partition_count} partitions, the configuration says "
            f"{wanted.partition_count}: set cluster.partitions back to {found.partition_count} (it is "
            "fixed for the life of a cluster)"
        )
    if found.cluster_id != wanted.cluster_id:
        raise DirectoryRefused(
            f"data directory {path} belongs to another cluster named {found.cluster_name} (id "
            f"{found.cluster_id}, the configuration makes {wanted.cluster_id}): put the ids and names in "
            f"cluster.nodes back, or {other}"
        )
    if found.node_id != wanted.node_id:
        raise DirectoryRefused(
            f"data directory {path} belongs to node {found.node_id}, the configuration says node "
            f"{wanted.node_id}: set node.id to {found.node_id}, or {other}"
        )


def _lock(path: Path) -> int:
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise DirectoryRefused(
            f"data directory {path} is in use by process {holder or 'unknown'}: "
            "stop that store, or give this one its own data.dir",
            final=False,
        ) from None
    # For the message above; the lock itself is the flock, and a full disk must not keep a store from reading.
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_IDENTITY_BYTES_MAX)
    except FileNotFoundError:
        return None


def _to_json(version: int, fields: dict[str, Any]) -> bytes:
    return json.dumps({"format": version, **fields}).encode() + b"\n"


def _parse_identity(path: Path, stored: bytes) -> Identity:
    damaged = (
        f"{path / IDENTITY} is damaged: put it back from a backup, or give this store an empty data.dir: "
        f"{_aside(path)}"
    )
    fields = _fields(path / IDENTITY, stored, READABLE_VERSIONS, damaged)
    first = fields["format"] == READABLE_VERSIONS[0]
    try:
        incarnation, founder = ("", True) if first else (fields["incarnation"], fields["founder"])
        found = Identity(
            str(fields["cluster_name"]),
            str(fields["cluster_id"]),
            int(fields["node_id"]),
            int(fields["partition_count"]),
            incarnation,
            founder,
        )
    except (ValueError, KeyError, TypeError):
        raise DirectoryRefused(damaged) from None
    if type(founder) is not bool or not (first or is_incarnation(incarnation)):
        raise DirectoryRefused(damaged)
    return found


def _parse_claim(path: Path, stored: bytes) -> str:
    damaged = (
        f"{path / CLAIM} is damaged. Nothing but a claim is in this directory:  "
        f"rm {shlex.quote(str(path / CLAIM))}  and start this store again"
    )
    incarnation = _fields(path / CLAIM, stored, (CLAIM_VERSION,), damaged).get("incarnation")
    if not is_incarnation(incarnation):
        raise DirectoryRefused(damaged)
    return str(incarnation)


def _fields(path: Path, stored: bytes, versions: tuple[int, ...], damaged: str) -> dict[str, Any]:
    try:
        fields = json.loads(stored)
        version = fields["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DirectoryRefused(damaged) from None
    if type(version) is not int or version not in versions:
        raise DirectoryRefused(
            f"{path} has format version {version!r:.20}, this software reads "
            f"{' and '.join(map(str, versions))}: run the version that wrote it"
        )
    found: dict[str, Any] = fields
    return found


def _aside(path: Path) -> str:
    here = shlex.quote(str(path))
    return f"mv {here} {here}.aside"


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DirectoryRefused(_explain(path, error), final=False) from error


def _explain(path: Path, error: OSError) -> str:
    advice = {
        errno.EACCES: "give this user write permission, or set data.dir to a directory of its own",
        errno.EROFS: "the file system is read-only: mount it writable, or set another data.dir",
        errno.ENOSPC: "the file system is full: make room, or set another data.dir",
        errno.ENOTDIR: "a part of the path is not a directory: set another data.dir",
        errno.EEXIST: "a file is in its place: set another data.dir",
    }.get(error.errno or 0, "set data.dir to a directory this user can write")
    return f"cannot use data directory {path}: {error.strerror or error}: {advice}"
