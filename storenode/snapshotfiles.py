"""The files of a snapshot, on either side: walked, summed and removed through the engine's vfs.

Knows no request and no socket. A snapshot is at most one directory deep.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from storenode.engine import codec
from storenode.engine.vfs import File, Vfs

STEP_BYTES = 1 << 20
"""Read at a time while a file is summed."""


def read_at(file: File, offset: int, length: int) -> bytes:
    """All `length` bytes; OSError if the file ends before."""
    parts = []
    while length:
        part = os.pread(file.fd, length, offset)
        if not part:
            raise OSError(0, f"the file ends at byte {offset}", file.path)
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def list_files(vfs: Vfs, directory: str) -> list[tuple[str, int]]:
    """(name, bytes) of all files, in order of their names; names in a subdirectory have it before a `/`."""
    found = []
    for name in sorted(vfs.listdir(directory)):
        try:
            inner = sorted(vfs.listdir(os.path.join(directory, name)))
        except NotADirectoryError:
            found.append((name, vfs.size(os.path.join(directory, name))))
        else:
            found += [(f"{name}/{file}", vfs.size(os.path.join(directory, name, file))) for file in inner]
    return found


def sum_steps(file: File, size: int) -> Iterator[tuple[int, int]]:
    """(CRC-32C so far, bytes of this step) for each STEP_BYTES of the first `size` bytes; OSError if there
    are fewer."""
    crc, offset = 0, 0
    while offset < size:
        part = read_at(file, offset, min(STEP_BYTES, size - offset))
        crc = codec.crc32c(part, crc)
        offset += len(part)
        yield crc, len(part)


def remove_tree(vfs: Vfs, directory: str) -> None:
    """The directory and all in it; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        for name in vfs.listdir(directory):
            path = os.path.join(directory, name)
            try:
                inner = vfs.listdir(path)
            except NotADirectoryError:
                vfs.unlink(path)
                continue
            for file in inner:
                vfs.unlink(os.path.join(path, file))
            vfs.rmdir(path)
        vfs.rmdir(directory)
