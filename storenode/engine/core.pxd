from libc.stdint cimport uint64_t

from storenode.engine.native cimport log_window
from storenode.engine.view cimport View


cdef class Core:
    cdef public object tree
    cdef public object background
    cdef public uint64_t next_sequence
    cdef public uint64_t now_ms
    cdef public int fd
    cdef public uint64_t file_id
    cdef public uint64_t length
    cdef public uint64_t synced
    cdef public uint64_t reserved
    cdef public uint64_t limit
    cdef public uint64_t bytes_written
    cdef public bint ends
    cdef public bint writing
    cdef public bint appending
    cdef public bint applying
    cdef uint64_t armed_view
    cdef log_window window
    cdef uint64_t written_back

    cpdef void arm(self, View view)
    cpdef void leave_window(self)
    cpdef void begin_writeback(self)
    cdef bint put_short(self, View view, key, value) except -1
