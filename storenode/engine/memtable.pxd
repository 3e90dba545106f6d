from storenode.engine.native cimport memtable


cdef class Memtable:
    cdef memtable *native
    cdef readonly unsigned long long first_wal
