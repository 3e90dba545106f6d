/* Checking a whole table the way its readers use it: every block, the order of its versions, the bounds that the
 * index gives each block, the filter, and what the versions add up to. */
#ifndef RINGKV_TABLE_CHECK_H
#define RINGKV_TABLE_CHECK_H

#include "cursor.h"
#include "table_writer.h"

typedef struct {
    table_totals totals;
    buffer smallest; /* user keys of the first and the last version */
    buffer last;
    uint64_t last_trailer;
    uint64_t block_offset; /* of the data block that the last version lies in */
    buffer separator;      /* what the index says of that block */
    buffer separator_before;
} table_check;

static inline void table_check_free(table_check *k) {
    buffer_free(&k->smallest);
    buffer_free(&k->last);
    buffer_free(&k->separator);
    buffer_free(&k->separator_before);
}

static inline void buffer_set(buffer *to, slice from) {
    to->size = 0;
    buffer_append(to, from.data, from.size);
}

static inline void table_check_count(table_check *k, const entry *e) {
    table_totals *t = &k->totals;
    uint64_t sequence = entry_sequence(e);
    if (!t->entries++) {
        t->min_sequence = UINT64_MAX;
        buffer_set(&k->smallest, e->key);
    }
    t->deletions += entry_kind(e) == KIND_DELETE;
    t->expiring += entry_kind(e) == KIND_PUT_DEADLINE;
    if (sequence < t->min_sequence) t->min_sequence = sequence;
    if (sequence > t->max_sequence) t->max_sequence = sequence;
    t->raw_key_bytes += e->key.size + 8;
    t->raw_value_bytes += e->value.size;
}

/* What is wrong with the version that the cursor stands on, NULL if nothing. */
static inline const char *table_check_entry(table_check *k, const cursor *c, slice filter) {
    const entry *e = &c->at;
    int is_first = k->totals.entries == 0;
    if (!is_first && order_of(buffer_slice(&k->last), k->last_trailer, e->key, e->trailer) >= 0)
        return "keys out of order";
    if (is_first || c->data_block->offset != k->block_offset) {
        buffer_set(&k->separator_before, buffer_slice(&k->separator));
        buffer_set(&k->separator, buffer_slice(&c->index.key));
        k->block_offset = c->data_block->offset;
        if (!is_first && slice_compare(e->key, buffer_slice(&k->separator_before)) < 0)
            return "a key belongs to the block before, by the index";
    }
    if (slice_compare(e->key, buffer_slice(&k->separator)) > 0)
        return "a key is above what the index says of its block";
    if (!bloom_may_hold(filter, hash64(e->key.data, e->key.size))) return "the filter hides a key";
    table_check_count(k, e);
    buffer_set(&k->last, e->key);
    k->last_trailer = e->trailer;
    return NULL;
}

/* Goes through the whole table; `r` has no cache. -1: failure, in r. Then table_check_free, in any case. */
static inline int table_check_run(table_check *k, table *t, reader *r) {
    table *tables[1] = {t};
    run one = {tables, 1};
    cursor c;
    memset(k, 0, sizeof *k);
    cache_entry *filter = table_block(r, t, t->filter);
    if (!filter) return -1;
    if (!bloom_is_sound(cache_bytes(filter))) {
        cache_release(filter);
        return table_fail(r, t, FAILURE_CORRUPT, t->filter.offset, "malformed filter");
    }
    cursor_init_run(&c, one, r, 0);
    cursor_seek(&c, NULL);
    while (c.valid) {
        const char *wrong = table_check_entry(k, &c, cache_bytes(filter));
        if (wrong)
            cursor_fail(&c, k->block_offset, wrong);
        else
            cursor_step(&c);
    }
    cursor_free(&c);
    cache_release(filter);
    if (k->smallest.failed || k->last.failed || k->separator.failed || k->separator_before.failed)
        return table_fail(r, t, FAILURE_MEMORY, 0, "out of memory");
    return r->failed.code == FAILURE_NONE ? 0 : -1;
}

#endif
