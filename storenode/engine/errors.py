"""What the engine raises beside `kvclient.errors.Corruption` and `InvalidRequest`; one function makes
exceptions of native failures."""

from __future__ import annotations

import errno
import os

from kvclient.errors import Corruption

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""What the machine's owner can mend, after which writing goes on."""


class EngineError(Exception):
    """Base of the engine's own errors."""


class EngineReadOnly(EngineError):
    """Nothing was written, because the disk is full or read-only; a later try may succeed. The message has
    path and reason."""


class EngineFailed(EngineError):
    """The engine cannot say any more what is durable; it refuses to write until it is opened anew."""


def sync_failed(path: str, error: OSError, what: str = "sync") -> EngineFailed:
    """For a sync that failed, and for whatever else leaves unknown what is durable."""
    return EngineFailed(
        f"{path}: {what} failed: {error.strerror}; what is durable is unknown, open the engine anew"
    )


class EngineClosed(EngineError):
    """The engine was closed."""


class Cancelled(EngineError):
    """A job was told to stop."""


CORRUPT, IO, MEMORY, CANCELLED = 1, 2, 3, 4


def explained(os_error: int) -> str:
    """What an errno means, with what to do if there is something."""
    text = os.strerror(os_error)
    if os_error == errno.EMFILE:
        return f"{text}: raise the limit of the process (ulimit -n), or open fewer engines and snapshots"
    return text


def failed(code: int, path: str, offset: int, what: str, os_error: int) -> Exception:
    """The exception for a native failure (FAILURE_* of native/bytes.h)."""
    if code == IO:
        return OSError(os_error, explained(os_error), path)
    if code == MEMORY:
        return MemoryError(what)
    if code == CANCELLED:
        return Cancelled(path)
    return Corruption(f"{path}: {what} (offset {offset})")
