"""An op stream in the making: what `Engine.write` applies as one entry (docs/protocol.md section 2)."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t

from storenode.engine.native cimport (
    KEY_BYTES_LIMIT,
    OP_DELETE,
    OP_PUT,
    VALUE_BYTES_LIMIT,
    buffer,
    buffer_free,
    buffer_reserve,
    msgpack_put_bin,
    slice,
    slice_of,
)

# Beside the bytes of its bins, an op has: a head, a code, two heads of bins.
cdef size_t HEAD_BYTES_MAX = 12


cdef slice bytes_of(what, name, size_t limit, bint may_be_empty) except *:
    cdef slice s
    if not PyBytes_CheckExact(what):
        raise TypeError(f"a {name} is bytes, not {type(what).__name__}")
    s = slice_of(PyBytes_AS_STRING(what), PyBytes_GET_SIZE(what))
    if s.size > limit:
        raise ValueError(f"a {name} of {s.size} bytes is over the limit of {limit}")
    if s.size == 0 and not may_be_empty:
        raise ValueError(f"a {name} must not be empty")
    return s


cdef class WriteBatch:
    cdef buffer out
    cdef Py_ssize_t count

    def __dealloc__(self):
        buffer_free(&self.out)

    def __len__(self):
        return self.count

    @property
    def ops(self):
        return PyBytes_FromStringAndSize(<char *>self.out.data, self.out.size)

    cdef void append(self, unsigned code, slice key, slice value) except *:
        cdef uint8_t *to = buffer_reserve(&self.out, HEAD_BYTES_MAX + key.size + value.size)
        cdef size_t size = 2
        if to == NULL:
            raise MemoryError
        to[0] = 0x93 if code == OP_PUT else 0x92
        to[1] = code
        size += msgpack_put_bin(to + size, key)
        if code == OP_PUT:
            size += msgpack_put_bin(to + size, value)
        self.out.size += size
        self.count += 1

    def put(self, key, value):
        self.append(
            OP_PUT,
            bytes_of(key, "key", KEY_BYTES_LIMIT, False),
            bytes_of(value, "value", VALUE_BYTES_LIMIT, True),
        )

    def put_many(self, pairs):
        for key, value in pairs:
            self.append(
                OP_PUT,
                bytes_of(key, "key", KEY_BYTES_LIMIT, False),
                bytes_of(value, "value", VALUE_BYTES_LIMIT, True),
            )

    def delete(self, key):
        self.append(OP_DELETE, bytes_of(key, "key", KEY_BYTES_LIMIT, False), slice_of(NULL, 0))

    def clear(self):
        self.out.size = 0
        self.count = 0
