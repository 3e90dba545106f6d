"""The bytes of one segment: its header, its batches, and how they are found again (docs/raft.md section 4).

Knows neither files nor what a batch says. A batch that lies in another place or segment than it was made for
never passes.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from storenode.engine import codec

MAGIC: Final = b"rkv-raft"
VERSION: Final = 1
HEADER_BYTES: Final = 64
BATCH_HEAD_BYTES: Final = 24
ALIGNMENT: Final = 8
PAYLOAD_BYTES_MAX: Final = (1 << 32) - 1  # its length is stored in 32 bits

_HEADER = struct.Struct("<8sIIQQ28s")
_HEAD = struct.Struct("<IIQQ")
_CHECKED = struct.Struct("<QQIQQ")  # context, then bytes 4..24 of the batch
_CRC = struct.Struct("<I")
_PADDING: Final = tuple(bytes(-size % ALIGNMENT) for size in range(ALIGNMENT))


class Header(NamedTuple):
    version: int
    node: int
    segment: int
    first_batch: int


class Batch(NamedTuple):
    """A batch that passed."""

    offset: int
    number: int
    synced: int
    payload: bytes

    @property
    def size(self) -> int:
        """Without what fills it up."""
        return BATCH_HEAD_BYTES + len(self.payload)

    @property
    def following(self) -> int:
        """Where the next one begins."""
        return self.offset + batch_bytes(len(self.payload))


def batch_bytes(payload_bytes: int) -> int:
    """What a batch takes in a segment."""
    return -(-(BATCH_HEAD_BYTES + payload_bytes) // ALIGNMENT) * ALIGNMENT


def encode_header(node: int, segment: int, first_batch: int) -> bytes:
    head = _HEADER.pack(MAGIC, VERSION, node, segment, first_batch, bytes(28))
    return head + _CRC.pack(codec.masked_crc32c(head))


def decode_header(content: bytes, segment: int) -> Header | None:
    """None: there is no header of this segment; of a later version, only `version` means something."""
    head = content[: HEADER_BYTES - _CRC.size]
    if len(content) < HEADER_BYTES or _CRC.unpack_from(content, len(head))[0] != codec.masked_crc32c(head):
        return None
    magic, version, node, number, first_batch, _ = _HEADER.unpack(head)
    if magic != MAGIC or number != segment:
        return None  # a recycled one whose new header is lost
    return Header(version, node, number, first_batch)


def _crc(segment: int, offset: int, number: int, synced: int, payload: bytes) -> int:
    head = _CHECKED.pack(segment, offset, len(payload), number, synced)
    crc = codec.crc32c(payload, codec.crc32c(head))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def encode_batch(segment: int, offset: int, number: int, synced: int, payload: bytes) -> bytes:
    """To be written at `offset`."""
    head = _HEAD.pack(_crc(segment, offset, number, synced, payload), len(payload), number, synced)
    return b"".join((head, payload, _PADDING[len(payload) % ALIGNMENT]))


def decode_batch(content: bytes, segment: int, offset: int, at: int | None = None) -> Batch | None:
    """The batch at `offset` of the segment, which is `at` of `content`; None if none passes."""
    at = offset if at is None else at
    body = at + BATCH_HEAD_BYTES
    if body > len(content):
        return None
    crc, length, number, synced = _HEAD.unpack_from(content, at)
    if body + length > len(content):
        return None
    payload = content[body : body + length]
    if crc != _crc(segment, offset, number, synced, payload):
        return None
    return Batch(offset, number, synced, payload)


def batches(content: bytes, segment: int, number: int) -> Iterator[Batch]:
    """From the segment's first one, which must have this number, up to the first that does not pass."""
    offset = HEADER_BYTES
    while (batch := decode_batch(content, segment, offset)) is not None and batch.number == number:
        yield batch
        offset = batch.following
        number += 1


def strays(content: bytes, segment: int, start: int, number: int) -> Iterator[Batch]:
    """All batches that pass at multiples of 8 from `start` on and whose number is at least `number`.

    Only where a number may stand that fits is the checksum looked at: a recycled segment is full of old
    batches, and the numbers of those are lower.
    """
    start += -start % ALIGNMENT
    end = len(content.rstrip(b"\0"))
    words = array("Q")
    words.frombytes(content[start : min(end + -end % ALIGNMENT, len(content) & -ALIGNMENT)])
    if sys.byteorder == "big":
        words.byteswap()
    number_max = number + (len(content) - start) // BATCH_HEAD_BYTES
    places = [place for place, word in enumerate(words) if number <= word <= number_max]
    for place in places:
        offset = start + (place - 1) * ALIGNMENT  # a batch's number comes behind its crc and length
        if offset >= start and (batch := decode_batch(content, segment, offset)) is not None:
            yield batch
