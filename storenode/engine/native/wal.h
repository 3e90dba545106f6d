/* Records of the write-ahead log (docs/formats.md section 2): making one, checking one, finding proof behind
 * a bad one. */
#ifndef RINGKV_WAL_H
#define RINGKV_WAL_H

#include "crc32c.h"

#define WAL_HEADER_BYTES 48
#define WAL_RECORD_HEAD_BYTES 32
#define WAL_VERSION 1
#define WAL_VERSION_UNSYNCED 2
#define WAL_MAGIC "rkv-wal\n"

static inline size_t wal_record_bytes(size_t length) {
    return (WAL_RECORD_HEAD_BYTES + length + 7) & ~(size_t)7;
}

static inline uint32_t wal_record_crc(uint64_t file_id, uint64_t offset, const uint8_t *record,
                                      size_t length) {
    return crc32c_mask(
        crc32c(crc32c_context(file_id, offset), record + 4, WAL_RECORD_HEAD_BYTES - 4 + length));
}

/* Fills in the rest of the record whose ops, `length` bytes, lie in place already. */
static inline void wal_seal_record(uint8_t *record, uint64_t file_id, uint64_t offset, uint64_t synced,
                                   uint64_t first_sequence, uint64_t now_ms, size_t length) {
    memset(record + WAL_RECORD_HEAD_BYTES + length, 0, wal_record_bytes(length) - WAL_RECORD_HEAD_BYTES - length);
    store32(record + 4, (uint32_t)length);
    store64(record + 8, first_sequence);
    store64(record + 16, now_ms);
    store64(record + 24, synced);
    store32(record, wal_record_crc(file_id, offset, record, length));
}

/* Appends one record that will lie at `offset` of the file. */
static inline void wal_put_record(buffer *out, uint64_t file_id, uint64_t offset, uint64_t synced,
                                  uint64_t first_sequence, uint64_t now_ms, slice ops) {
    size_t size = wal_record_bytes(ops.size);
    uint8_t *record = buffer_reserve(out, size);
    if (!record) return;
    if (ops.size) memcpy(record + WAL_RECORD_HEAD_BYTES, ops.data, ops.size);
    wal_seal_record(record, file_id, offset, synced, first_sequence, now_ms, ops.size);
    out->size += size;
}

static inline void wal_put_header(uint8_t *header, uint32_t engine_id, uint64_t number, uint64_t previous,
                                  uint64_t previous_length, uint32_t unsynced) {
    memcpy(header, WAL_MAGIC, 8);
    store32(header + 8, unsynced ? WAL_VERSION_UNSYNCED : WAL_VERSION);
    store32(header + 12, engine_id);
    store64(header + 16, number);
    store64(header + 24, previous);
    store64(header + 32, previous_length);
    store32(header + 40, unsynced);
    store32(header + 44, crc32c_mask(crc32c(0, header, 44)));
}

typedef struct {
    uint64_t first_sequence, now_ms, synced;
    slice ops;
    uint64_t following; /* offset of the next record */
} wal_record;

/* Whether a sound record lies at `offset`. */
static inline int wal_read_record(slice file, uint64_t file_id, uint64_t offset, wal_record *record) {
    if (offset > file.size || file.size - offset < WAL_RECORD_HEAD_BYTES) return 0;
    const uint8_t *p = file.data + offset;
    size_t length = load32(p + 4), left = file.size - (size_t)offset;
    record->synced = load64(p + 24);
    if (length > left || wal_record_bytes(length) > left || record->synced > offset) return 0;
    if (wal_record_crc(file_id, offset, p, length) != load32(p)) return 0;
    for (size_t i = WAL_RECORD_HEAD_BYTES + length; i < wal_record_bytes(length); i++)
        if (p[i]) return 0;
    record->first_sequence = load64(p + 8);
    record->now_ms = load64(p + 16);
    record->ops = slice_of(p + WAL_RECORD_HEAD_BYTES, length);
    record->following = offset + wal_record_bytes(length);
    return 1;
}

/* The offset of a sound record behind `bad` that says that `bad` was durable; 0 if there is none. */
static inline uint64_t wal_find_proof(slice file, uint64_t file_id, uint64_t bad) {
    wal_record record;
    uint64_t offset = ((bad + 7) & ~7ull) + 8;
    for (; offset + WAL_RECORD_HEAD_BYTES <= file.size; offset += 8) {
        if (load64(file.data + offset + 24) <= bad) continue; /* before its checksum: that takes long */
        if (wal_read_record(file, file_id, offset, &record)) return offset;
    }
    return 0;
}

#endif
