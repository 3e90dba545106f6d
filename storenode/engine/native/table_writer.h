/* Writing a table from versions in order (docs/formats.md section 4). Owns no file: it gets a descriptor, and
 * whoever gave it syncs it.
 *
 * Checks the order of what it is given: a table that is out of order is never written. */
#ifndef RINGKV_TABLE_WRITER_H
#define RINGKV_TABLE_WRITER_H

#include "table.h"
#include "writeback.h"

#define WRITE_BUFFER_BYTES (256u << 10) /* one write call for 64 blocks */

typedef struct {
    uint64_t entries, deletions, expiring, min_sequence, max_sequence, raw_key_bytes, raw_value_bytes;
} table_totals;

typedef struct {
    int fd;
    uint64_t number;
    uint64_t file_id;
    uint64_t created_ms;
    size_t block_bytes;
    unsigned bits_per_key;
    uint64_t written; /* bytes that went to the file */
    uint64_t written_back; /* of them, those that the disk was set to write */
    uint64_t written_before; /* to the files before it */
    buffer pending;   /* bytes that follow them */
    block_builder data;
    block_builder index;
    compressor packer;
    uint64_t block_bytes_made, block_bytes_stored; /* of all data blocks of all its tables */
    buffer hashes;
    buffer smallest;
    buffer last; /* user key of the last entry */
    uint64_t last_trailer;
    slice range_deletions; /* not owned: the property of this name; empty: none */
    buffer block_largest; /* user key that ended the block whose index entry is due */
    block_handle due;
    int index_due;
    table_totals totals;
    failure failed;
} table_writer;

static inline void table_writer_init(table_writer *w, size_t block_bytes, unsigned restart_interval,
                                     unsigned bits_per_key) {
    memset(w, 0, sizeof *w);
    w->block_bytes = block_bytes;
    w->bits_per_key = bits_per_key;
    w->data.interval = restart_interval;
    w->index.interval = 1;
}

/* Before the first table: what type its compressed blocks have. -1: no memory. */
static inline int table_writer_compress(table_writer *w, int type) {
    return compressor_init(&w->packer, type);
}

static inline void table_writer_free(table_writer *w) {
    buffer_free(&w->pending);
    block_builder_free(&w->data);
    block_builder_free(&w->index);
    compressor_free(&w->packer);
    buffer_free(&w->hashes);
    buffer_free(&w->smallest);
    buffer_free(&w->last);
    buffer_free(&w->block_largest);
}

static inline void table_writer_begin(table_writer *w, int fd, uint64_t number, uint64_t file_id,
                                      uint64_t created_ms) {
    w->fd = fd;
    w->number = number;
    w->file_id = file_id;
    w->created_ms = created_ms;
    w->written_before += w->written;
    w->written = w->written_back = 0;
    w->pending.size = w->hashes.size = w->smallest.size = w->last.size = w->block_largest.size = 0;
    w->index_due = 0;
    block_builder_reset(&w->data);
    block_builder_reset(&w->index);
    memset(&w->totals, 0, sizeof w->totals);
    w->totals.min_sequence = UINT64_MAX;
}

static inline uint64_t table_writer_size(const table_writer *w) {
    return w->written + w->pending.size + w->data.out.size;
}

static inline int table_writer_flush(table_writer *w) {
    const uint8_t *from = w->pending.data;
    size_t left = w->pending.size;
    while (left) {
        ssize_t done = pwrite(w->fd, from, left, (off_t)w->written);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) {
            w->failed.os_error = done < 0 ? errno : ENOSPC;
            return fail(&w->failed, FAILURE_IO, w->number, w->written, "write failed");
        }
        from += done;
        left -= (size_t)done;
        w->written += (uint64_t)done;
    }
    w->pending.size = 0;
    writeback_begin(w->fd, &w->written_back, w->written);
    return 0;
}

