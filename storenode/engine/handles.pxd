from storenode.engine.native cimport handles


cdef class Handles:
    cdef handles *native
    cdef object vfs
