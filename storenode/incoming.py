"""The files of a snapshot that is being pulled, and the journal by which a pull goes on after a restart.

Owns `TARGET.incoming` and all in it. Must not know requests, time or sockets. Blocks as long as the disk
does; every method may raise OSError, after which only `close` may be called.

Invariants:
- `.journal` is durable before the first file is begun. What another journal left is removed before.
- A file is `.NAME` while it grows, from its beginning to its end, and NAME when it is whole, of the right
  sum, and durable. So what has its name needs no second look, what has not is summed from its beginning.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any, Final, NamedTuple

import msgpack

from kvclient.errors import ProtocolError
from shared import frames
from storenode import snapshotfiles
from storenode.bulkprotocol import FileMeta, mask
from storenode.engine import codec
from storenode.engine.vfs import File, Vfs

SUFFIX: Final = ".incoming"
JOURNAL: Final = ".journal"
VERSION: Final = 1


class Journal(NamedTuple):
    """Which snapshot it is."""

    group: int
    snapshot: int
    state: bytes
    files: tuple[FileMeta, ...]


class Incoming:
    """What there is of the snapshot that shall be `target`. Nothing is touched before `begin`."""

    def __init__(self, target: str, vfs: Vfs) -> None:
        self.offset = 0
        self._target = target
        self._directory = target + SUFFIX
        self._vfs = vfs
        self._journal: Journal | None = None
        self._name = ""
        self._file: File | None = None
        self._crc = 0

    def begin(self, journal: Journal) -> None:
        """Go on with this snapshot; if what there is belongs to another one, begin it anew."""
        if journal == self._journal:
            return
        self.close()
        self._journal = None
        if _exists(self._vfs, self._target):
            raise FileExistsError(errno.EEXIST, "a snapshot is pulled to a new directory", self._target)
        if self._read_journal() != _plain(journal):
            snapshotfiles.remove_tree(self._vfs, self._directory)
            self._vfs.make_directory(self._directory)
            self._write_journal(journal)
        self._journal = journal

    def missing(self) -> list[FileMeta]:
        """The files that are not whole yet, in order."""
        assert self._journal is not None
        names = dict(snapshotfiles.list_files(self._vfs, self._directory))
        return [file for file in self._journal.files if names.get(file.name) != file.size]

    def open(self, file: FileMeta) -> int:
        """Turn to one of the missing files: the offset at which it goes on."""
        if self._file is not None and self._name == file.name:
            return self.offset
        self.close()
        path = self._partial(file.name)
        if "/" in file.name:
            with contextlib.suppress(FileExistsError):
                self._vfs.mkdir(os.path.dirname(path))
        try:
            opened = self._vfs.open(path, writable=True)
        except FileNotFoundError:
            opened = self._vfs.create(path)
        self._name, self._file = file.name, opened
        size = self._vfs.size(path)
        if size > file.size:
            opened.truncate(size := 0)
        for self._crc, count in snapshotfiles.sum_steps(opened, size):
            self.offset += count
        return self.offset

    def append(self, data: bytes) -> None:
        """The next bytes of the file that is open."""
        assert self._file is not None
        self._file.write_at(self.offset, data)
        self._crc = codec.crc32c(data, self._crc)
        self.offset += len(data)

    def finish(self, file: FileMeta) -> bool:
        """Give the open file, which has all its bytes, its name. False: its sum is wrong, it is removed."""
        assert self._file is not None
        path = self._partial(file.name)
        whole = mask(self._crc) == file.crc
        if whole:
            self._file.sync()
        self.close()
        if whole:
            self._vfs.rename(path, os.path.join(self._directory, file.name))
        else:
            self._vfs.unlink(path)
        return whole

    def complete(self) -> str:
        """All files are whole: the snapshot gets its name, durably, which is returned."""
        assert self._journal is not None
        for name in sorted({os.path.dirname(file.name) for file in self._journal.files}):
            self._vfs.sync_directory(os.path.join(self._directory, name))
        self._vfs.unlink(os.path.join(self._directory, JOURNAL))
        self._vfs.sync_directory(self._directory)
        self._vfs.rename(self._directory, self._target)
        self._vfs.sync_directory(os.path.dirname(os.path.abspath(self._target)))
        return self._target

    def close(self) -> None:
        """Let go of the open file; what there is of it stays."""
        self.offset = self._crc = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _partial(self, name: str) -> str:
        directory, base = os.path.split(name)
        return os.path.join(self._directory, directory, "." + base)

    def _read_journal(self) -> Any:
        """What `_plain` made of the journal that is there; None if there is no sound one."""
        try:
            content = self._vfs.read(os.path.join(self._directory, JOURNAL))
        except FileNotFoundError:
            return None
        body, crc = content[:-4], content[-4:]
        if codec.masked_crc32c(body) != int.from_bytes(crc, "little"):
            return None
        try:
            return frames.decode(body)
        except ProtocolError:
            return None

    def _write_journal(self, journal: Journal) -> None:
        body: bytes = msgpack.packb(_plain(journal), use_bin_type=True)
        path = os.path.join(self._directory, JOURNAL)
        with contextlib.closing(self._vfs.create(path)) as file:
            file.write_at(0, body + codec.masked_crc32c(body).to_bytes(4, "little"))
            file.sync()
        self._vfs.sync_directory(self._directory)


def _plain(journal: Journal) -> tuple[Any, ...]:
    return (VERSION, journal.group, journal.snapshot, journal.state, tuple(map(tuple, journal.files)))


def _exists(vfs: Vfs, path: str) -> bool:
    try:
        vfs.listdir(path)
    except FileNotFoundError:
        return False
    return True
