"""Where things are: what kind of directory this is, which engines it holds, and that nobody uses it
meanwhile.

A *data directory* is a store's (identity.json, LOCK, manifest/, partitions/NNNN/); an *engine directory* is
that of an engine used as a library (manifest/ beside its files). Reading takes a shared lock on what a
running store locks exclusively, so a store cannot start while a tool reads, and the other way round.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

from storenode.engine import codec
from storenode.engine.tools.records import read_manifest
from storenode.engine.version import PREPARED_ID
from storenode.engine.vfs import File, Vfs

QUARANTINE = "quarantine"
"""Where repair puts what it takes out: a directory in the data or engine directory."""

_IDENTITY_BYTES_MAX = 64 << 10
_PARTITIONS_MAX = 4096
_ELSEWHERE = {65535: 65534}
"""Directories whose engine has another id than their number: the control partition's, for 65535 is no id."""


class Refused(Exception):
    """The tool cannot work on this; the text says why and what to do. `code` is for kvcli's exit code."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.name = name


USAGE, UNAVAILABLE = 2, 8


class Place(NamedTuple):
    """One engine's directory."""

    engine_id: int
    directory: str

    def files(self, vfs: Vfs) -> Files:
        return list_files(vfs, self.directory)


class Files(NamedTuple):
    """What lies in an engine's directory: tables and logs by number, and names that are neither."""

    tables: dict[int, str]
    logs: dict[int, str]
    foreign: list[str]


class Site(NamedTuple):
    """A directory that tools work on. `partition_bits` is None where keys are not divided by hash."""

    root: str
    manifest_directory: str
    places: tuple[Place, ...]
    partition_bits: int | None

    def place_of(self, engine_id: int) -> Place | None:
        return next((place for place in self.places if place.engine_id == engine_id), None)


def find_site(vfs: Vfs, path: str) -> Site:
    """What `path` is. Refused names what was expected."""
    root = os.path.abspath(path)
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "does not exist"
        raise Refused(USAGE, "NO_DIRECTORY", f"{path} {what}. {_EXPECTED}")
    names = set(vfs.listdir(root))
    parent = os.path.dirname(root)
    if os.path.basename(parent) == "partitions" and "manifest" not in names:
        store = os.path.dirname(parent)
        raise Refused(
            USAGE, "NO_MANIFEST", f"{path} is one partition of a store: give the store's directory, {store}"
        )
    if "identity.json" in names or "partitions" in names:
        return Site(root, os.path.join(root, "manifest"), _partitions(vfs, root), _bits(vfs, root))
    files = list_files(vfs, root)
    if "manifest" not in names and not files.tables and not files.logs:
        raise Refused(USAGE, "NO_ENGINE", f"{path} holds no engine. {_EXPECTED}")
    engine_id = _engine_id(vfs, root, files)
    return Site(root, os.path.join(root, "manifest"), (Place(engine_id, root),), None)


_EXPECTED = (
    "Give a store's data.dir (it holds identity.json, manifest/ and partitions/) "
    "or the directory of one engine (it holds manifest/, *.sst and *.wal)"
)


def list_files(vfs: Vfs, directory: str) -> Files:
    tables: dict[int, str] = {}
    logs: dict[int, str] = {}
    foreign: list[str] = []
    for name in sorted(vfs.listdir(directory)):
        stem, kind = os.path.splitext(name)
        named = stem.isascii() and stem.isdecimal() and stem == f"{int(stem):06d}"
        path = os.path.join(directory, name)
        if named and kind == ".sst":
            tables[int(stem)] = path
        elif named and kind == ".wal":
            logs[int(stem)] = path
        elif name not in ("manifest", "LOCK", "partitions", "identity.json", QUARANTINE):
            foreign.append(name)
    return Files(tables, logs, foreign)


def partition_of(key: bytes, bits: int) -> int:
    """docs/protocol.md section 2, Partition."""
    begin = key.find(b"{")
    end = key.find(b"}", begin + 1) if begin >= 0 else -1
    part = key[begin + 1 : end] if end > begin + 1 else key
    return codec.hash64(part) >> (64 - bits) if bits else 0


