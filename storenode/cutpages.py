"""Pages of a cut: its records from a key on, as bytes (docs/protocol.md section 6, docs/raft.md section 11).

Owns what a page is made of. Knows an engine's snapshot and op streams; no socket, no thread. Any thread.

The engine tells the time that a key has left only to who gets that key by itself. So a page is scanned twice,
the second time without values and when everything with a TTL has expired: mostly nothing is missing then, and
the page is the scan's own bytes. Only the keys that are missing are got one by one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgpack

from kvclient.protocol import (
    SCAN_KEYS_ONLY,
    decode_entries,
    decode_results,
    encode_get,
    encode_scan,
)
from storenode.replica.statemachine import Snapshot

RECORDS_MAX: Final = 10_000
"""In a page. The engine ends one at 4 MiB, or behind a record that is larger."""

NEVER: Final = (1 << 64) - 1
"""A time at which all that can expire has."""


class Page(NamedTuple):
    """`total` records as the protocol has them, with `expires_ms` if `timed`; `following`: the key to go on
    from, None at the end.
    """

    total: int
    timed: bool
    records: bytes
    following: bytes | None


def read_page(snapshot: Snapshot, start: bytes) -> Page:
    """The records from `start` on. Corruption and OSError: a table cannot be read; EngineClosed: the snapshot
    was closed.
    """
    count, entries, following = _scan(snapshot, start, None, 0)
    lasting, kept, _ = _scan(snapshot.at(NEVER), start, following, SCAN_KEYS_ONLY)
    if lasting == count:
        return Page(count, False, entries, following)
    return Page(count, True, _with_expiry(snapshot, entries, kept), following)


def _scan(
    snapshot: Snapshot, start: bytes, stop: bytes | None, flags: int
) -> tuple[int, bytes, bytes | None]:
    results = snapshot.read(encode_scan(start, stop, RECORDS_MAX, flags))
    ((_, count, entries, *resume),) = decode_results(results)
    return count, entries, resume[0] if resume else None


def _with_expiry(snapshot: Snapshot, entries: bytes, kept: bytes) -> bytes:
    """`entries` with the time when each ends. Whose key is in `kept` does not; nor does one whose GET says
    so, if the scan behind `kept` did not come to the end.
    """
    lasting = {key for key, _, _ in decode_entries(kept)}
    found = list(decode_entries(entries))
    asked = [key for key, _, _ in found if key not in lasting]
    answers = decode_results(snapshot.read(b"".join(map(encode_get, asked))))
    expires = {
        key: snapshot.now_ms + answer[3]
        for key, answer in zip(asked, answers, strict=True)
        if len(answer) == 4
    }
    packer = msgpack.Packer(use_bin_type=True, autoreset=False)
    for key, value, version in found:
        for field in (key, value, version, expires.get(key, 0)):
            packer.pack(field)
    records: bytes = packer.bytes()
    return records
