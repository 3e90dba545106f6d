"""Reading an engine's logs back: which of them are one history, and where that ends (docs/formats.md).

A crash may leave holes in what was never durable: the end of the newest log, and of those that ended but were
not synced before it. The history ends at the first hole, and what follows is given up, but only if nothing
proves that the hole was durable once: then it is damage, and Corruption says where. Reading changes nothing;
`make_durable` does what was decided, and may be cut short by a crash anywhere: what is left is read the same
way.
"""

from __future__ import annotations

from typing import NamedTuple

from kvclient.errors import Corruption
from storenode.engine import codec
from storenode.engine.vfs import Vfs
from storenode.engine.wal import HEADER_BYTES, MAGIC, VERSIONS, Entry, wal_path


class Log(NamedTuple):
    """A log as it was read: entries in order, and where its sound part ends. `length` 0: not even the
    header was whole. `clean`: nothing but reserved room follows."""

    number: int
    path: str
    entries: list[Entry]
    length: int
    clean: bool
    previous: int = 0
    previous_length: int = 0
    unsynced: int = 0


class Chain(NamedTuple):
    """`logs` are the history, oldest first; the newest is to be cut at its length, and `torn`, which were
    written behind a hole, are to be removed."""

    logs: list[Log]
    torn: list[Log]

    def make_durable(self, vfs: Vfs) -> None:
        """Leave nothing but the history, with everything durable that only the page cache still held: the
        next log will vouch for it. Its names are durable after a sync of the directory."""
        for log in reversed(self.torn):
            vfs.unlink(log.path)
        for number, log in enumerate(self.logs, 1):
            if number == len(self.logs):
                _cut(vfs, log.path, log.length)
            elif self.logs[number].unsynced:
                vfs.sync(log.path)


class _Hole(NamedTuple):
    """Bytes from `offset` of a log are missing, and so is the history behind them."""

    number: int
    offset: int
    what: str


def read_chain(vfs: Vfs, directory: str, engine_id: int, numbers: list[int], log_number: int) -> Chain:
    """The logs of these numbers, ascending; `log_number`: the first one that the manifest needs, 0 if it
    knows of none. Corruption names file and offset."""
    if log_number and (not numbers or numbers[0] != log_number):
        raise Corruption(f"{wal_path(directory, log_number)}: the log is missing")
    logs = [_read_log(vfs, directory, engine_id, number) for number in numbers]
    for position, log in enumerate(logs):
        hole = _hole_before(directory, logs[position - 1] if position else None, log, log_number)
        if hole is not None:
            if hole.number == log_number and hole.offset < HEADER_BYTES:
                raise Corruption(hole.what)
            _refuse_if_durable(vfs, engine_id, hole, logs[position:])
            return Chain(logs[:position], logs[position:])
    return Chain(logs, [])


def is_zeros(content: bytes, start: int) -> bool:
    """Whether nothing but zeros follows: room that was reserved and not used."""
    return content.count(0, start) == len(content) - start


def _hole_before(directory: str, before: Log | None, log: Log, log_number: int) -> _Hole | None:
    """What is missing before the first record of a log, if anything. Corruption: these two logs cannot
    follow each other at all."""
    if log.length == 0:
        if before is not None and not before.clean:
            return _Hole(before.number, before.length, _damaged(before))
        return _Hole(log.number, 0, f"{log.path}: damaged log header (offset 0)")
    if before is None:
        if log.previous < max(log_number, 1):
            return None
        return _Hole(log.previous, 0, f"{wal_path(directory, log.previous)}: the log is missing")
    follows = f"{log.path}: follows log {log.previous} of {log.previous_length} bytes, "
    follows += f"but there is {before.number} of {before.length}"
    what = follows if before.clean else f"{_damaged(before)} in a log that was complete"
    if log.previous > before.number:
        return _Hole(log.previous, 0, what) if before.clean else _Hole(before.number, before.length, what)
    if log.previous == before.number and log.previous_length > before.length:
        return _Hole(before.number, before.length, what)
    if (log.previous, log.previous_length) != (before.number, before.length) or not before.clean:
        raise Corruption(what)
    return None


def _refuse_if_durable(vfs: Vfs, engine_id: int, hole: _Hole, later: list[Log]) -> None:
    """Corruption if a log behind a hole proves that what is missing there was durable. What its own log
    proves was looked at when that was read."""
    for log in later:
        if log.length:
            known = log.previous_length - log.unsynced
            if log.previous < hole.number or known > (hole.offset if log.previous == hole.number else 0):
                raise Corruption(hole.what)
        if log.number > hole.number:
            proof = codec.wal_proof(vfs.read(log.path), engine_id << 48 | log.number, 0)
            if proof:
                raise Corruption(f"{hole.what}; {log.path} (offset {proof}) proves that it was durable")


def _read_log(vfs: Vfs, directory: str, engine_id: int, number: int) -> Log:
    """Read and check one log. Corruption: it is damaged where it proves itself that it was durable."""
    path = wal_path(directory, number)
    content = vfs.read(path)
    file_id = engine_id << 48 | number
    entries, end = codec.wal_scan(content, file_id, HEADER_BYTES)
    if not _header_is_sound(path, content, engine_id, number):
        if end > HEADER_BYTES or codec.wal_proof(content, file_id, 0):
            raise Corruption(f"{path}: damaged log header (offset 0)")
        return Log(number, path, [], 0, clean=False)
    clean = is_zeros(content, end)
    if not clean:
        proof = codec.wal_proof(content, file_id, end)
        if proof:
            raise Corruption(
                f"{path}: damaged record (offset {end}); the record at {proof} proves that it was durable"
            )
    previous, previous_length, unsynced = (
        int.from_bytes(content[start:stop], "little") for start, stop in ((24, 32), (32, 40), (40, 44))
    )
    return Log(number, path, entries, end, clean, previous, previous_length, unsynced)


def _header_is_sound(path: str, content: bytes, engine_id: int, number: int) -> bool:
    if len(content) < HEADER_BYTES:
        return False
    if codec.masked_crc32c(content[:44]) != int.from_bytes(content[44:48], "little"):
        return False
    if content[:8] != MAGIC:
        raise Corruption(f"{path}: not a log (offset 0)")
    if int.from_bytes(content[8:12], "little") not in VERSIONS:
        raise Corruption(f"{path}: unknown log version (offset 8)")
    if content[12:16] != engine_id.to_bytes(4, "little") or content[16:24] != number.to_bytes(8, "little"):
        raise Corruption(f"{path}: the log of another engine or number (offset 12)")
    return True


def _damaged(log: Log) -> str:
    return f"{log.path}: damaged record (offset {log.length})"


def _cut(vfs: Vfs, path: str, length: int) -> None:
    file = vfs.open(path, writable=True)
    try:
        file.truncate(length)
        file.sync()
    finally:
        file.close()
