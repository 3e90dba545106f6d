"""The pairs of a range as one sequence, of one moment (native/scan.h).

Keys and values are gathered natively without the interpreter's lock, some at a time; each becomes an object when it
is asked for. The view is held to the end, and what the iterator stands on in it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from storenode.engine.native cimport (
    SCAN_REVERSE,
    merge,
    merge_free,
    msgpack_bin,
    msgpack_uint,
    reader,
    scan,
    scan_free,
    scan_more,
    scan_open,
    slice,
    slice_of,
)
from storenode.engine.view cimport View


cdef extern from "Python.h":
    void PyObject_GC_UnTrack(PyObject *)
    Py_ssize_t Py_REFCNT(PyObject *)


# Gathered the first time; twice as many each time up to the last. Who stops early has looked at little in vain.
cdef uint64_t GATHERED_FIRST = 16
cdef uint64_t GATHERED_LAST = 512


cdef class Iterator:
    cdef View view
    cdef bytes start
    cdef bytes stop
    cdef scan page
    cdef merge sources
    cdef reader r
    cdef uint64_t gathered
    cdef uint64_t left
    cdef const uint8_t *at
    cdef const uint8_t *end
    cdef tuple pair
    cdef bint busy

    def __cinit__(self, View view not None, bytes start not None, stop, uint64_t limit, bint reverse,
                  uint64_t sequence, uint64_t now_ms):
        self.view = view
        self.start = start
        self.stop = stop
        self.left = limit
        self.gathered = GATHERED_FIRST
        self.page.start = slice_of(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
        if stop is not None:
            self.page.has_stop = 1
            self.page.stop = slice_of(PyBytes_AS_STRING(self.stop), PyBytes_GET_SIZE(self.stop))
        self.page.flags = SCAN_REVERSE if reverse else 0
        self.page.sequence = sequence
        self.page.now_ms = now_ms
        self.page.goes_on = 1
        self.page.has_resume = 1
        view.open_reader(&self.r, False)
        if scan_open(&self.page, &view.native, &self.r, &self.sources) < 0:
            raise MemoryError

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        merge_free(&self.sources)
        scan_free(&self.page)
        memset(&self.page, 0, sizeof(self.page))
        self.at = self.end = NULL

    def close(self):
        if self.busy:
            raise RuntimeError("another thread is using the iterator")
        self.release()
        self.view = None

    cdef bint gather(self) except -1:
        """Get the next ones; False: there are none."""
        cdef int result = 0
        if self.busy:
            raise RuntimeError("two threads use one iterator")
        self.page.count = 0
        while result == 0 and self.page.has_resume and self.left and not self.page.count:
            self.page.limit = min(self.gathered, self.left)
            self.gathered = min(2 * self.gathered, GATHERED_LAST)
            self.busy = True
            with nogil:
                result = scan_more(&self.page, &self.sources, &self.r)
            self.busy = False
        if result < 0:
            error = self.view.failed(&self.r.failed)
            self.close()
            raise error
        if self.page.count == 0:
            self.close()
            return False
        self.left -= self.page.count
        self.at = self.page.entries.data
        self.end = self.at + self.page.entries.size
        return True

    def __iter__(self):
        return self

    def __next__(self):
        cdef slice key, value
        cdef uint64_t version
        cdef const uint8_t *p
        if self.at == self.end and (self.view is None or not self.gather()):
            raise StopIteration
        p = msgpack_bin(self.at, self.end, &key)
        p = msgpack_bin(p, self.end, &value)
        self.at = msgpack_uint(p, self.end, &version)
        return self.take(
            PyBytes_FromStringAndSize(<char *>key.data, key.size),
            PyBytes_FromStringAndSize(<char *>value.data, value.size),
        )

    cdef tuple take(self, bytes key, bytes value):
        """The pair; in the tuple of the one before, if nobody has kept that."""
        cdef tuple pair = self.pair
        cdef PyObject *old_key
        cdef PyObject *old_value
        if pair is not None and Py_REFCNT(<PyObject *>pair) == 2:  # self.pair and this
            old_key = PyTuple_GET_ITEM(pair, 0)
            old_value = PyTuple_GET_ITEM(pair, 1)
            Py_INCREF(key)
            Py_INCREF(value)
            PyTuple_SET_ITEM(pair, 0, key)
            PyTuple_SET_ITEM(pair, 1, value)
            Py_DECREF(<object>old_key)
            Py_DECREF(<object>old_value)
            return pair
        pair = PyTuple_New(2)
        Py_INCREF(key)
        Py_INCREF(value)
        PyTuple_SET_ITEM(pair, 0, key)
        PyTuple_SET_ITEM(pair, 1, value)
        PyObject_GC_UnTrack(<PyObject *>pair)  # as the collector would, after looking at each of many
        self.pair = pair
        return pair
