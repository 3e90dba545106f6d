/* Cursors over one sorted source: a memtable, or a run (tables that follow each other without overlap: a
 * level, or one table of level 0).
 *
 * A cursor is opened for one direction and keeps it. `at` is valid until the next step: its key may live in
 * the cursor's own buffer, its value in a block that the cursor holds. Failures go to the reader; the cursor
 * is then invalid. */
#ifndef RINGKV_CURSOR_H
#define RINGKV_CURSOR_H

#include "index_walk.h"
#include "memtable.h"

#define READ_AHEAD_BYTES                                                                                     \
    (256u << 10) /* of a compaction: few calls, and small beside its outputs even with 20 inputs */

/* A scan that misses the cache for the third time in a row, on blocks that follow each other, reads ahead: twice as
 * far each time, so that a short one reads little in vain. */
#define SCAN_AHEAD_BLOCKS 2
#define SCAN_AHEAD_BYTES_FIRST (16u << 10)

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
    const slice *bound; /* forward: no table from here on is opened; reverse: none that ends before; NULL: all are */
    size_t table_index;
    uint64_t sequence_bits; /* of that table */
    reader *r;
    index_walk index;
    cache_entry *data_block;
    block_cursor data;
    uint64_t expected;   /* where the block lies that follows, in the cursor's direction */
    unsigned missed;     /* blocks in a row that the cache did not have */
    size_t ahead_next;   /* how far to read ahead the next time */
    uint8_t *ahead;      /* what was read ahead of the data blocks */
    size_t ahead_room;
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
    walk_leave(&c->index);
    c->ahead_size = 0;
    c->expected = 0;
}

static inline void cursor_free(cursor *c) {
    cursor_leave_table(c);
    walk_free(&c->index);
    block_cursor_free(&c->data);
    free(c->ahead);
}

static inline const table *cursor_table(const cursor *c) { return c->tables.tables[c->table_index]; }

static inline int cursor_fail(cursor *c, uint64_t offset, const char *what) {
    c->valid = 0;
    return table_fail(c->r, cursor_table(c), FAILURE_CORRUPT, offset, what);
}

static inline int cursor_is_outside(const cursor *c, size_t table_index) {
    const table *t = c->tables.tables[table_index];
    if (!c->bound) return 0;
    return c->reverse ? slice_compare(t->largest, *c->bound) < 0 : slice_compare(t->smallest, *c->bound) >= 0;
}

static inline int cursor_enter_table(cursor *c, size_t table_index) {
    cursor_leave_table(c);
    c->table_index = table_index;
    c->sequence_bits = cursor_table(c)->sequence_bits;
    return walk_enter(&c->index, c->r, cursor_table(c));
}

/* A block that lies among data blocks, cut out of what was read ahead, or else with `bytes` of what comes after it in
 * the cursor's direction. The cache is not asked. */
static inline cache_entry *cursor_block_ahead(cursor *c, const table *t, block_handle h, size_t bytes) {
    size_t size = (size_t)h.size + BLOCK_TRAILER_BYTES;
    if (size > bytes || h.offset > t->filter.offset || size > t->filter.offset - h.offset)
        return table_block(c->r, t, h);
    if (h.offset < c->ahead_from || h.offset + size > c->ahead_from + c->ahead_size) {
        if (c->ahead_room < bytes) {
            uint8_t *room = (uint8_t *)realloc(c->ahead, bytes);
            if (!room) return table_block(c->r, t, h);
            c->ahead = room;
            c->ahead_room = bytes;
        }
        uint64_t before = h.offset + size, behind = t->filter.offset - h.offset;
        c->ahead_size = (c->reverse ? before : behind) < bytes ? (size_t)(c->reverse ? before : behind) : bytes;
        c->ahead_from = c->reverse ? before - c->ahead_size : h.offset;
        if (table_read(c->r, t, c->ahead_from, c->ahead, c->ahead_size) < 0) {
            c->ahead_size = 0;
            return NULL;
        }
    }
    const uint8_t *stored = c->ahead + (h.offset - c->ahead_from);
    if (!block_is_sound(t, h.offset, stored, h.size))
        return table_block(c->r, t, h); /* reads again, and names what is wrong */
    return table_unpack(c->r, t, h, stored);
}

