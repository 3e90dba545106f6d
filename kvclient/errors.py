"""One tree of exceptions, one table: status code <-> exception class <-> kvcli exit code.

Everything the SDK raises on purpose is a `KVError`. A class also inherits the builtin it is a case of
(TimeoutError, ConnectionError, KeyError, ValueError, PermissionError), so that callers may catch either.
Attributes tell what the caller may do: `retryable` (the same call may succeed later), `maybe_applied` (the
write may have happened), `hint` (one line: what to do now).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, ClassVar


class Status(enum.IntEnum):
    """Status codes of docs/protocol.md section 4."""

    OK = 0
    NOT_FOUND = 1
    CONDITION_FAILED = 2
    NOT_AN_INTEGER = 3
    INVALID_REQUEST = 10
    KEY_TOO_LONG = 11
    VALUE_TOO_LARGE = 12
    REQUEST_TOO_LARGE = 13
    TOO_MANY_OPS = 14
    UNSUPPORTED = 15
    VERSION_MISMATCH = 16
    BUSY = 20
    NOT_LEADER = 21
    WRONG_REPLICA = 22
    UNAVAILABLE = 23
    READ_ONLY = 24
    TIMEOUT = 30
    OUTCOME_UNKNOWN = 31
    CORRUPTION = 40
    INTERNAL = 41
    PERMISSION_DENIED = 50
    COMPACTED = 60


class Exit(enum.IntEnum):
    """Exit codes of kvcli; an interface that scripts rely on."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    CONNECT = 5
    TIMEOUT = 6
    OUTCOME_UNKNOWN = 7
    UNAVAILABLE = 8
    COMPACTED = 9
    PARTIAL = 10
    DEGRADED = 11
    AUTH = 12
    VERSION = 13
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class KVError(Exception):
    """Base of every error of this package.

    `status` is the wire code it came from (or would travel as); `details` are the extra fields of the error
    body (`limit`, `size`, `node`, `index`, `retry_after_ms`), also readable as attributes of the same name,
    None when absent. `retryable`: the same call may succeed later. `maybe_applied`: a write may have
    happened. `hint`: what to do, in a line, or None. `exit_code`: that of kvcli.
    """

    status: ClassVar[Status] = Status.INTERNAL
    exit_code: ClassVar[Exit] = Exit.ERROR
    retryable: ClassVar[bool] = False
    maybe_applied: bool = False
    hint: str | None = None

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = details.pop("hint", None)
        self.details = details

    def __str__(self) -> str:
        return self.message

    @property
    def limit(self) -> int | None:
        """What would have been allowed, of a key, value, request or batch over it."""
        return self.details.get("limit")

    @property
    def size(self) -> int | None:
        """How large that key, value, request or batch was."""
        return self.details.get("size")

    @property
    def node(self) -> str | None:
        """Who refused, or could not be reached."""
        return self.details.get("node")

    @property
    def index(self) -> int | None:
        """Which op of the request is meant, from 0."""
        return self.details.get("index")

    @property
    def retry_after_ms(self) -> int | None:
        """How long to wait before the next attempt; the SDK does that by itself until the deadline."""
        return self.details.get("retry_after_ms")


class KeyNotFound(KVError, KeyError):
    """The key does not exist."""

    status = Status.NOT_FOUND
    exit_code = Exit.NOT_FOUND


class Conflict(KVError):
    """A condition did not hold; `current_version` is the key's version now, 0 if it is absent."""

    status = Status.CONDITION_FAILED
    exit_code = Exit.CONFLICT

    @property
    def current_version(self) -> int:
        """The version that the key has, 0 if it is absent."""
        return int(self.details.get("current_version", 0))


class NotAnInteger(KVError, ValueError):
    """increment() of a value that is no decimal 64-bit integer, or past its range."""

    status = Status.NOT_AN_INTEGER
    exit_code = Exit.CONFLICT


class InvalidRequest(KVError, ValueError):
    """The request is malformed; sending it again cannot help."""

    status = Status.INVALID_REQUEST
    exit_code = Exit.USAGE


class KeyTooLong(InvalidRequest):
    """Over `limit` bytes; `size` is what was sent."""

    status = Status.KEY_TOO_LONG


class ValueTooLarge(InvalidRequest):
    """Over `limit` bytes; `size` is what was sent."""

    status = Status.VALUE_TOO_LARGE


class RequestTooLarge(InvalidRequest):
    """Over `limit` bytes; `size` is what was sent."""

    status = Status.REQUEST_TOO_LARGE


class TooManyOps(InvalidRequest):
    """Over `limit` ops in one request; `size` is how many were sent."""

    status = Status.TOO_MANY_OPS


class Unsupported(InvalidRequest):
    """The other side does not know this kind, op or command."""

    status = Status.UNSUPPORTED


class ProtocolError(KVError):
    """Bytes that are no valid message. `code` is the status to answer with, `request_id` 0 if unread."""

    status = Status.INVALID_REQUEST

    def __init__(
        self, message: str, *, status: Status = Status.INVALID_REQUEST, request_id: int = 0, **details: Any
    ) -> None:
        super().__init__(message, **details)
        self.code = status
        self.request_id = request_id


