"""Counting the MessagePack values of a frame in place, before any of them becomes an object.

Knows no message and no limit. Invariant: no read beyond the bytes given (`native/msgpack_walk.h`).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t

from kvclient.errors import ProtocolError


cdef extern from "msgpack_walk.h":
    ctypedef struct mp_cursor:
        const uint8_t *at
        const uint8_t *end
    enum mp_extent:
        MP_WHOLE
        MP_TOO_MANY
    mp_extent mp_skip_within(mp_cursor *cursor, uint64_t most) nogil


def check_values(bytes frame not None, uint64_t most):
    cdef mp_cursor cursor
    cdef mp_extent extent
    cursor.at = <const uint8_t *> PyBytes_AS_STRING(frame)
    cursor.end = cursor.at + PyBytes_GET_SIZE(frame)
    extent = mp_skip_within(&cursor, most)
    if extent == MP_TOO_MANY:
        raise ProtocolError(f"a frame of {PyBytes_GET_SIZE(frame)} bytes holds more than {most} values")
    if extent != MP_WHOLE or cursor.at != cursor.end:
        raise ProtocolError(f"a frame of {PyBytes_GET_SIZE(frame)} bytes is not one MessagePack value")
