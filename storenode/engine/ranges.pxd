from storenode.engine.native cimport range_interval, range_set


cdef class Ranges:
    cdef range_set native
    cdef range_interval *owned
    cdef readonly tuple deletions
    cdef readonly tuple intervals

    cdef void hold(self, list intervals) except *