class VersionMismatch(ProtocolError):
    """Client and server speak different protocol versions; the message names both."""

    status = Status.VERSION_MISMATCH
    exit_code = Exit.VERSION

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message, status=Status.VERSION_MISMATCH, **details)


class Unavailable(KVError):
    """No live replica could serve it; nothing was applied."""

    status = Status.UNAVAILABLE
    exit_code = Exit.UNAVAILABLE
    retryable = True


class Busy(Unavailable):
    """Over a budget; try again after `retry_after_ms`."""

    status = Status.BUSY


class NotLeader(Unavailable):
    """The replica is not the leader (seen by routers only)."""

    status = Status.NOT_LEADER


class WrongReplica(Unavailable):
    """The partition is not on that node; the map was stale (seen by routers only)."""

    status = Status.WRONG_REPLICA


class ReadOnly(KVError):
    """The store cannot write: disk full or read-only; the message names it."""

    status = Status.READ_ONLY
    exit_code = Exit.UNAVAILABLE


class ConnectError(KVError, ConnectionError):
    """No router could be reached; `attempts` lists (endpoint, reason)."""

    status = Status.UNAVAILABLE
    exit_code = Exit.CONNECT
    retryable = True

    @property
    def attempts(self) -> list[tuple[str, str]]:
        """Each address that was tried, and why it failed."""
        return list(self.details.get("attempts", []))


class KVTimeout(KVError, TimeoutError):
    """The deadline passed and nothing was applied."""

    status = Status.TIMEOUT
    exit_code = Exit.TIMEOUT
    retryable = True


class OutcomeUnknown(KVError, TimeoutError):
    """The write may or may not have been applied: read before you write again."""

    status = Status.OUTCOME_UNKNOWN
    exit_code = Exit.OUTCOME_UNKNOWN
    maybe_applied = True


class Corruption(KVError):
    """Stored bytes failed their checksum; the message names file and offset."""

    status = Status.CORRUPTION


class InternalError(KVError):
    """A defect on the server; its log has the details."""

    status = Status.INTERNAL


class PermissionDenied(KVError, PermissionError):
    """The client may not do this."""

    status = Status.PERMISSION_DENIED
    exit_code = Exit.AUTH


class Compacted(KVError):
    """The history asked for is gone."""

    status = Status.COMPACTED
    exit_code = Exit.COMPACTED


class ClosedError(KVError, ConnectionError):
    """The client was closed."""


class ForkedError(KVError, ConnectionError):
    """An AsyncClient was used in a forked child or on another event loop."""


class CodecError(KVError, ValueError):
    """A stored value that the client's codec cannot read, or a value it cannot write."""


class BatchError(KVError):
    """Some ops of a batch failed; `errors` lists (index, exception)."""

    exit_code = Exit.PARTIAL

    @property
    def errors(self) -> list[tuple[int, KVError]]:
        """The index of each op or item that failed, and its exception."""
        return list(self.details.get("errors", []))


BY_STATUS: dict[Status, type[KVError]] = {
    Status.NOT_FOUND: KeyNotFound,
    Status.CONDITION_FAILED: Conflict,
    Status.NOT_AN_INTEGER: NotAnInteger,
    Status.INVALID_REQUEST: InvalidRequest,
    Status.KEY_TOO_LONG: KeyTooLong,
    Status.VALUE_TOO_LARGE: ValueTooLarge,
    Status.REQUEST_TOO_LARGE: RequestTooLarge,
    Status.TOO_MANY_OPS: TooManyOps,
    Status.UNSUPPORTED: Unsupported,
    Status.VERSION_MISMATCH: VersionMismatch,
    Status.BUSY: Busy,
    Status.NOT_LEADER: NotLeader,
    Status.WRONG_REPLICA: WrongReplica,
    Status.UNAVAILABLE: Unavailable,
    Status.READ_ONLY: ReadOnly,
    Status.TIMEOUT: KVTimeout,
    Status.OUTCOME_UNKNOWN: OutcomeUnknown,
    Status.CORRUPTION: Corruption,
    Status.INTERNAL: InternalError,
    Status.PERMISSION_DENIED: PermissionDenied,
    Status.COMPACTED: Compacted,
}


def from_status(status: int, message: str, **details: Any) -> KVError:
    """The exception for a wire status; an unknown one becomes InternalError that names it."""
    try:
        return BY_STATUS[Status(status)](message, **details)
    except (ValueError, KeyError):
        return InternalError(f"unknown status {status}: {message}", **details)


def from_result(result: Sequence[Any]) -> KVError:
    """The exception of an op's result that is neither OK nor NOT_FOUND."""
    status = result[0]
    if isinstance(result[-1], KVError):
        return result[-1]  # the client's own note
    if status == Status.CONDITION_FAILED:
        version = result[1] if len(result) > 1 and type(result[1]) is int else 0
        state = f"the key has version {version}" if version else "the key is absent"
        return Conflict(f"the condition did not hold: {state}", current_version=version)
    message = result[1] if len(result) > 1 and type(result[1]) is str else "no further details"
    after = result[2] if len(result) > 2 else None
    return from_status(status, message, **({} if after is None else {"retry_after_ms": after}))
