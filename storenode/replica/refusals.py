"""Why a replica does not serve a write or a read, as the store's answer says it. `retry_after_ms`: when to
ask again.
"""

from __future__ import annotations

from typing import Final

from kvclient.protocol import encode_error

BUSY_RETRY_MS: Final = 20  # a few log writes
PRESSURE_RETRY_MS: Final = 200  # level-0 compactions take this long, not microseconds
LOST_RETRY_MS: Final = 50  # an election is under way, or over

TIMEOUT = encode_error("the deadline passed before the write was proposed; nothing was applied")
READ_TIMEOUT = encode_error("the deadline passed before the read could be served")
MANY_READS = encode_error("too many reads of this partition wait already", retry_after_ms=BUSY_RETRY_MS)
OVER_BUDGET = encode_error("too many bytes of writes in flight on this store", retry_after_ms=BUSY_RETRY_MS)
MANY_ATTEMPTS = encode_error("too many attempts of this write wait already", retry_after_ms=BUSY_RETRY_MS)
PRESSURE = encode_error("compaction is behind, writes wait for it", retry_after_ms=PRESSURE_RETRY_MS)
LOST = encode_error(
    "this write may or may not have been applied: its store does not lead the partition any more",
    retry_after_ms=LOST_RETRY_MS,
)
NO_SESSION = encode_error("this write may or may not have been applied: it has no session to ask")
