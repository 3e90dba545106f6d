"""Checksums, hash, log records and compressed blocks (docs/formats.md sections 1 to 3) for the Python side of
the engine."""

from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from storenode.engine.native cimport (
    BLOCK_TYPE_PLAIN,
    BLOCK_TYPE_ZSTD,
    DECOMPRESS_NO_MEMORY,
    WAL_HEADER_BYTES,
    buffer,
    buffer_free,
    compressed_length,
    crc32c as native_crc32c,
    crc32c_mask,
    crc32c_portable as native_crc32c_portable,
    decompress,
    hash64 as native_hash64,
    slice,
    slice_of,
    wal_find_proof,
    wal_put_header,
    wal_put_record,
    wal_read_record,
    wal_record,
)


def crc32c(bytes data, uint32_t crc=0):
    return native_crc32c(crc, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


def crc32c_portable(bytes data, uint32_t crc=0):
    return native_crc32c_portable(crc, <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


def masked_crc32c(bytes data):
    return crc32c_mask(native_crc32c(0, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)))


def hash64(bytes data):
    return native_hash64(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


def unpacked_block(int type, bytes stored):
    cdef slice payload = slice_of(PyBytes_AS_STRING(stored), PyBytes_GET_SIZE(stored))
    cdef size_t length
    cdef int result
    if type == BLOCK_TYPE_PLAIN:
        return stored
    if not BLOCK_TYPE_PLAIN < type <= BLOCK_TYPE_ZSTD:
        raise ValueError("unknown block type")
    length = compressed_length(&payload)
    if length == 0:
        raise ValueError("the length of a compressed block is out of bounds")
    block = PyBytes_FromStringAndSize(NULL, length)
    result = decompress(type, payload, <uint8_t *>PyBytes_AS_STRING(block), length)
    if result == DECOMPRESS_NO_MEMORY:
        raise MemoryError
    if result < 0:
        raise ValueError("malformed compressed block")
    return block


def wal_header(
    uint32_t engine_id, uint64_t number, uint64_t previous, uint64_t previous_length, uint32_t unsynced=0
):
    cdef uint8_t header[48]
    wal_put_header(header, engine_id, number, previous, previous_length, unsynced)
    return PyBytes_FromStringAndSize(<char *>header, WAL_HEADER_BYTES)


def wal_records(entries, uint64_t file_id, uint64_t offset, uint64_t synced):
    cdef buffer out
    cdef const uint8_t[::1] ops
    cdef slice content
    cdef uint64_t first_sequence, now_ms
    memset(&out, 0, sizeof(out))
    try:
        for first_sequence, now_ms, stream in entries:
            ops = stream
            if PyBytes_CheckExact(stream):
                content = slice_of(PyBytes_AS_STRING(stream), PyBytes_GET_SIZE(stream))
            else:
                ops = stream
                content = slice_of(&ops[0] if ops.shape[0] else NULL, ops.shape[0])
            wal_put_record(&out, file_id, offset + out.size, synced, first_sequence, now_ms, content)
        if out.failed:
            raise MemoryError
        return PyBytes_FromStringAndSize(<char *>out.data, out.size)
    finally:
        buffer_free(&out)


def wal_scan(bytes content, uint64_t file_id, uint64_t start):
    cdef slice file = slice_of(PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content))
    cdef wal_record record
    cdef list entries = []
    cdef uint64_t offset = start
    while wal_read_record(file, file_id, offset, &record):
        if record.first_sequence:
            entries.append((
                record.first_sequence,
                record.now_ms,
                PyBytes_FromStringAndSize(<char *>record.ops.data, record.ops.size),
            ))
        offset = record.following
    return entries, offset


def wal_proof(bytes content, uint64_t file_id, uint64_t bad):
    cdef slice file = slice_of(PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content))
    return wal_find_proof(file, file_id, bad)
