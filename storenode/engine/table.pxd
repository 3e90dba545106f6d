from storenode.engine.handles cimport Handles
from storenode.engine.native cimport cache, handle, reader, table


cdef class Cache:
    cdef cache *native


cdef class Table:
    cdef table native
    cdef handle file
    cdef bint pinned
    cdef readonly Cache cache
    cdef readonly str path
    cdef Handles handles
    cdef object __weakref__
    cdef public object discard
    cdef bytes _smallest
    cdef bytes _largest
    cdef object failure_of(self, reader *r)
