"""Tables for reading, and the block cache they share.

A Table owns its file, which is open or can be opened again by name: whoever holds a view keeps its tables
readable. When `discard` was set, the table has been replaced: its last reference calls it, which is when the file
may be removed. `pin` is for tables whose name may be gone sooner.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memset

from storenode.engine.errors import explained, failed
from storenode.engine.handles cimport Handles
from storenode.engine.native cimport (
    FAILURE_NONE,
    block_cursor,
    block_cursor_free,
    block_cursor_open,
    block_first,
    block_next,
    cache_bytes,
    cache_entry,
    cache_forget,
    cache_free,
    cache_new,
    cache_release,
    cache_slot,
    cursor,
    cursor_free,
    cursor_init_run,
    cursor_seek,
    cursor_step,
    entry_kind,
    entry_sequence,
    failure,
    handle_acquire,
    handle_free,
    handle_init,
    reader,
    run,
    slice_of,
    table,
    table_block,
    table_check,
    table_check_free,
    table_open,
    table_unpin,
    table_verify,
    trailer_of,
    varint_get,
)

from libc.errno cimport EIO, ENOMEM
from libc.stdint cimport UINT64_MAX, uint8_t, uint64_t

# A cache key for each table opened in this process; changed under the interpreter's lock.
cdef uint64_t _opened = 0


cdef class Cache:
    def __cinit__(self, size_t budget):
        self.native = cache_new(budget)
        if self.native == NULL:
            raise MemoryError

    def __dealloc__(self):
        cache_free(self.native)

    def stats(self):
        return {
            "budget": self.native.budget,
            "bytes": self.native.bytes,
            "pinned_bytes": self.native.pinned,
            "map_bytes": (self.native.mask + 1) * sizeof(cache_slot) + self.native.spare_bytes,
            "blocks": self.native.entries,
            "hits": self.native.hits,
            "misses": self.native.misses,
            "evictions": self.native.evictions,
        }


cdef int reopen(void *owner) noexcept with gil:
    cdef Table table = <Table>owner
    try:
        return table.handles.open(table.path).detach()
    except OSError as error:
        return -error.errno if error.errno else -EIO
    except MemoryError:
        return -ENOMEM


cdef class Table:
    def __init__(self, Cache cache, file, uint64_t number, uint64_t file_id, uint64_t size, bytes smallest,
                 bytes largest, Handles handles=None, uint64_t max_sequence=UINT64_MAX,
                 uint64_t given_sequence=0):
        global _opened
        cdef reader r
        cdef int result
        memset(&r, 0, sizeof(r))
        _opened += 1
        self.cache = cache
        self.path = file.path
        self.handles = handles
        self.discard = None
        self._smallest = smallest
        self._largest = largest
        self.native.number = number
        self.native.file_id = file_id
        self.native.cache_key = _opened
        self.native.size = size
        self.native.sequence_bits = trailer_of(given_sequence, 0)
        self.native.smallest = slice_of(PyBytes_AS_STRING(smallest), PyBytes_GET_SIZE(smallest))
        self.native.largest = slice_of(PyBytes_AS_STRING(largest), PyBytes_GET_SIZE(largest))
        self.native.max_sequence = max_sequence
        handle_init(
            &self.file, NULL if handles is None else handles.native, file.detach(), reopen, <void *>self
        )
        self.native.file = &self.file
        with nogil:
            result = table_open(&r, &self.native)
        if result < 0:
            raise self.failure_of(&r)

    def __del__(self):
        if self.native.file == NULL:
            return
        table_unpin(&self.native, self.cache.native)
        if self.discard is not None:
            cache_forget(self.cache.native, self.native.cache_key)
        handle_free(&self.file)
        if self.discard is not None:
            self.discard()

    def pin(self):
        cdef int os_error = 0
        if not self.pinned and handle_acquire(&self.file, &os_error) < 0:
            raise OSError(os_error, explained(os_error), self.path)
        self.pinned = True

    cdef object failure_of(self, reader *r):
        cdef failure *f = &r.failed
        return failed(f.code, self.path, f.offset, f.what.decode(), f.os_error)

    @property
    def number(self):
        return self.native.number

    @property
    def compression(self):
        return self.native.compression

    def properties(self):
        cdef reader r
        cdef cache_entry *block
        cdef block_cursor c
        cdef uint64_t number
        cdef dict found = {}
        memset(&r, 0, sizeof(r))
        memset(&c, 0, sizeof(c))
        block = table_block(&r, &self.native, self.native.properties)
        if block == NULL:
            raise self.failure_of(&r)
        try:
            if block_cursor_open(&c, cache_bytes(block)) < 0 or block_first(&c) < 0:
                raise failed(1, self.path, self.native.properties.offset, "malformed properties", 0)
            while c.valid:
                name = PyBytes_FromStringAndSize(<char *>c.key.data, c.key.size).decode("ascii", "replace")
                if name in ("smallest", "largest", "range_deletions"):
                    found[name] = PyBytes_FromStringAndSize(<char *>c.value.data, c.value.size)
                elif varint_get(c.value.data, c.value.data + c.value.size, &number) != NULL:
                    found[name] = number
                if block_next(&c) < 0:
                    raise failed(1, self.path, self.native.properties.offset, "malformed properties", 0)
        finally:
            cache_release(block)
            block_cursor_free(&c)
        return found

    def verify(self):
        cdef reader r
        cdef table_check check
        cdef int result
        memset(&r, 0, sizeof(r))
        with nogil:
            result = table_verify(&r, &self.native, &check)
        try:
            if result < 0:
                raise self.failure_of(&r)
            found = {
                "smallest": PyBytes_FromStringAndSize(<char *>check.smallest.data, check.smallest.size),
                "largest": PyBytes_FromStringAndSize(<char *>check.last.data, check.last.size),
                **check.totals,
            }
        finally:
            table_check_free(&check)
        said = self.properties()
        for name in ("min_sequence", "max_sequence"):
            if name in said:
                said[name] |= self.native.sequence_bits >> 8
        for name in ("entries", *said):
            if name in found and found[name] != said.get(name):
                what = f"{name} is {found[name]}, the properties say {said.get(name)}"
                raise failed(1, self.path, self.native.properties.offset, what, 0)
        if (found["smallest"], found["largest"]) != (self._smallest, self._largest):
            raise failed(1, self.path, 0, "other keys than the manifest says", 0)
        return found["entries"]

    def entries(self, bint reverse=False):
        cdef reader r
        cdef cursor c
        cdef run one
        cdef table *tables[1]
        cdef list found = []
        memset(&r, 0, sizeof(r))
        r.blocks = self.cache.native
        tables[0] = &self.native
        one.tables = tables
        one.count = 1
        cursor_init_run(&c, one, &r, reverse)
        cursor_seek(&c, NULL)
        while c.valid:
            found.append((
                PyBytes_FromStringAndSize(<char *>c.at.key.data, c.at.key.size),
                entry_sequence(&c.at),
                entry_kind(&c.at),
                PyBytes_FromStringAndSize(<char *>c.at.value.data, c.at.value.size),
                c.at.deadline,
            ))
            cursor_step(&c)
        cursor_free(&c)
        if r.failed.code != FAILURE_NONE:
            raise self.failure_of(&r)
        return found
