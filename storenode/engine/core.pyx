"""What every single call of an engine touches: where the next log record goes, which sequence comes next, and
the short ways of `get` and `put`.

The long way of a put (`write`, wal.py) knows all the cases. The short one knows the usual one: a plain PUT that
need not be synced, room in log and memtable, nothing else going on. It logs and applies it without a Python
object or the files' layer in between. If it cannot do it whole, nothing has happened, and the long way does it.

All is guarded by the interpreter's lock, which a short put never gives up.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from kvclient.protocol import encode_put

from storenode.engine.native cimport (
    KEY_BYTES_LIMIT,
    KIND_PUT,
    buffer,
    buffer_free,
    buffer_slice,
    entry,
    memtable,
    memtable_add,
    memtable_has_room,
    msgpack_append_bin,
    msgpack_append_byte,
    slice,
    slice_of,
    trailer_of,
    wal_put_record,
)
from storenode.engine.view cimport View

from storenode.engine.errors import EngineClosed


cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int fd, const void *data, size_t size, long offset)


# A larger value makes the copies and the write long enough that other threads should get the lock meanwhile.
cdef Py_ssize_t VALUE_BYTES_MAX = 4096


cdef uint64_t wall_ms() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <uint64_t>now.tv_sec * 1000 + <uint64_t>now.tv_nsec // 1000000


cdef class Core:
    def __init__(self):
        self.fd = -1

    def __dealloc__(self):
        buffer_free(&self.ops)
        buffer_free(&self.record)

    @property
    def buffer_bytes(self):
        return self.ops.capacity + self.record.capacity

    def get(self, bytes key not None):
        cdef View view = self.tree.view
        if view is None:
            raise EngineClosed("the engine is closed")
        return view.get(key, self.next_sequence - 1, max(wall_ms(), self.now_ms))

    def put(self, key, value, sync=False):
        if sync or self.background.broken or not self.put_short(self.tree.view, key, value):
            self.write(encode_put(key, value), sync)

    cpdef void arm(self, View view):
        self.armed_view = view.serial

    cdef bint put_short(self, View view, key, value) except -1:
        """Log and apply a PUT; 0: nothing happened."""
        cdef slice k, v
        cdef entry e
        cdef uint64_t now_ms
        cdef memtable *active
        if view is None or view.serial != self.armed_view or self.appending or self.applying:
            return False
        if self.fd < 0 or self.ends or self.length >= self.limit:
            return False
        if not PyBytes_CheckExact(key) or not PyBytes_CheckExact(value):
            return False
        k = slice_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        v = slice_of(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        if k.size == 0 or k.size > KEY_BYTES_LIMIT or v.size > VALUE_BYTES_MAX:
            return False
        active = view.active.native
        if not memtable_has_room(active, k.size, v.size):
            return False
        now_ms = max(wall_ms(), self.now_ms)
        self.ops.size = self.record.size = 0
        msgpack_append_byte(&self.ops, 0x93)
        msgpack_append_byte(&self.ops, 2)
        msgpack_append_bin(&self.ops, k)
        msgpack_append_bin(&self.ops, v)
        wal_put_record(
            &self.record,
            self.file_id,
            self.length,
            self.synced,
            self.next_sequence,
            now_ms,
            buffer_slice(&self.ops),
        )
        if self.ops.failed or self.record.failed:
            raise MemoryError
        if pwrite(self.fd, self.record.data, self.record.size, self.length) != <ssize_t>self.record.size:
            return False  # what is there of it is behind the end, and is written over
        self.length += self.record.size
        self.bytes_written += self.record.size
        e.key = k
        e.trailer = trailer_of(self.next_sequence, KIND_PUT)
        e.value = v
        e.deadline = 0
        memtable_add(active, &e, 0)  # there is room: it cannot fail
        self.next_sequence += 1
        self.now_ms = now_ms
        return True
