"""Which partition a key belongs to: XXH64 and the hash-tag rule (docs/protocol.md section 2).

Owns the one function that every process must agree on. `hashing_py` is its pure twin, with which the tests
compare it; the C itself is `native/xxh64.h`, which `opstream` shares. Knows nothing of nodes or maps.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "xxh64.h":
    uint64_t c_xxh64 "xxh64"(const uint8_t *data, size_t size, uint64_t seed) nogil
    void c_hashed_part "hashed_part"(const uint8_t **key, size_t *size) nogil
    uint32_t c_partition_of "partition_of"(const uint8_t *key, size_t size, int bits) nogil


def xxh64(bytes data not None, uint64_t seed=0):
    return c_xxh64(data, len(data), seed)


def hashed_part(bytes key not None):
    cdef const uint8_t *part = key
    cdef size_t size = len(key)
    c_hashed_part(&part, &size)
    return (<const char *> part)[:size]


def partition_of(bytes key not None, int bits):
    if not 0 <= bits <= 12:
        raise ValueError(f"bits must be 0..12, not {bits}")
    return c_partition_of(key, len(key), bits)
