"""Blocks as lists of entries, filters, blocks without an index, and a writer of tables, for tools that must go
on where an engine stops.

What is damaged gives what was sound in front of it; nothing here reads beyond what it was given.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from storenode.engine.errors import failed
from storenode.engine.native cimport (
    BLOCK_TYPE_PLAIN,
    BLOCK_TYPE_ZSTD,
    block_cursor,
    block_cursor_free,
    block_cursor_open,
    block_first,
    block_next,
    bloom_is_sound,
    bloom_may_hold,
    crc32c,
    crc32c_mask,
    entry,
    entry_kind,
    entry_sequence,
    hash64,
    slice_of,
    table_writer,
    table_writer_add,
    table_writer_begin,
    table_writer_finish,
    table_writer_free,
    table_writer_init,
    trailer_of,
)


cdef extern from "block.h" nogil:
    int block_entry(const block_cursor *c, entry *e)

cdef extern from "table_writer.h" nogil:
    uint64_t table_writer_size(const table_writer *w)


cdef bytes _bytes(const uint8_t *data, size_t size):
    return PyBytes_FromStringAndSize(<const char *>data, size)


def data_entries(bytes block):
    cdef block_cursor c
    cdef entry e
    cdef list found = []
    cdef bint sound = True
    memset(&c, 0, sizeof(c))
    try:
        if block_cursor_open(&c, slice_of(PyBytes_AS_STRING(block), PyBytes_GET_SIZE(block))) < 0:
            return found, False
        if block_first(&c) < 0:
            return found, False
        while c.valid:
            if block_entry(&c, &e) < 0:
                return found, False
            found.append((
                _bytes(e.key.data, e.key.size),
                entry_sequence(&e),
                entry_kind(&e),
                _bytes(e.value.data, e.value.size),
                e.deadline,
            ))
            if block_next(&c) < 0:
                sound = False
        return found, sound
    finally:
        block_cursor_free(&c)


def plain_entries(bytes block):
    cdef block_cursor c
    cdef list found = []
    cdef bint sound = True
    memset(&c, 0, sizeof(c))
    try:
        if block_cursor_open(&c, slice_of(PyBytes_AS_STRING(block), PyBytes_GET_SIZE(block))) < 0:
            return found, False
        if block_first(&c) < 0:
            return found, False
        while c.valid:
            found.append((_bytes(c.key.data, c.key.size), _bytes(c.value.data, c.value.size)))
            if block_next(&c) < 0:
                sound = False
        return found, sound
    finally:
        block_cursor_free(&c)


def filter_is_sound(bytes content):
    return bool(bloom_is_sound(slice_of(PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content))))


def filter_knows(bytes content, bytes key):
    return bool(bloom_may_hold(
        slice_of(PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content)),
        hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)),
    ))


def block_size(bytes content, size_t start, uint32_t context):
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(content)
    cdef size_t size = PyBytes_GET_SIZE(content), at
    cdef uint32_t crc = context, stored
    if start > size:
        return 0
    for at in range(start, size):
        crc = crc32c(crc, data + at, 1)
        if at + 5 > size or at - start < 8 or data[at] > BLOCK_TYPE_ZSTD:
            continue
        stored = (<uint32_t>data[at + 1] | <uint32_t>data[at + 2] << 8 | <uint32_t>data[at + 3] << 16
                  | <uint32_t>data[at + 4] << 24)
        if crc32c_mask(crc) == stored:
            return at - start
    return 0


cdef class TableWriter:
    cdef table_writer native
    cdef str path

    def __cinit__(self, file, uint64_t number, uint64_t file_id, uint64_t created_ms, *, size_t block_bytes=4096,
                  unsigned restart_interval=16, unsigned bits_per_key=10):
        self.path = file.path
        table_writer_init(&self.native, block_bytes, restart_interval, bits_per_key)
        table_writer_begin(&self.native, file.fd, number, file_id, created_ms)

    def __dealloc__(self):
        table_writer_free(&self.native)

    @property
    def size(self):
        return table_writer_size(&self.native)

    def add(self, bytes key, uint64_t sequence, int kind, bytes value, uint64_t deadline):
        cdef entry e
        e.key = slice_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        e.value = slice_of(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        e.trailer = trailer_of(sequence, kind)
        e.deadline = deadline
        if table_writer_add(&self.native, &e) < 0:
            raise self._failed()

    def finish(self):
        cdef table_writer *w = &self.native
        cdef int result
        with nogil:
            result = table_writer_finish(w)
        if result < 0:
            raise self._failed()
        return {
            "number": w.number,
            "file_id": w.file_id,
            "size": w.written,
            "entries": w.totals.entries,
            "deletions": w.totals.deletions,
            "expiring": w.totals.expiring,
            "min_sequence": w.totals.min_sequence,
            "max_sequence": w.totals.max_sequence,
            "raw_key_bytes": w.totals.raw_key_bytes,
            "raw_value_bytes": w.totals.raw_value_bytes,
            "created_ms": w.created_ms,
            "smallest": _bytes(w.smallest.data, w.smallest.size),
            "largest": _bytes(w.last.data, w.last.size),
        }

    cdef object _failed(self):
        return failed(self.native.failed.code, self.path, self.native.failed.offset,
                      self.native.failed.what.decode(), self.native.failed.os_error)
