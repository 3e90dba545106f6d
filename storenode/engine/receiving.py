"""A checkpoint that travels: which files to send, and making a directory of what arrives.

Knows nothing of sockets and of what the files mean; whether the checkpoint is sound is install.py's question.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable

from storenode.engine import checkpoint
from storenode.engine.vfs import File, Vfs

MANIFEST = "manifest/data.mdb"
TRAVELS = re.compile(r"[0-9]{6,20}\.sst|manifest/data\.mdb")
"""No other names, above all none that lead out of the directory. LMDB's lock file stays: a process has it."""


def checkpoint_files(directory: str, vfs: Vfs | None = None) -> list[tuple[str, int]]:
    """The files of a checkpoint, as (name in it, bytes); the manifest is the last."""
    vfs = Vfs() if vfs is None else vfs
    names = sorted(name for name in vfs.listdir(directory) if TRAVELS.fullmatch(name))
    return [(name, vfs.size(os.path.join(directory, name))) for name in (*names, MANIFEST)]


def remove_checkpoint(directory: str, vfs: Vfs | None = None) -> None:
    """Remove a checkpoint, and what may have been begun under its name; nothing there is fine. OSError if
    there is something else in it: then nothing was removed."""
    vfs = Vfs() if vfs is None else vfs
    for path in (directory, directory + checkpoint.INCOMPLETE):
        checkpoint.remove(vfs, path)


class CheckpointReceiver:
    """Makes the checkpoint `directory` of files that arrive piece by piece.

    It is made under another name, and gets its own by `finish`, when all of it is durable; what a crash
    leaves is removed by the next one. Used by one thread at a time.
    """

    def __init__(self, directory: str, files: Iterable[tuple[str, int]], vfs: Vfs | None = None) -> None:
        """`files`: what `checkpoint_files` said where it comes from. ValueError: these cannot be the files of
        a checkpoint. FileExistsError: there is something in `directory`."""
        self.directory = os.path.abspath(directory)
        self._vfs = Vfs() if vfs is None else vfs
        self._made = self.directory + checkpoint.INCOMPLETE
        listed = list(files)
        self._sizes = dict(listed)
        _check_listed(listed)
        self._received = dict.fromkeys(self._sizes, 0)
        self._open: dict[str, File] = {}
        checkpoint.refuse_used(self._vfs, self.directory)
        self._vfs.make_directory(os.path.dirname(self.directory))
        checkpoint.remove(self._vfs, self._made)
        self._vfs.mkdir(self._made)
        self._vfs.mkdir(os.path.join(self._made, "manifest"))

    def received(self, name: str) -> int:
        """How many bytes of a file are there: where it goes on."""
        return self._received[name]

    @property
    def is_complete(self) -> bool:
        return self._received == self._sizes

    def write(self, name: str, offset: int, data: bytes) -> None:
        """The next bytes of a file; the last ones make it durable. ValueError: they are not the next, or more
        than were announced. OSError: nothing of them counts."""
        size = self._sizes.get(name)
        if size is None or not data or offset != self._received[name] or offset + len(data) > size:
            raise ValueError(f"{name}: {len(data)} bytes at {offset} are not what comes next")
        file = self._open.get(name)
        if file is None:
            file = self._open[name] = self._vfs.create(os.path.join(self._made, name))
        file.write_at(offset, data)
        if offset + len(data) == size:
            file.sync()
            file.close()
            del self._open[name]
        self._received[name] += len(data)

    def finish(self) -> None:
        """Give the directory its name, durably. ValueError: something is missing."""
        if not self.is_complete:
            missing = sum(self._sizes.values()) - sum(self._received.values())
            raise ValueError(f"{self.directory}: {missing} bytes have not arrived yet")
        self._vfs.sync_directory(os.path.join(self._made, "manifest"))
        self._vfs.sync_directory(self._made)
        self._vfs.rename(self._made, self.directory)
        self._vfs.sync_directory(os.path.dirname(self.directory))

    def abort(self) -> None:
        """Give up: close and remove what has arrived, as far as the disk lets us."""
        for file in self._open.values():
            file.close()
        self._open.clear()
        with contextlib.suppress(OSError):
            checkpoint.remove(self._vfs, self._made)


def _check_listed(listed: list[tuple[str, int]]) -> None:
    names = [name for name, _ in listed]
    wrong = [name for name, size in listed if not TRAVELS.fullmatch(name) or size < 1]
    if wrong or len(set(names)) != len(names) or MANIFEST not in names:
        raise ValueError(f"not the files of a checkpoint: {wrong[:3] or names[:3]}")
