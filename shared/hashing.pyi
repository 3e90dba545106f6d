def xxh64(data: bytes, seed: int = 0) -> int:
    """The 64-bit XXH64 of `data`."""

def hashed_part(key: bytes) -> bytes:
    """What stands between the first `{` of the key and the next `}` after it, if not empty; otherwise the
    key.
    """

def partition_of(key: bytes, bits: int) -> int:
    """The key's partition among 2**bits (bits 0..12): the top bits of the XXH64 of its hashed part."""
