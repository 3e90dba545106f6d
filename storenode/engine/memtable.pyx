"""The memtable as an object: owns the native skip list and frees it with its last reference.

Written by the view it is the first memtable of; once that view is replaced by a rotation, nobody writes it
any more.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from storenode.engine.native cimport (
    KIND_PUT,
    cursor,
    cursor_free,
    cursor_init_memory,
    cursor_seek,
    cursor_step,
    entry,
    entry_kind,
    entry_sequence,
    memtable_add,
    memtable_free,
    memtable_new,
    slice_of,
    trailer_of,
)


cdef class Memtable:
    def __cinit__(self, unsigned long long first_wal=0):
        self.native = memtable_new()
        if self.native == NULL:
            raise MemoryError
        self.first_wal = first_wal

    def __dealloc__(self):
        memtable_free(self.native)

    @property
    def memory_bytes(self):
        return self.native.bytes

    @property
    def count(self):
        return self.native.count

    def add(self, bytes key, uint64_t sequence, int kind=KIND_PUT, bytes value=b"", uint64_t deadline=0):
        cdef entry e
        e.key = slice_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        e.trailer = trailer_of(sequence, kind)
        e.value = slice_of(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        e.deadline = deadline
        if memtable_add(self.native, &e, 0) < 0:
            raise MemoryError

    def entries(self, bint reverse=False):
        cdef cursor c
        cdef list found = []
        cursor_init_memory(&c, self.native, reverse)
        cursor_seek(&c, NULL)
        while c.valid:
            found.append((
                <bytes>(<char *>c.at.key.data)[: c.at.key.size],
                entry_sequence(&c.at),
                entry_kind(&c.at),
                <bytes>(<char *>c.at.value.data)[: c.at.value.size] if c.at.value.size else b"",
                c.at.deadline,
            ))
            cursor_step(&c)
        cursor_free(&c)
        return found
