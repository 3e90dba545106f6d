/* Cursors over one sorted source: a memtable, or a run (tables that follow each other without overlap: a
 * level, or one table of level 0).
 *
 * A cursor is opened for one direction and keeps it. `at` is valid until the next step: its key may live in
 * the cursor's own buffer, its value in a block that the cursor holds. Failures go to the reader; the cursor
 * is then invalid. */
#ifndef RINGKV_CURSOR_H
#define RINGKV_CURSOR_H

#include "memtable.h"
#include "table.h"

#define READ_AHEAD_BYTES                                                                                     \
    (256u << 10) /* of a compaction: few calls, and small beside its outputs even with 20 inputs */

typedef struct {
    table **tables; /* in key order */
    size_t count;
} run;

typedef struct {
    entry at;
    uint64_t prefix; /* of at.key */
    int valid;
    int reverse;
    uint32_t rank;          /* lower = newer source; only breaks ties, which sound data does not have */
    const memtable *memory; /* this, or ... */
    const memtable_node *node;
    run tables; /* ... these */
    size_t table_index;
    uint64_t sequence_bits; /* of that table */
    reader *r;
    cache_entry *index_held;
    cache_entry *data_block;
    block_cursor index;
    block_cursor data;
    uint8_t *ahead; /* without a cache: what was read ahead of the data blocks */
    uint64_t ahead_from;
    size_t ahead_size;
} cursor;

static inline void cursor_init_memory(cursor *c, const memtable *m, int reverse) {
    memset(c, 0, sizeof *c);
    c->memory = m;
    c->reverse = reverse;
}

static inline void cursor_init_run(cursor *c, run tables, reader *r, int reverse) {
    memset(c, 0, sizeof *c);
    c->tables = tables;
    c->r = r;
    c->reverse = reverse;
}

static inline void cursor_leave_data(cursor *c) {
    cache_release(c->data_block);
    c->data_block = NULL;
}

static inline void cursor_leave_table(cursor *c) {
    cursor_leave_data(c);
    cache_release(c->index_held);
    c->index_held = NULL;
    c->ahead_size = 0;
}

static inline void cursor_free(cursor *c) {
    cursor_leave_table(c);
    block_cursor_free(&c->index);
    block_cursor_free(&c->data);
    free(c->ahead);
}

static inline const table *cursor_table(const cursor *c) { return c->tables.tables[c->table_index]; }

static inline int cursor_fail(cursor *c, uint64_t offset, const char *what) {
    c->valid = 0;
    return table_fail(c->r, cursor_table(c), FAILURE_CORRUPT, offset, what);
}

static inline int cursor_enter_table(cursor *c, size_t table_index) {
    cursor_leave_table(c);
    c->table_index = table_index;
    const table *t = cursor_table(c);
    c->sequence_bits = t->sequence_bits;
    cache_entry *index = table_pinned(c->r, t, t->index, &t->pinned_index, &c->index_held);
    if (!index) return -1;
    if (block_cursor_open(&c->index, cache_bytes(index)) < 0)
        return cursor_fail(c, t->index.offset, "malformed index block");
    return 0;
}

/* A block without the cache: cut out of what was read ahead. */
static inline cache_entry *cursor_block_ahead(cursor *c, const table *t, block_handle h) {
    size_t size = (size_t)h.size + BLOCK_TRAILER_BYTES;
    if (size > READ_AHEAD_BYTES || h.offset > t->size || size > t->size - h.offset)
        return table_block(c->r, t, h);
    if (h.offset < c->ahead_from || h.offset + size > c->ahead_from + c->ahead_size) {
        uint64_t left = t->size - h.offset;
        if (!c->ahead && !(c->ahead = (uint8_t *)malloc(READ_AHEAD_BYTES))) return table_block(c->r, t, h);
        c->ahead_from = h.offset;
        c->ahead_size = left < READ_AHEAD_BYTES ? (size_t)left : READ_AHEAD_BYTES;
        if (table_read(c->r, t, c->ahead_from, c->ahead, c->ahead_size) < 0) return NULL;
    }
    const uint8_t *stored = c->ahead + (h.offset - c->ahead_from);
    if (!block_is_sound(t, h.offset, stored, h.size))
        return table_block(c->r, t, h); /* reads again, and names what is wrong */
    return table_unpack(c->r, t, h, stored);
}

/* Opens the data block that the index cursor stands on. */
static inline int cursor_enter_data(cursor *c) {
    const table *t = cursor_table(c);
    block_handle h;
    cursor_leave_data(c);
    if (table_handle(c->r, t, c->index.value, &h) < 0) return -1;
    c->data_block = c->r->blocks ? table_block(c->r, t, h) : cursor_block_ahead(c, t, h);
    if (!c->data_block) return -1;
    if (block_cursor_open(&c->data, cache_bytes(c->data_block)) < 0)
        return cursor_fail(c, h.offset, "malformed block");
    return 0;
}

