"""Writes a prepared table: a table file of its own, outside of any engine, for `Engine.ingest`.

Its entries have sequence 0 until an engine gives them one (docs/formats.md section 4). Knows nothing of engines.
"""

import os
import time

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from storenode.engine.errors import failed
from storenode.engine.jobs import compression_at
from storenode.engine.native cimport (
    KEY_BYTES_LIMIT,
    KIND_DELETE,
    KIND_PUT,
    KIND_PUT_DEADLINE,
    VALUE_BYTES_LIMIT,
    buffer_slice,
    entry,
    slice_compare,
    slice_of,
    table_writer,
    table_writer_add,
    table_writer_begin,
    table_writer_compress,
    table_writer_finish,
    table_writer_free,
    table_writer_init,
    trailer_of,
)
from storenode.engine.options import LEVELS, Options
from storenode.engine.version import PREPARED_ID
from storenode.engine.vfs import Vfs


cdef class TableWriter:
    cdef table_writer native
    cdef readonly str path
    cdef object vfs
    cdef object file
    cdef bint is_ours

    def __init__(self, path, *, options=None, vfs=None):
        options = options or Options()
        self.path = os.path.abspath(path)
        self.vfs = vfs or Vfs()
        table_writer_init(
            &self.native, options.block_bytes, options.restart_interval, options.bits_per_key
        )
        if table_writer_compress(&self.native, compression_at(LEVELS - 1, options)) < 0:
            raise MemoryError
        self.file = self.vfs.create(self.path)
        self.is_ours = True
        file_id = PREPARED_ID << 48 | int.from_bytes(os.urandom(6), "little")
        table_writer_begin(&self.native, self.file.fd, 0, file_id, time.time_ns() // 1_000_000)

    def __dealloc__(self):
        table_writer_free(&self.native)

    @property
    def entries(self):
        return self.native.totals.entries

    def add(self, key, value, deadline_ms=None):
        if deadline_ms is None:
            self.take(key, value, KIND_PUT, 0)
        elif 0 <= deadline_ms < 1 << 64:
            self.take(key, value, KIND_PUT_DEADLINE, deadline_ms)
        else:
            raise ValueError(f"deadline_ms must be in 0..2^64-1, not {deadline_ms}")

    def add_many(self, pairs):
        for key, value in pairs:
            self.take(key, value, KIND_PUT, 0)

    def delete(self, key):
        self.take(key, b"", KIND_DELETE, 0)

    def finish(self):
        cdef int result
        self.check_open()
        if not self.native.totals.entries:
            raise ValueError(f"{self.path}: a table has at least one entry")
        with nogil:
            result = table_writer_finish(&self.native)
        if result < 0:
            raise self.failure()
        try:
            self.file.sync()
            self.file.close()
            self.file = None
            self.vfs.sync_directory(os.path.dirname(self.path))
        except OSError:
            self.discard()
            raise

    def discard(self):
        if self.file is not None:
            self.file.close()
            self.file = None
        if self.is_ours:
            self.is_ours = False  # whoever has the name next is not ours
            self.vfs.unlink(self.path)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            self.discard()
        elif self.file is not None:
            try:
                self.finish()
            except BaseException:
                self.discard()
                raise

    cdef int check_open(self) except -1:
        if self.file is None:
            raise ValueError(f"{self.path}: the table is finished or was discarded")
        return 0

    cdef int take(self, key, value, int kind, uint64_t deadline) except -1:
        cdef entry e
        self.check_open()
        if not PyBytes_CheckExact(key) or not PyBytes_CheckExact(value):
            raise TypeError(
                f"keys and values are bytes, not {type(key).__name__} and {type(value).__name__}"
            )
        e.key = slice_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        e.value = slice_of(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        e.trailer = trailer_of(0, kind)
        e.deadline = deadline
        if not 0 < e.key.size <= KEY_BYTES_LIMIT or e.value.size > VALUE_BYTES_LIMIT:
            raise ValueError(
                f"a key has 1..{KEY_BYTES_LIMIT} bytes and a value at most {VALUE_BYTES_LIMIT}, "
                f"not {e.key.size} and {e.value.size}"
            )
        if self.native.totals.entries and slice_compare(buffer_slice(&self.native.last), e.key) >= 0:
            last = PyBytes_FromStringAndSize(<char *>self.native.last.data, self.native.last.size)
            raise ValueError(f"keys must ascend: {key!r} comes after {last!r}")
        if table_writer_add(&self.native, &e) < 0:
            raise self.failure()
        return 0

    cdef object failure(self):
        """What went wrong; a file that was not written to its end is of no use."""
        self.discard()
        return failed(self.native.failed.code, self.path, self.native.failed.offset,
                      self.native.failed.what.decode(), self.native.failed.os_error)
