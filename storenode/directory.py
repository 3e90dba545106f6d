"""A store's data directory: whose it is, and that only one process uses it.

Owns `LOCK` and `identity.json`; everything else in the directory belongs to the engine. The identity is
written once, durably, before any data, and compared at every later start: data never answers for another
cluster, another node or another partition count. Knows nothing of configuration files; every refusal says
what to do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Final, NamedTuple

FORMAT_VERSION: Final = 1
IDENTITY: Final = "identity.json"
LOCK: Final = "LOCK"

_HARMLESS: Final = {
    LOCK,
    IDENTITY + ".new",
    "lost+found",
}  # what a directory without identity may hold and still be new
_IDENTITY_BYTES_MAX: Final = (
    64 << 10
)  # ours is under 200 bytes; a file of another kind is not read into memory


class DirectoryRefused(Exception):
    """The data directory cannot be used; the text says why and what to do."""


class Identity(NamedTuple):
    """Whose data a directory holds."""

    cluster_name: str
    cluster_id: str
    node_id: int
    partition_count: int


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
        figures = os.statvfs(self.path)
        return figures.f_bavail * figures.f_frsize

    def close(self) -> None:
        os.close(self._lock)


def open_directory(path: Path, identity: Identity) -> DataDirectory:
    """Creates the directory if it is missing, locks it, and writes or checks its identity; DirectoryRefused
    otherwise.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        try:
            _claim(path, identity)
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise DirectoryRefused(_explain(path, error)) from error
    return DataDirectory(path, lock)


def _lock(path: Path) -> int:
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise DirectoryRefused(
            f"data directory {path} is in use by process {holder or 'unknown'}: "
            "stop that store, or give this one its own data.dir"
        ) from None
    # For the message above; the lock itself is the flock, and a full disk must not keep a store from reading.
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _claim(path: Path, identity: Identity) -> None:
    try:
        with (path / IDENTITY).open("rb") as file:
            stored = file.read(_IDENTITY_BYTES_MAX)
    except FileNotFoundError:
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _HARMLESS)
        if foreign:
            raise DirectoryRefused(
                f"data directory {path} holds {', '.join(foreign[:3])} but no {IDENTITY}: it is not a "
                "store's, or "
                f"its identity was lost. Give this store an empty data.dir, or put {IDENTITY} back "
                "from a backup"
            ) from None
        _write_identity(path, identity)
        return
    _check(path, _parse(path, stored), identity)


def _parse(path: Path, stored: bytes) -> Identity:
    try:
        fields = json.loads(stored)
        version = fields["format"]
        found = Identity(
            str(fields["cluster_name"]),
            str(fields["cluster_id"]),
            int(fields["node_id"]),
            int(fields["partition_count"]),
        )
    except (ValueError, KeyError, TypeError):
        raise DirectoryRefused(
            f"{path / IDENTITY} is damaged: put it back from a backup, or give this store an empty data.dir"
        ) from None
    if version != FORMAT_VERSION:
        raise DirectoryRefused(
            f"{path / IDENTITY} has format version {version!r:.20}, this software reads {FORMAT_VERSION}: "
            "run the version that wrote it"
        )
    return found


def _check(path: Path, found: Identity, wanted: Identity) -> None:
    """The most telling difference first: the cluster id covers the name, the partition count and the nodes'
    ids and names.
    """
    if found.cluster_name != wanted.cluster_name:
        raise DirectoryRefused(
            f"data directory {path} belongs to cluster {found.cluster_name}, the configuration describes "
            f"{wanted.cluster_name}: correct the cluster section, or give this store an empty data.dir"
        )
    if found.partition_count != wanted.partition_count:
        raise DirectoryRefused(
            f"data directory {path} was made for {found.partition_count} partitions, the configuration says "
            f"{wanted.partition_count}: set cluster.partitions back to {found.partition_count} (it is "
            "fixed for "
            "the life of a cluster)"
        )
    if found.cluster_id != wanted.cluster_id:
        raise DirectoryRefused(
            f"data directory {path} belongs to another cluster named {found.cluster_name} (id "
            f"{found.cluster_id}, "
            f"the configuration makes {wanted.cluster_id}): put the ids and names in cluster.nodes "
            "back, or give "
            "this store an empty data.dir"
        )
    if found.node_id != wanted.node_id:
        raise DirectoryRefused(
            f"data directory {path} belongs to node {found.node_id}, the configuration says node "
            f"{wanted.node_id}: set node.id to {found.node_id}, or give this store its own data.dir"
        )


def _write_identity(path: Path, identity: Identity) -> None:
    """Writes the file durably under another name first: it is there whole or not at all, and once it is
    there, so is the way to it.
    """
    temporary = path / (IDENTITY + ".new")
    with temporary.open("w") as file:
        json.dump({"format": FORMAT_VERSION, **identity._asdict()}, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    for above in path.resolve().parents:  # any of them may be new; one that we may not read is not
        with contextlib.suppress(PermissionError):
            _sync_directory(above)
    temporary.replace(path / IDENTITY)
    _sync_directory(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(path: Path, error: OSError) -> str:
    advice = {
        errno.EACCES: "give this user write permission, or set data.dir to a directory of its own",
        errno.EROFS: "the file system is read-only: mount it writable, or set another data.dir",
        errno.ENOSPC: "the file system is full: make room, or set another data.dir",
        errno.ENOTDIR: "a part of the path is not a directory: set another data.dir",
        errno.EEXIST: "a file is in its place: set another data.dir",
    }.get(error.errno or 0, "set data.dir to a directory this user can write")
    return f"cannot use data directory {path}: {error.strerror or error}: {advice}"
