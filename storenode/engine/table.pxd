from storenode.engine.native cimport cache, reader, table


cdef class Cache:
    cdef cache *native


cdef class Table:
    cdef table native
    cdef readonly Cache cache
    cdef readonly str path
    cdef readonly object file
    cdef public object discard
    cdef bytes _smallest
    cdef bytes _largest
    cdef object failure_of(self, reader *r)