/* A block of a scan. One that reads ahead leaves blocks in the cache only as long as nothing has to go for them. */
static inline cache_entry *cursor_block_cached(cursor *c, const table *t, block_handle h) {
    uint64_t end = h.offset + h.size + BLOCK_TRAILER_BYTES;
    int follows = c->expected == (c->reverse ? end : h.offset);
    c->expected = c->reverse ? h.offset : end;
    cache_entry *e = cache_find(c->r->blocks, t->cache_key, h.offset);
    if (e) return e;
    c->missed = follows ? c->missed + 1 : 0;
    if (c->missed <= SCAN_AHEAD_BLOCKS) {
        c->ahead_next = SCAN_AHEAD_BYTES_FIRST;
        return table_block_uncached(c->r, t, h);
    }
    uint64_t had = c->ahead_from;
    e = cursor_block_ahead(c, t, h, c->ahead_next);
    if (c->ahead_from != had && c->ahead_next < READ_AHEAD_BYTES) c->ahead_next *= 2;
    if (e && cache_has_room(c->r->blocks, e)) cache_insert(c->r->blocks, e);
    return e;
}

/* Opens the data block that the index stands on. */
static inline int cursor_enter_data(cursor *c) {
    const table *t = cursor_table(c);
    block_handle h = c->index.handle;
    cursor_leave_data(c);
    c->data_block = c->r->blocks ? cursor_block_cached(c, t, h) : cursor_block_ahead(c, t, h, READ_AHEAD_BYTES);
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

static inline int cursor_index_broken(cursor *c) {
    c->valid = 0;
    return table_index_broken(c->r, cursor_table(c));
}

/* The data cursor ran out of its block: on to the next one that holds something, in the next table if need
 * be. */
static inline int cursor_settle(cursor *c) {
    int reverse = c->reverse;
    while (!c->data.valid) {
        if ((reverse ? walk_previous(&c->index) : walk_next(&c->index)) < 0) goto failed;
        if (!c->index.valid) {
            size_t next = reverse ? c->table_index - 1 : c->table_index + 1; /* below the first: beyond the last */
            if (next >= c->tables.count || cursor_is_outside(c, next)) {
                c->valid = 0;
                return 0;
            }
            if (cursor_enter_table(c, next) < 0) goto failed;
            if ((reverse ? walk_last(&c->index) : walk_first(&c->index)) < 0) goto failed;
            if (!c->index.valid) return cursor_index_broken(c);
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
    if (found == c->tables.count || cursor_is_outside(c, found)) return 0;
    if (cursor_enter_table(c, found) < 0) return -1;
    if (walk_seek(&c->index, key) < 0) return -1;
    if (!c->index.valid) return cursor_index_broken(c);
    if (cursor_enter_data(c) < 0) return -1;
    if (block_seek(&c->data, key, TRAILER_NEWEST, 1) < 0) return cursor_data_broken(c);
    return c->data.valid ? cursor_take(c) : cursor_settle(c);
}

/* Reverse: to the oldest version of the last key < `key`, or of the last key of all without one. */
static inline int cursor_seek_run_before(cursor *c, const slice *key) {
    size_t found = key ? run_find(c->tables, *key) : c->tables.count;
    c->valid = 0;
    if (found == c->tables.count || slice_compare(c->tables.tables[found]->smallest, *key) >= 0) {
        if (found == 0 || cursor_is_outside(c, found - 1)) return 0; /* what lies before ends with this table */
        if (cursor_enter_table(c, found - 1) < 0) return -1;
        if (walk_last(&c->index) < 0) return -1;
        if (!c->index.valid) return cursor_index_broken(c);
        if (cursor_enter_data(c) < 0) return -1;
        if (block_last(&c->data) < 0) return cursor_data_broken(c);
        return c->data.valid ? cursor_take(c) : cursor_settle(c);
    }
    if (cursor_enter_table(c, found) < 0) return -1;
    if (walk_seek(&c->index, *key) < 0) return -1;
    if (!c->index.valid) return cursor_index_broken(c);
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
