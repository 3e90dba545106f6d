from libc.stdint cimport uint64_t

from storenode.engine.memtable cimport Memtable
from storenode.engine.native cimport buffer, execution, failure, memtable, reader, scratch, slice, stream_shape, table, view
from storenode.engine.ranges cimport Ranges
from storenode.engine.reads cimport Reads
from storenode.engine.table cimport Cache


cdef uint64_t wall_ms() noexcept


cdef class View:
    cdef view native
    cdef readonly tuple memtables
    cdef readonly tuple runs
    cdef readonly Memtable active
    cdef readonly uint64_t serial
    cdef readonly Reads reads
    cdef Ranges ranges
    cdef Cache cache
    cdef str directory
    cdef table **table_pointers

    cpdef object get(self, bytes key, uint64_t sequence, uint64_t now_ms, bint by_clock=*)
    cdef object failed(self, failure *f)
    cdef void open_reader(self, reader *r, bint keeps_lock) noexcept
    cdef bytes execute(self, ops, execution *x, memtable *active, stream_shape *shape)
    cdef int run(
        self,
        execution *x,
        memtable *active,
        const slice *streams,
        size_t count,
        size_t *ends,
        bint is_short,
        buffer *out,
    ) except -1
    cdef object damage(self, execution *x)
    cdef int get_group(
        self,
        reader *r,
        scratch *s,
        const slice *keys,
        Py_ssize_t count,
        uint64_t sequence,
        uint64_t now_ms,
        buffer *out,
        Py_ssize_t *ends,
    ) noexcept nogil