/* Appends block, which is in the form that `type` says, and trailer; tells where it lies. */
static inline int table_writer_block(table_writer *w, slice block, int type, block_handle *at) {
    uint64_t offset = w->written + w->pending.size;
    uint8_t trailer[BLOCK_TRAILER_BYTES] = {(uint8_t)type};
    uint32_t crc = crc32c(crc32c_context(w->file_id, offset), block.data, block.size);
    store32(trailer + 1, crc32c_mask(crc32c(crc, trailer, 1)));
    buffer_append(&w->pending, block.data, block.size);
    buffer_append(&w->pending, trailer, sizeof trailer);
    if (w->pending.failed) return fail(&w->failed, FAILURE_MEMORY, w->number, offset, "out of memory");
    at->offset = offset;
    at->size = (uint32_t)block.size;
    return w->pending.size >= WRITE_BUFFER_BYTES ? table_writer_flush(w) : 0;
}

/* Cuts `from` (>= the end of a block, itself its last key) to the shortest key that still divides it from
 * `next`, in place. */
static inline void shorten_separator(buffer *from, slice next) {
    size_t shared = 0, limit = from->size < next.size ? from->size : next.size;
    while (shared < limit && from->data[shared] == next.data[shared])
        shared++;
    if (shared >= limit) return; /* one is the other's beginning, or both are the same key */
    for (size_t i = shared; i < from->size; i++) {
        if (from->data[i] == 0xff) continue;
        uint8_t raised = (uint8_t)(from->data[i] + 1);
        if (i == shared && raised >= next.data[i]) {
            if (raised > next.data[i] || next.size == i + 1) continue;
        }
        from->data[i] = raised;
        from->size = i + 1;
        return;
    }
}

/* Cuts the last key of a table to a short key that is not smaller. */
static inline void shorten_successor(buffer *from) {
    for (size_t i = 0; i < from->size; i++) {
        if (from->data[i] == 0xff) continue;
        from->data[i]++;
        from->size = i + 1;
        return;
    }
}

static inline void table_writer_index(table_writer *w) {
    uint8_t value[2 * VARINT_BYTES_MAX];
    size_t size = varint_put(value, w->due.offset);
    size += varint_put(value + size, w->due.size);
    block_builder_add(&w->index, buffer_slice(&w->block_largest), slice_of(NULL, 0), slice_of(NULL, 0),
                      slice_of(value, size));
    w->index_due = 0;
}

static inline int table_writer_end_block(table_writer *w) {
    slice block = block_builder_finish(&w->data);
    int type;
    slice stored = compressor_run(&w->packer, block, &type);
    if (table_writer_block(w, stored, type, &w->due) < 0) return -1;
    w->block_bytes_made += block.size;
    w->block_bytes_stored += stored.size;
    block_builder_reset(&w->data);
    w->block_largest.size = 0;
    buffer_append(&w->block_largest, w->last.data, w->last.size);
    w->index_due = 1;
    return 0;
}

static inline void table_writer_count(table_writer *w, const entry *e) {
    table_totals *t = &w->totals;
    uint64_t sequence = entry_sequence(e);
    t->entries++;
    t->deletions += entry_kind(e) == KIND_DELETE;
    t->expiring += entry_kind(e) == KIND_PUT_DEADLINE;
    if (sequence < t->min_sequence) t->min_sequence = sequence;
    if (sequence > t->max_sequence) t->max_sequence = sequence;
    t->raw_key_bytes += e->key.size + 8;
    t->raw_value_bytes += e->value.size;
}

static inline int table_writer_add(table_writer *w, const entry *e) {
    if (w->totals.entries && order_of(buffer_slice(&w->last), w->last_trailer, e->key, e->trailer) >= 0)
        return fail(&w->failed, FAILURE_CORRUPT, w->number, w->written, "keys out of order");
    if (w->index_due) {
        shorten_separator(&w->block_largest, e->key);
        table_writer_index(w);
    }
    if (w->totals.entries == 0) buffer_append(&w->smallest, e->key.data, e->key.size);
    if (w->totals.entries == 0 || !slice_equal(buffer_slice(&w->last), e->key)) {
        uint64_t hash = hash64(e->key.data, e->key.size);
        buffer_append(&w->hashes, &hash, 8);
    }
    uint8_t trailer[8], deadline[8];
    store64(trailer, e->trailer);
    store64(deadline, e->deadline);
    size_t deadline_size = entry_kind(e) == KIND_PUT_DEADLINE ? 8 : 0;
    block_builder_add(&w->data, e->key, slice_of(trailer, 8), slice_of(deadline, deadline_size), e->value);
    w->last.size = 0;
    buffer_append(&w->last, e->key.data, e->key.size);
    w->last_trailer = e->trailer;
    table_writer_count(w, e);
    if (block_builder_failed(&w->data) || w->last.failed || w->hashes.failed || w->smallest.failed)
        return fail(&w->failed, FAILURE_MEMORY, w->number, w->written, "out of memory");
    return w->data.out.size >= w->block_bytes ? table_writer_end_block(w) : 0;
}

