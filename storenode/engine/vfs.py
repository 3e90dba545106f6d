"""The only module of the engine that touches files. Small, so that a twin for crash tests can take its place.

Native code gets file descriptors from here; it reads and writes, but never opens, syncs, renames or removes.
It closes only what it was given for reading (native/handles.h).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from contextlib import AbstractContextManager

COPY_BYTES = 1 << 20

UNLINKABLE = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})
"""Another file system, another owner, too many names already, a file system without links."""


class File:
    """An open file. `fd` stays valid until `close`."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of `data`; OSError may leave a part of it behind."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self.fd, rest, offset)
            offset += written
            rest = rest[written:]

    @property
    def mappable(self) -> bool:
        """Whether storing into a mapping of `fd` comes to the same as `write_at`: not if a twin watches the
        writes."""
        return type(self).write_at is File.write_at

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def reserve(self, size: int) -> None:
        """See that the file is `size` bytes long and that the disk has room for all of them."""
        held = os.fstat(self.fd).st_size
        if held < size:
            os.posix_fallocate(self.fd, held, size - held)

    def sync(self) -> None:
        """Make content and size durable."""
        os.fdatasync(self.fd)

    def detach(self) -> int:
        """Give up a file that was opened for reading: the caller closes the descriptor."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Vfs:
    """The machine's file system."""

    def create(self, path: str) -> File:
        """A new file for writing and reading; FileExistsError if there is one."""
        return File(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))

    def open(self, path: str, *, writable: bool = False) -> File:
        mode = os.O_RDWR if writable else os.O_RDONLY
        return File(path, os.open(path, mode | os.O_CLOEXEC))

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def rename(self, source: str, target: str) -> None:
        """Of a file, or of a directory to a name that is free or an empty directory's."""
        os.rename(source, target)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def duplicate(self, source: str, target: str) -> None:
        """A second name for a file that nobody changes any more; where it cannot have one, a durable copy.
        OSError: there is no `target`."""
        try:
            self.link(source, target)
        except OSError as error:
            if error.errno not in UNLINKABLE:
                raise
            self._copy(source, target)

    def _copy(self, source: str, target: str) -> None:
        with (
            contextlib.closing(self.open(source)) as original,
            contextlib.closing(self.create(target)) as copy,
        ):
            try:
                offset = 0
                while part := os.pread(original.fd, COPY_BYTES, offset):
                    copy.write_at(offset, part)
                    offset += len(part)
                copy.sync()
            except BaseException:
                self.unlink(target)
                raise

    def unlink(self, path: str) -> None:
        """Remove a file; one that is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def sync(self, path: str) -> None:
        """Make the content of a file durable, whoever wrote it."""
        with contextlib.closing(self.open(path)) as file:
            file.sync()

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def make_directory(self, path: str) -> None:
        """The directory and those above it, durably."""
        parent = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(path):
            self.make_directory(parent)
            with contextlib.suppress(FileExistsError):
                self.mkdir(path)
        self.sync_directory(parent)

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def transaction(self, path: str) -> AbstractContextManager[None]:
        """To be held while a library that writes the file `path` on its own makes a change durable."""
        return contextlib.nullcontext()

    def lock(self, path: str) -> File:
        """An exclusive lock, held until the file is closed or the process ends; BlockingIOError if another
        has it."""
        file = File(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise BlockingIOError(error.errno, "in use by another process", path) from None
        return file
