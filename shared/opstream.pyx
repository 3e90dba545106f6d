"""Slicing op streams by partition and merging the results, without a Python object per op.

Owns the only validation of op streams (docs/protocol.md sections 2, 3 and 5): what passes here is well-formed
wherever it goes. The grammar itself is `native/op_walk.h`, the bounds of every read `native/msgpack_walk.h`.
Must not know nodes, sockets or time. Ops and results are never decoded and encoded again, only checked, and
copied at most once.

Invariants: no read beyond the bytes given, whatever they hold; merging the results of all parts gives one
result per op, in op order.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import msgpack

from kvclient.errors import InvalidRequest, ProtocolError, RequestTooLarge, TooManyOps, from_status
from kvclient.protocol import OPS_MAX, REQUEST_BYTES_MAX, SCAN_PAGE_BYTES_MAX


cdef extern from "xxh64.h":
    uint32_t partition_of(const uint8_t *key, size_t size, int bits) nogil

cdef extern from "msgpack_walk.h":
    enum mp_type:
        MP_UINT
        MP_ARRAY
    ctypedef struct mp_cursor:
        const uint8_t *at
        const uint8_t *end
    ctypedef struct mp_value:
        mp_type type
        uint64_t number
    bint mp_next(mp_cursor *cursor, mp_value *value) nogil
    bint mp_skip(mp_cursor *cursor) nogil
    uint64_t mp_left(const mp_cursor *cursor) nogil

cdef extern from "op_walk.h":
    enum:
        OP_SCAN
        OP_TXN
        OP_KEY_TOO_LONG
        OP_VALUE_TOO_LARGE
        OP_UNSUPPORTED
        OP_BYTES_MIN
    ctypedef struct op_bytes:
        const uint8_t *data
        uint32_t size
    ctypedef struct op_view:
        int code
        bint has_stop
        uint32_t limit
        uint32_t flags
        op_bytes key
        op_bytes stop
    ctypedef struct op_parts:
        uint32_t count
        op_bytes[128] keys
    ctypedef struct op_fault:
        int status
        const char *text
        uint64_t limit
        uint64_t size
    bint op_next(mp_cursor *cursor, uint64_t value_max, op_view *op, op_parts *parts, op_fault *fault) nogil
    bint op_writes(int code) nogil

cdef extern from "scan_merge.h":
    ctypedef struct scan_merge:
        pass
    scan_merge *scan_merge_new(size_t parts, uint32_t limit, uint32_t flags, uint64_t bytes_max) nogil
    void scan_merge_free(scan_merge *merge) nogil
    const char *scan_merge_add(scan_merge *merge, const uint8_t *result, size_t size) nogil
    const char *scan_merge_run(scan_merge *merge) nogil
    size_t scan_merge_size(const scan_merge *merge) nogil
    void scan_merge_write(const scan_merge *merge, uint8_t *to) nogil


# Longest message that repeat_error() repeats: 10 000 results of it stay far below a request's 16 MiB.
cdef enum:
    MESSAGE_CHARACTERS_MAX = 300

# Partition counts go up to 2**12.
cdef enum:
    PARTITIONS_MAX = 4096


cdef class Limits:
    cdef readonly int64_t value_bytes_max, ops_max, request_bytes_max

    def __init__(self, value_bytes_max, ops_max=OPS_MAX, request_bytes_max=REQUEST_BYTES_MAX):
        if min(value_bytes_max, ops_max, request_bytes_max) < 0:
            raise ValueError("limits must not be negative")
        self.value_bytes_max = value_bytes_max
        self.ops_max = ops_max
        self.request_bytes_max = request_bytes_max


cdef class Shape:
    cdef readonly int64_t count
    cdef readonly bint writes, scan

    def __init__(self):
        raise TypeError("made by inspect()")


# A stream being walked: where it stands, what it has met. One object on the stack per call. `weight` is the count
# that the limit is for: a TXN has that of its parts.
cdef struct Walk:
    mp_cursor cursor
    op_view op
    op_parts parts
    op_fault fault
    int64_t count
    int64_t weight
    bint writes
    bint scan


# Where an op ends and which part it belongs to, while a stream is split.
cdef struct Span:
    uint32_t end
    uint16_t part


# Partition -> part of the stream that is being split. An entry counts only when its stamp is the call's own
# number, so that nothing is cleared between calls. Guarded by the GIL, which split() holds from start to end.
cdef uint64_t _call = 0
cdef uint64_t[PARTITIONS_MAX] _stamp
cdef uint16_t[PARTITIONS_MAX] _part


cdef int _begin(Walk *walk, bytes ops, Limits limits) except -1:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(ops)
    if size > limits.request_bytes_max:
        raise RequestTooLarge(
            f"the op stream has {size} bytes, over the limit of {limits.request_bytes_max}",
            limit=limits.request_bytes_max, size=size,
        )
    walk.cursor.at = <const uint8_t *> PyBytes_AS_STRING(ops)
    walk.cursor.end = walk.cursor.at + size
    walk.count = walk.weight = 0
    walk.writes = walk.scan = False
    return 0


cdef inline int _step(Walk *walk, Limits limits) except -1:
    """Read one op and check it, also against the ops before it."""
    if walk.weight >= limits.ops_max:
        _raise_too_many(walk, limits)
    if not op_next(&walk.cursor, limits.value_bytes_max, &walk.op, &walk.parts, &walk.fault):
        _raise_fault(&walk.fault, walk.count)
    walk.weight += walk.parts.count if walk.op.code == OP_TXN else 1
    if walk.weight > limits.ops_max:
        _raise_too_many(walk, limits)
    if op_writes(walk.op.code):
        walk.writes = True
    elif walk.op.code == OP_SCAN:
        walk.scan = True
    walk.count += 1
    if walk.scan and walk.count > 1:
        raise InvalidRequest(
            f"op {walk.count - 1}: a stream that holds a SCAN must hold nothing else", index=walk.count - 1
        )
    return 0


cdef int _raise_too_many(Walk *walk, Limits limits) except -1:
    """TooManyOps with the number of ops that follow counted in, as far as they can be read; a TXN among them is
    one.
    """
    cdef int64_t count = walk.weight
    while walk.cursor.at < walk.cursor.end:
        count += 1
        if not mp_skip(&walk.cursor):
            break
    raise TooManyOps(
        f"the request has {count} ops, over the limit of {limits.ops_max}", limit=limits.ops_max, size=count
    )


cdef int _raise_fault(const op_fault *fault, int64_t index) except -1:
    if fault.text != NULL:
        raise InvalidRequest(f"op {index}: {fault.text.decode()}", index=index)
    if fault.status == OP_UNSUPPORTED:
        raise from_status(fault.status, f"op {index}: unknown op code {fault.size}", index=index)
    noun = "key" if fault.status == OP_KEY_TOO_LONG else "value"
    raise from_status(
        fault.status,
        f"op {index}: a {noun} of {fault.size} bytes is over the limit of {fault.limit}",
        limit=fault.limit, size=fault.size, index=index,
    )


def inspect(bytes ops not None, Limits limits not None):
    cdef Walk walk
    cdef Shape shape = Shape.__new__(Shape)
    _begin(&walk, ops, limits)
    while walk.cursor.at < walk.cursor.end:
        _step(&walk, limits)
    shape.count = walk.count
    shape.writes = walk.writes
    shape.scan = walk.scan
    return shape


cdef class Split:
    """See opstream.pyi. `_order` is the part of each op; NULL when there are fewer than two parts."""

    cdef readonly int64_t count
    cdef readonly bint writes, scan
    cdef readonly list parts
    cdef uint16_t *_order

    def __init__(self):
        raise TypeError("made by split()")

    def __dealloc__(self):
        free(self._order)

    def merge(self, list results not None):
        if len(results) != len(self.parts):
            raise ProtocolError(f"{len(results)} results for {len(self.parts)} parts of a request")
        if self._order == NULL:
            return self._merge_one(results[0]) if results else b""
        return self._interleave(results)

    cdef bytes _merge_one(self, bytes results):
        cdef mp_cursor cursor
        cdef int64_t index
        _begin_results(&cursor, results)
        for index in range(self.count):
            _skip_result(&cursor)
        _end_results(&cursor)
        return results

    cdef bytes _interleave(self, list results):
        cdef size_t parts = len(results), total = 0, part
        cdef mp_cursor *cursors = <mp_cursor *> malloc(parts * sizeof(mp_cursor))
        cdef mp_cursor *cursor
        cdef const uint8_t *begin
        cdef uint8_t *to
        cdef int64_t index
        cdef bytes merged
        if cursors == NULL:
            raise MemoryError
        try:
            for part in range(parts):
                _begin_results(&cursors[part], results[part])
                total += mp_left(&cursors[part])
            merged = PyBytes_FromStringAndSize(NULL, total)
            to = <uint8_t *> PyBytes_AS_STRING(merged)
            for index in range(self.count):
                cursor = &cursors[self._order[index]]
                begin = cursor.at
                _skip_result(cursor)
                memcpy(to, begin, cursor.at - begin)
                to += cursor.at - begin
            for part in range(parts):
                _end_results(&cursors[part])
            return merged
        finally:
            free(cursors)


cdef int _begin_results(mp_cursor *cursor, object results) except -1:
    if not isinstance(results, bytes):
        raise TypeError("results must be bytes")
    cursor.at = <const uint8_t *> PyBytes_AS_STRING(results)
    cursor.end = cursor.at + PyBytes_GET_SIZE(results)
    return 0


cdef inline int _skip_result(mp_cursor *cursor) except -1:
    """Step over one result, an array that begins with its status; 0 if that is OK, otherwise 1."""
    cdef mp_cursor head = cursor[0]
    cdef mp_value array, status
    if not mp_skip(cursor):
        raise ProtocolError("a part of a request has too few results, or a malformed one")
    mp_next(&head, &array)
    if array.type != MP_ARRAY or not array.number:
        raise ProtocolError("a result is an array that begins with its status")
    mp_next(&head, &status)
    if status.type != MP_UINT:
        raise ProtocolError("a result is an array that begins with its status")
    return status.number != 0


cdef inline int _end_results(const mp_cursor *cursor) except -1:
    if cursor.at != cursor.end:
        raise ProtocolError("a part of a request has too many results")
    return 0


def split(bytes ops not None, int bits, Limits limits not None):
    cdef Walk walk
    cdef Split result
    cdef uint32_t first = 0, partition
    cdef const uint8_t *begin
    if not 0 <= bits <= 12:
        raise ValueError(f"bits must be 0..12, not {bits}")
    _begin(&walk, ops, limits)
    result = Split.__new__(Split)
    result.parts = []
    while walk.cursor.at < walk.cursor.end:
        begin = walk.cursor.at
        _step(&walk, limits)
        if walk.scan:
            continue
        partition = _partition(&walk, bits)
        if walk.count == 1:
            first = partition
        elif partition != first:
            _split_many(result, &walk, ops, bits, limits, first, partition, begin)
    result.count = walk.count
    result.writes = walk.writes
    result.scan = walk.scan
    if walk.count and not walk.scan and not result.parts:
        result.parts.append((first, ops))
    return result


cdef inline uint32_t _partition(const Walk *walk, int bits) except? 0xffffffff:
    """Where the op that was read last belongs."""
    if walk.op.code == OP_TXN:
        return _partition_of_parts(walk, bits)
    return partition_of(walk.op.key.data, walk.op.key.size, bits)


cdef uint32_t _partition_of_parts(const Walk *walk, int bits) except? 0xffffffff:
    """The one partition of all keys of a TXN."""
    cdef uint32_t index, partition = partition_of(walk.op.key.data, walk.op.key.size, bits)
    for index in range(1, walk.parts.count):
        if partition_of(walk.parts.keys[index].data, walk.parts.keys[index].size, bits) != partition:
            raise InvalidRequest(
                f"op {walk.count - 1}: the keys of a TXN must be in one partition: give them the same hash tag, "
                "as in {user:7}name and {user:7}mail", index=walk.count - 1,
            )
    return partition


cdef int _split_many(
    Split result, Walk *walk, bytes ops, int bits, Limits limits,
    uint32_t first, uint32_t second, const uint8_t *begin,
) except -1:
    """Go on with split() from the first op that leaves the first partition; `begin` is where that op begins.

    All ops before it are one run of `first`, so one span stands for them: spans[0].
    """
    cdef int64_t before = walk.count - 1
    cdef int64_t spans_max = min(2 + <int64_t> (mp_left(&walk.cursor) // OP_BYTES_MIN), 1 + limits.ops_max)
    cdef const uint8_t *base = <const uint8_t *> PyBytes_AS_STRING(ops)
    cdef Span *spans = <Span *> malloc(spans_max * sizeof(Span))
    cdef Py_ssize_t[PARTITIONS_MAX] sizes
    cdef uint16_t[PARTITIONS_MAX] partitions
    cdef int64_t filled = 1
    cdef uint32_t parts = 0, partition = second
    global _call
    if spans == NULL:
        raise MemoryError
    try:
        _call += 1
        spans[0].end = <uint32_t> (begin - base)
        spans[0].part = _part_of(first, &parts, partitions, sizes)
        sizes[0] = begin - base
        while True:
            spans[filled].part = _part_of(partition, &parts, partitions, sizes)
            spans[filled].end = <uint32_t> (walk.cursor.at - base)
            sizes[spans[filled].part] += spans[filled].end - spans[filled - 1].end
            filled += 1
            if walk.cursor.at >= walk.cursor.end:
                break
            _step(walk, limits)
            partition = _partition(walk, bits)
        _keep_order(result, spans, filled, before)
        _cut(result, base, spans, filled, parts, partitions, sizes)
    finally:
        free(spans)
    return 0


cdef inline uint16_t _part_of(
    uint32_t partition, uint32_t *parts, uint16_t *partitions, Py_ssize_t *sizes
) noexcept:
    """The part of a partition in this call; a new one if it is met for the first time."""
    if _stamp[partition] != _call:
        _stamp[partition] = _call
        _part[partition] = <uint16_t> parts[0]
        partitions[parts[0]] = <uint16_t> partition
        sizes[parts[0]] = 0
        parts[0] += 1
    return _part[partition]


cdef int _keep_order(Split result, const Span *spans, int64_t filled, int64_t before) except -1:
    """Write down the part of each op, for merge()."""
    cdef int64_t index
    result._order = <uint16_t *> malloc((before + filled - 1) * sizeof(uint16_t))
    if result._order == NULL:
        raise MemoryError
    for index in range(before):
        result._order[index] = 0
    for index in range(1, filled):
        result._order[before + index - 1] = spans[index].part
    return 0


cdef int _cut(
    Split result, const uint8_t *base, const Span *spans, int64_t filled, uint32_t parts,
    const uint16_t *partitions, const Py_ssize_t *sizes,
) except -1:
    """Copy each op behind the others of its part."""
    cdef (uint8_t *)[PARTITIONS_MAX] to
    cdef uint32_t part, begin = 0
    cdef int64_t index
    cdef bytes piece
    for part in range(parts):
        piece = PyBytes_FromStringAndSize(NULL, sizes[part])
        to[part] = <uint8_t *> PyBytes_AS_STRING(piece)
        result.parts.append((partitions[part], piece))
    for index in range(filled):
        part = spans[index].part
        memcpy(to[part], base + begin, spans[index].end - begin)
        to[part] += spans[index].end - begin
        begin = spans[index].end
    return 0


def repeat_error(int status, str message not None, retry_after_ms, Py_ssize_t count):
    message = message[:MESSAGE_CHARACTERS_MAX]
    one = (status, message) if retry_after_ms is None else (status, message, retry_after_ms)
    return msgpack.packb(one) * count


def scan_fields(bytes op not None):
    cdef Walk walk
    cdef Limits limits = Limits(0)
    _begin(&walk, op, limits)
    if walk.cursor.at < walk.cursor.end:
        _step(&walk, limits)
    if not walk.count or not walk.scan or walk.cursor.at != walk.cursor.end:
        raise InvalidRequest("not one SCAN alone")
    start = (<const char *> walk.op.key.data)[:walk.op.key.size]
    stop = (<const char *> walk.op.stop.data)[:walk.op.stop.size] if walk.op.has_stop else None
    return start, stop, walk.op.limit, walk.op.flags


def merge_scans(list results not None, uint32_t limit, uint32_t flags):
    cdef mp_cursor cursor
    cdef scan_merge *merge
    cdef const char *fault
    cdef bint status
    cdef bytes merged, result
    for result in results:
        _begin_results(&cursor, result)
        status = _skip_result(&cursor)
        _end_results(&cursor)
        if status:
            return result
    merge = scan_merge_new(len(results), limit, flags, SCAN_PAGE_BYTES_MAX)
    if merge == NULL:
        raise MemoryError
    try:
        for result in results:
            fault = scan_merge_add(
                merge, <const uint8_t *> PyBytes_AS_STRING(result), PyBytes_GET_SIZE(result)
            )
            if fault != NULL:
                raise ProtocolError(fault.decode())
        fault = scan_merge_run(merge)
        if fault != NULL:
            raise ProtocolError(fault.decode())
        merged = PyBytes_FromStringAndSize(NULL, scan_merge_size(merge))
        scan_merge_write(merge, <uint8_t *> PyBytes_AS_STRING(merged))
        return merged
    finally:
        scan_merge_free(merge)