static inline void table_writer_property(block_builder *b, const char *name, uint64_t number) {
    uint8_t value[VARINT_BYTES_MAX];
    size_t size = varint_put(value, number);
    block_builder_add(b, slice_of(name, strlen(name)), slice_of(NULL, 0), slice_of(NULL, 0),
                      slice_of(value, size));
}

static inline void table_writer_property_bytes(block_builder *b, const char *name, slice value) {
    block_builder_add(b, slice_of(name, strlen(name)), slice_of(NULL, 0), slice_of(NULL, 0), value);
}

static inline slice table_writer_properties(table_writer *w) {
    block_builder *b = &w->index; /* already written: its memory serves again */
    block_builder_reset(b);
    table_writer_property(b, "created_ms", w->created_ms);
    table_writer_property(b, "deletions", w->totals.deletions);
    table_writer_property(b, "entries", w->totals.entries);
    table_writer_property(b, "expiring", w->totals.expiring);
    table_writer_property_bytes(b, "largest", buffer_slice(&w->last));
    table_writer_property(b, "max_sequence", w->totals.max_sequence);
    table_writer_property(b, "min_sequence", w->totals.min_sequence);
    if (w->range_deletions.size) table_writer_property_bytes(b, "range_deletions", w->range_deletions);
    table_writer_property(b, "raw_key_bytes", w->totals.raw_key_bytes);
    table_writer_property(b, "raw_value_bytes", w->totals.raw_value_bytes);
    table_writer_property_bytes(b, "smallest", buffer_slice(&w->smallest));
    return block_builder_finish(b);
}

static inline void table_writer_footer(table_writer *w, block_handle filter, block_handle index,
                                       block_handle properties) {
    uint8_t footer[TABLE_FOOTER_BYTES];
    store64(footer, filter.offset);
    store32(footer + 8, filter.size);
    store64(footer + 12, index.offset);
    store32(footer + 20, index.size);
    store64(footer + 24, properties.offset);
    store32(footer + 32, properties.size);
    store64(footer + 36, w->file_id);
    store32(footer + 44, TABLE_VERSION);
    store32(footer + 48, (uint32_t)w->packer.type);
    store32(footer + 52, crc32c_mask(crc32c(0, footer, 52)));
    memcpy(footer + 56, TABLE_MAGIC, 8);
    buffer_append(&w->pending, footer, sizeof footer);
}

/* Ends the table; it has at least one entry. Afterwards `written` is the file's size. */
static inline int table_writer_finish(table_writer *w) {
    block_handle filter, index, properties;
    buffer bloom = {0};
    if (!block_builder_is_empty(&w->data) && table_writer_end_block(w) < 0) return -1;
    if (w->index_due) {
        shorten_successor(&w->block_largest);
        table_writer_index(w);
    }
    bloom_build(&bloom, (const uint64_t *)w->hashes.data, w->hashes.size / 8, w->bits_per_key);
    int result = bloom.failed || block_builder_failed(&w->index)
                     ? fail(&w->failed, FAILURE_MEMORY, w->number, w->written, "out of memory")
                     : table_writer_block(w, buffer_slice(&bloom), BLOCK_TYPE_PLAIN, &filter);
    buffer_free(&bloom);
    if (result < 0 ||
        table_writer_block(w, block_builder_finish(&w->index), BLOCK_TYPE_PLAIN, &index) < 0 ||
        table_writer_block(w, table_writer_properties(w), BLOCK_TYPE_PLAIN, &properties) < 0)
        return -1;
    table_writer_footer(w, filter, index, properties);
    if (w->pending.failed) return fail(&w->failed, FAILURE_MEMORY, w->number, w->written, "out of memory");
    return table_writer_flush(w);
}

#endif
