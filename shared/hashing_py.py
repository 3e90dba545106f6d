"""The partition function in plain Python: the pure twin of `shared.hashing`, same names, same answers.

Exists so that a defect in the native code shows as a difference, and as the readable statement of the rule.
Slow; no process uses it.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_P1 = 0x9E3779B185EBCA87
_P2 = 0xC2B2AE3D27D4EB4F
_P3 = 0x165667B19E3779F9
_P4 = 0x85EBCA77C2B2AE63
_P5 = 0x27D4EB2F165667C5


def _rotate(x: int, bits: int) -> int:
    return (x << bits | x >> (64 - bits)) & _MASK


def _round(lane: int, word: int) -> int:
    return _rotate((lane + word * _P2) & _MASK, 31) * _P1 & _MASK


def _stripes(data: bytes, end: int, seed: int) -> int:
    lanes = [seed + _P1 + _P2 & _MASK, seed + _P2 & _MASK, seed, seed - _P1 & _MASK]
    for at in range(0, end, 32):
        lanes = [
            _round(lane, int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little"))
            for i, lane in enumerate(lanes)
        ]
    digest = sum(map(_rotate, lanes, (1, 7, 12, 18))) & _MASK
    for lane in lanes:
        digest = ((digest ^ _round(0, lane)) * _P1 + _P4) & _MASK
    return digest


def xxh64(data: bytes, seed: int = 0) -> int:
    """The 64-bit XXH64 of `data`."""
    at = len(data) & ~31
    digest = (_stripes(data, at, seed) if at else seed + _P5) + len(data) & _MASK
    while len(data) - at >= 8:
        word = int.from_bytes(data[at : at + 8], "little")
        digest = (_rotate(digest ^ _round(0, word), 27) * _P1 + _P4) & _MASK
        at += 8
    if len(data) - at >= 4:
        word = int.from_bytes(data[at : at + 4], "little")
        digest = (_rotate(digest ^ word * _P1 & _MASK, 23) * _P2 + _P3) & _MASK
        at += 4
    for byte in data[at:]:
        digest = _rotate(digest ^ byte * _P5 & _MASK, 11) * _P1 & _MASK
    digest = (digest ^ digest >> 33) * _P2 & _MASK
    digest = (digest ^ digest >> 29) * _P3 & _MASK
    return digest ^ digest >> 32


def hashed_part(key: bytes) -> bytes:
    """What stands between the first `{` of the key and the next `}` after it, if not empty; otherwise the
    key.
    """
    start = key.find(b"{") + 1
    if start == 0:
        return key
    stop = key.find(b"}", start)
    return key[start:stop] if stop > start else key


def partition_of(key: bytes, bits: int) -> int:
    """The key's partition among 2**bits (bits 0..12): the top bits of the XXH64 of its hashed part."""
    if not 0 <= bits <= 12:
        raise ValueError(f"bits must be 0..12, not {bits}")
    return xxh64(hashed_part(key)) >> (64 - bits)
