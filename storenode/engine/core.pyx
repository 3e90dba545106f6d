"""What every single call of an engine touches: where the next log record goes, which sequence comes next, and
the short ways of `get` and `put`.

The long way of a put (`write`, wal.py) knows all the cases. The short one knows the usual one: a plain PUT that
need not be synced, room in memtable and in the log's window (native/log_window.h), nothing else going on. It
logs and applies it without a call of the system or a Python object in between. If it cannot do it whole, nothing
has happened, and the long way does it.

All is guarded by the interpreter's lock, which a short put never gives up.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t

from kvclient.protocol import encode_put

from storenode.engine.native cimport (
    KEY_BYTES_LIMIT,
    KIND_PUT,
    WAL_RECORD_HEAD_BYTES,
    entry,
    log_window_close,
    log_window_open,
    memtable,
    memtable_add,
    memtable_has_room,
    msgpack_put_bin,
    slice,
    slice_of,
    trailer_of,
    wal_record_bytes,
    wal_seal_record,
    writeback_begin,
)
from storenode.engine.view cimport View, wall_ms

from storenode.engine.errors import EngineClosed


# A larger value makes the copies and the write long enough that other threads should get the lock meanwhile.
cdef Py_ssize_t VALUE_BYTES_MAX = 4096

# Of an op stream with one PUT, beside key and value: heads of the array, the code, two bins.
cdef size_t PUT_BYTES_MAX = 16


cdef class Core:
    def __init__(self):
        self.fd = -1

    def __dealloc__(self):
        log_window_close(&self.window)

    @property
    def window_bytes(self):
        return self.window.to - self.window.from_

    def get(self, bytes key not None):
        cdef View view = self.tree.view
        if view is None:
            raise EngineClosed("the engine is closed")
        return view.get(key, self.next_sequence - 1, self.now_ms, True)

    def moment(self):
        # Nothing in here gives the interpreter's lock up: see Tree.apply for what depends on it.
        cdef View view = self.tree.view
        if view is None:
            raise EngineClosed(f"{self.tree.directory}: the engine is closed")
        return view, self.next_sequence - 1

    def put(self, key, value, sync=False):
        if sync or self.background.broken or not self.put_short(self.tree.view, key, value):
            self.write(encode_put(key, value), sync)
            if not sync:
                self.arm(self.tree.view)

    cpdef void arm(self, View view):
        self.armed_view = view.serial
        if self.window.to != self.reserved and self.fd >= 0:
            log_window_open(&self.window, self.fd, self.length, self.reserved)

    cpdef void leave_window(self):
        log_window_close(&self.window)

    cpdef void begin_writeback(self):
        if self.written_back < self.synced or self.written_back > self.length:
            self.written_back = self.synced
        if self.fd >= 0:
            writeback_begin(self.fd, &self.written_back, self.length)

    cdef bint put_short(self, View view, key, value) except -1:
        """Log and apply a PUT; 0: nothing happened."""
        cdef slice k, v
        cdef entry e
        cdef uint64_t now_ms
        cdef uint8_t *record
        cdef uint8_t *ops
        cdef size_t size
        cdef memtable *active
        if view is None or view.serial != self.armed_view or self.writing or self.appending or self.applying:
            return False
        if self.ends or self.length >= self.limit:
            return False
        if not PyBytes_CheckExact(key) or not PyBytes_CheckExact(value):
            return False
        k = slice_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        v = slice_of(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        if k.size == 0 or k.size > KEY_BYTES_LIMIT or v.size > VALUE_BYTES_MAX:
            return False
        if self.length + wal_record_bytes(PUT_BYTES_MAX + k.size + v.size) > self.window.to:
            return False
        active = view.active.native
        if not memtable_has_room(active, k.size, v.size):
            return False
        now_ms = max(wall_ms(), self.now_ms)
        record = self.window.data + (self.length - self.window.from_)
        ops = record + WAL_RECORD_HEAD_BYTES
        ops[0] = 0x93
        ops[1] = 2
        size = 2 + msgpack_put_bin(ops + 2, k)
        size += msgpack_put_bin(ops + size, v)
        wal_seal_record(record, self.file_id, self.length, self.synced, self.next_sequence, now_ms, size)
        self.length += wal_record_bytes(size)
        self.bytes_written += wal_record_bytes(size)
        e.key = k
        e.trailer = trailer_of(self.next_sequence, KIND_PUT)
        e.value = v
        e.deadline = 0
        memtable_add(active, &e, 0)  # there is room: it cannot fail
        self.next_sequence += 1
        self.now_ms = now_ms
        return True