@contextlib.contextmanager
def held(vfs: Vfs, site: Site, *, exclusive: bool) -> Iterator[None]:
    """Keep stores and engines out meanwhile. Refused names the process that is in."""
    locks = [os.path.join(site.manifest_directory, "LOCK"), os.path.join(site.root, "LOCK")]
    if site.partition_bits is None and not os.path.exists(locks[1]):
        locks.pop()
    taken: list[File] = []
    try:
        for path in locks:
            lock = _take(vfs, path, exclusive)
            if lock is not None:
                taken.append(lock)
        yield
    finally:
        for lock in taken:
            lock.close()


def _take(vfs: Vfs, path: str, exclusive: bool) -> File | None:
    """The lock, None if the file is not there: nobody has it then, and reading makes no files."""
    if exclusive:
        vfs.make_directory(os.path.dirname(path))
        try:
            return vfs.lock(path)
        except BlockingIOError:
            raise _in_use(vfs, path) from None
    try:
        file = vfs.open(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(file.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise _in_use(vfs, path) from None
    return file


def _in_use(vfs: Vfs, path: str) -> Refused:
    holder = _holder(vfs, path)
    who = f"process {holder}" if holder else "another process"
    stop = f"stop that process (kill {holder})" if holder else "stop that process"
    return Refused(
        UNAVAILABLE,
        "IN_USE",
        f"{os.path.dirname(path)} is in use by {who}. This tool needs it at rest: {stop}",
    )


def _holder(vfs: Vfs, path: str) -> int | None:
    """Who holds a flock, by the kernel's list."""
    try:
        found = os.stat(path)
        for line in vfs.read("/proc/locks").decode().splitlines():
            fields = line.split()
            if "FLOCK" in fields and fields[-3].rpartition(":")[2] == str(found.st_ino):
                return int(fields[-4]) if int(fields[-4]) > 0 else None
    except (OSError, ValueError, IndexError):
        pass
    return None


def _partitions(vfs: Vfs, root: str) -> tuple[Place, ...]:
    directory = os.path.join(root, "partitions")
    if not os.path.isdir(directory):
        return ()
    names = [name for name in vfs.listdir(directory) if name.isascii() and name.isdecimal()]
    numbers = sorted(int(name) for name in names if name == f"{int(name):04}")
    return tuple(
        Place(_ELSEWHERE.get(number, number), os.path.join(directory, f"{number:04}"))
        for number in numbers
        if number < _PARTITIONS_MAX or number in _ELSEWHERE
    )


def _bits(vfs: Vfs, root: str) -> int | None:
    """From identity.json; None if it cannot tell."""
    path = os.path.join(root, "identity.json")
    try:
        if vfs.size(path) > _IDENTITY_BYTES_MAX:
            return None
        count = json.loads(vfs.read(path))["partition_count"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(count, int) or not 1 <= count <= _PARTITIONS_MAX or count & (count - 1):
        return None
    return count.bit_length() - 1


def _engine_id(vfs: Vfs, directory: str, files: Files) -> int:
    """The engine's id as most of its tables' footers and logs' headers have it; by the manifest if it has
    only prepared tables. 0 if none can tell."""
    votes: dict[int, int] = {}
    for paths, tail, at in ((files.tables, 64, 42), (files.logs, 0, 12)):
        for path in paths.values():
            found = _sample(vfs, path, tail, at)
            if found is not None and found != PREPARED_ID:
                votes[found] = votes.get(found, 0) + 1
    if not votes:
        known = read_manifest(vfs, os.path.join(directory, "manifest")).engines() if files.tables else []
        return known[0] if known else 0
    return max(votes, key=lambda engine_id: (votes[engine_id], -engine_id))


def _sample(vfs: Vfs, path: str, tail: int, at: int) -> int | None:
    """Two bytes of engine id: of the file id in a footer, or in a log's header."""
    try:
        file = vfs.open(path)
    except OSError:
        return None
    try:
        begin = max(os.fstat(file.fd).st_size - tail, 0) if tail else 0
        raw = os.pread(file.fd, 64 if tail else 48, begin)
    except OSError:
        return None
    finally:
        file.close()
    magic = raw[56:] == b"rkv-sst\n" if tail else raw[:8] == b"rkv-wal\n"
    return int.from_bytes(raw[at : at + 2], "little") if magic and len(raw) >= 48 else None
