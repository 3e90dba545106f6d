from typing import final

@final
class Limits:
    """What to check an op stream against; docs/protocol.md section 5 has the defaults."""

    value_bytes_max: int
    ops_max: int
    request_bytes_max: int

    def __init__(
        self, value_bytes_max: int, ops_max: int = 10_000, request_bytes_max: int = 16 << 20
    ) -> None: ...

@final
class Shape:
    """What an op stream is: its number of ops, whether any of them writes, whether it is one SCAN; made by
    inspect().
    """

    count: int
    writes: bool
    scan: bool

@final
class Split:
    """A checked op stream, cut by partition; made by split()."""

    count: int
    writes: bool
    scan: bool
    parts: list[tuple[int, bytes]]
    """(partition, its ops in stream order), in the order the partitions are first met; empty for a SCAN and
    an empty stream.
    """

    def merge(self, results: list[bytes]) -> bytes:
        """The results of `parts`, in the same order, as the results of the whole stream in op order.

        One part's results are returned as they are. ProtocolError when a part has too few, too many or
        malformed results. May be called again.
        """

def inspect(ops: bytes, limits: Limits) -> Shape:
    """Check a whole op stream. An empty one is valid.

    Raises RequestTooLarge, TooManyOps (`limit`, `size`), KeyTooLong, ValueTooLarge (also `index`),
    Unsupported and InvalidRequest (`index`: number of the op to blame).
    """

def split(ops: bytes, bits: int, limits: Limits) -> Split:
    """Check an op stream as inspect() does and cut it for 2**bits partitions.

    A stream that touches one partition is its own part, without a copy.
    """

def repeat_error(status: int, message: str, retry_after_ms: int | None, count: int) -> bytes:
    """Results of `count` ops that failed together; the message is cut to 300 characters."""

def scan_fields(op: bytes) -> tuple[bytes, bytes | None, int, int]:
    """(start, stop, limit, flags) of a stream that is one SCAN; InvalidRequest for any other."""

def merge_scans(results: list[bytes], limit: int, flags: int) -> bytes:
    """One SCAN result per partition as the one result of the whole; `limit` and `flags` are the op's.

    The page ends after `limit` entries, 4 MiB (but one entry always), or where a partition stopped looking,
    whichever is first, and says where to go on. The first result that is an error is returned as it is.
    ProtocolError when a result is malformed or out of order.
    """
