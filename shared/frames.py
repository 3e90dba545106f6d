"""MessagePack that another process sent, decoded at a price that the frame's size alone does not set.

One byte of a frame can become a hundred of memory (an empty map is one byte, a dict is 64), so the values of
a large frame are counted in place before any of them becomes an object. Knows nothing of what the values
mean. The numbers are the largest that a well-behaved peer sends, not the policy of any one message.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from kvclient.errors import ProtocolError
from shared.values import check_values

ITEMS_MAX: Final = 1 << 16
"""Items or answers of one batch: senders cut at 4 MiB and count at least 64 bytes for each."""

VALUES_MAX: Final = 10 * ITEMS_MAX + 16
"""Values of one frame: each item is an array and its nine fields. At their worst they take less than 80 MiB,
about twice what the largest legal batch takes.
"""

UNCOUNTED_BYTES: Final = 64 << 10
"""Below this, even the worst frame decodes to less than 8 MiB."""

TEXT_BYTES_MAX: Final = 64 << 10
"""Of one str, which may grow to four times its bytes: what is large travels as bin, which does not."""

MAP_PAIRS_MAX: Final = 4096 + 1
"""Of one map: a figure for each partition of a cluster, the control partition among them."""


def decode(frame: bytes) -> Any:
    """The one value that fills `frame`, arrays as tuples; ProtocolError for anything else.

    Keys of maps are str or bytes: others can be made to collide, which takes a dict quadratic time.
    """
    if len(frame) > UNCOUNTED_BYTES:
        check_values(frame, VALUES_MAX)
    try:
        return msgpack.unpackb(
            frame,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_map_len=MAP_PAIRS_MAX,
            max_str_len=TEXT_BYTES_MAX,
            max_ext_len=0,
        )
    except Exception as error:  # noqa: BLE001 - hostile bytes raise many types
        raise ProtocolError(f"not a MessagePack value within its limits: {type(error).__name__}") from None