static inline int cursor_take(cursor *c) {
    if (c->memory) {
        c->valid = c->node != NULL;
        if (c->valid) {
            memtable_entry(c->node, &c->at);
            c->prefix = c->node->prefix;
        }
        return 0;
    }
    if (block_entry(&c->data, &c->at) < 0)
        return cursor_fail(c, cursor_table(c)->index.offset, "malformed block entry");
    c->at.trailer |= c->sequence_bits;
    c->valid = 1;
    c->prefix = slice_prefix(c->at.key);
    return 0;
}

static inline int cursor_data_broken(cursor *c) {
    return cursor_fail(c, c->data_block ? c->data_block->offset : 0, "malformed block");
}

/* The data cursor ran out of its block: on to the next one that holds something, in the next table if need
 * be. */
static inline int cursor_settle(cursor *c) {
    int reverse = c->reverse;
    while (!c->data.valid) {
        if ((reverse ? block_previous(&c->index) : block_next(&c->index)) < 0)
            return cursor_fail(c, cursor_table(c)->index.offset, "malformed index block");
        if (!c->index.valid) {
            if (reverse ? c->table_index == 0 : c->table_index + 1 >= c->tables.count) {
                c->valid = 0;
                return 0;
            }
            if (cursor_enter_table(c, reverse ? c->table_index - 1 : c->table_index + 1) < 0) goto failed;
            if ((reverse ? block_last(&c->index) : block_first(&c->index)) < 0 || !c->index.valid)
                return cursor_fail(c, cursor_table(c)->index.offset, "malformed index block");
        }
        if (cursor_enter_data(c) < 0) goto failed;
        if ((reverse ? block_last(&c->data) : block_first(&c->data)) < 0) return cursor_data_broken(c);
    }
    return cursor_take(c);
failed:
    c->valid = 0;
    return -1;
}

/* One step in the cursor's direction. */
static inline int cursor_step(cursor *c) {
    if (c->memory) {
        c->node = c->reverse ? memtable_previous(c->memory, c->node) : memtable_next(c->node, 0);
        return cursor_take(c);
    }
    if ((c->reverse ? block_previous(&c->data) : block_next(&c->data)) < 0) return cursor_data_broken(c);
    return c->data.valid ? cursor_take(c) : cursor_settle(c);
}

/* The first table whose largest key is at or behind `key`; the count if there is none. */
static inline size_t run_find(run tables, slice key) {
    size_t low = 0, high = tables.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (slice_compare(tables.tables[middle]->largest, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Forward: to the first version of the first key >= `key`. */
static inline int cursor_seek_run(cursor *c, slice key) {
    size_t found = run_find(c->tables, key);
    c->valid = 0;
    if (found == c->tables.count) return 0;
    if (cursor_enter_table(c, found) < 0) return -1;
    if (block_seek(&c->index, key, 0, 0) < 0 || !c->index.valid)
        return cursor_fail(c, cursor_table(c)->index.offset, "malformed index block");
    if (cursor_enter_data(c) < 0) return -1;
    if (block_seek(&c->data, key, TRAILER_NEWEST, 1) < 0) return cursor_data_broken(c);
    return c->data.valid ? cursor_take(c) : cursor_settle(c);
}

/* Reverse: to the oldest version of the last key < `key`, or of the last key of all without one. */
static inline int cursor_seek_run_before(cursor *c, const slice *key) {
    size_t found = key ? run_find(c->tables, *key) : c->tables.count;
    c->valid = 0;
    if (found == c->tables.count) { /* everything in the run lies before */
        if (found == 0) return 0;
        if (cursor_enter_table(c, found - 1) < 0) return -1;
        c->index.current = c->index.entries_end;
        c->data.valid = 0;
        return cursor_settle(c);
    }
    if (cursor_enter_table(c, found) < 0) return -1;
    if (block_seek(&c->index, *key, 0, 0) < 0 || !c->index.valid)
        return cursor_fail(c, cursor_table(c)->index.offset, "malformed index block");
    if (cursor_enter_data(c) < 0) return -1;
    if (block_seek(&c->data, *key, TRAILER_NEWEST, 1) < 0 || block_previous(&c->data) < 0)
        return cursor_data_broken(c);
    return c->data.valid ? cursor_take(c) : cursor_settle(c);
}

/* Forward: to the first key >= `from` (NULL: the very first). Reverse: to the last key < `from` (NULL: the
 * very last). */
static inline int cursor_seek(cursor *c, const slice *from) {
    if (c->memory) {
        if (c->reverse)
            c->node =
                from ? memtable_seek_before(c->memory, *from, TRAILER_NEWEST) : memtable_last(c->memory);
        else
            c->node =
                from ? memtable_seek(c->memory, *from, TRAILER_NEWEST, NULL) : memtable_first(c->memory);
        return cursor_take(c);
    }
    if (c->reverse) return cursor_seek_run_before(c, from);
    return cursor_seek_run(c, from ? *from : slice_of("", 0));
}

#endif
