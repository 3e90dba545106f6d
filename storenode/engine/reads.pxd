from libc.stdint cimport uint64_t

from storenode.engine.native cimport reader


cdef class Reads:
    cdef readonly uint64_t lookups
    cdef readonly uint64_t filtered
    cdef readonly uint64_t searched
    cdef readonly uint64_t misled
    cdef readonly uint64_t blocks_searched

    cdef void add(self, const reader *r) noexcept
