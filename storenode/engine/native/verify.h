/* Reading all of a table and checking what checksums cannot: that its keys are in order, that each lies where the
 * index leads to and the filter lets through, and inside the bounds that the manifest gives the table; and counting
 * what the properties say. */
#ifndef RINGKV_VERIFY_H
#define RINGKV_VERIFY_H

#include "cursor.h"
#include "table_writer.h"

typedef struct {
    table_totals totals;
    buffer smallest; /* user keys of the first and the last version */
    buffer last;
    uint64_t last_trailer;
    buffer separator; /* of the block that the last version is in */
    uint32_t block;   /* which one: offset of its index entry */
} table_check;

static inline void table_check_free(table_check *k) {
    buffer_free(&k->smallest);
    buffer_free(&k->last);
    buffer_free(&k->separator);
}

static inline void table_check_set(buffer *to, slice key) {
    to->size = 0;
    buffer_append(to, key.data, key.size);
}

static inline void table_check_count(table_check *k, const entry *e) {
    table_totals *t = &k->totals;
    uint64_t sequence = entry_sequence(e);
    if (!t->entries++) {
        t->min_sequence = UINT64_MAX;
        table_check_set(&k->smallest, e->key);
    }
    t->deletions += entry_kind(e) == KIND_DELETE;
    t->expiring += entry_kind(e) == KIND_PUT_DEADLINE;
    if (sequence < t->min_sequence) t->min_sequence = sequence;
    if (sequence > t->max_sequence) t->max_sequence = sequence;
    t->raw_key_bytes += e->key.size + 8;
    t->raw_value_bytes += e->value.size;
    table_check_set(&k->last, e->key);
    k->last_trailer = e->trailer;
}

/* What is wrong with the entry that the cursor stands on, by those before it; NULL: nothing. */
static inline const char *table_check_entry(table_check *k, const table *t, const cursor *c, slice filter) {
    const entry *e = &c->at;
    slice key = e->key, before = buffer_slice(&k->last), separator = buffer_slice(&c->index.cursor.key);
    int is_first = k->totals.entries == 0;
    if (is_first && slice_compare(key, t->smallest) < 0) return "a key below the table's smallest";
    if (!is_first && order_of(before, k->last_trailer, key, e->trailer) >= 0) return "keys out of order";
    if (entry_sequence(e) > t->max_sequence) return "a version newer than the manifest says of the table";
    if (slice_compare(key, separator) > 0) return "a key above what the index says of its block";
    if (is_first || c->index.cursor.current != k->block) {
        int order = is_first ? 1 : slice_compare(key, buffer_slice(&k->separator));
        if (order < 0 || (order == 0 && !slice_equal(key, before)))
            return "a key that the index says is in the block before";
        table_check_set(&k->separator, separator);
        k->block = c->index.cursor.current;
    }
    if (!bloom_may_hold(filter, hash64(key.data, key.size))) return "the filter hides a key";
    table_check_count(k, e);
    return NULL;
}

/* Reads every block past the cache: `r` has none, and what `t` keeps of index and filter is not looked at. -1: failure
 * (in r). Then table_check_free, in any case. */
static inline int table_verify(reader *r, table *t, table_check *k) {
    table fresh = *t;
    table *tables[1] = {&fresh};
    run one = {tables, 1};
    cursor c;
    memset(k, 0, sizeof *k);
    fresh.pinned_index = fresh.pinned_filter = fresh.pinned_fences = NULL;
    cache_entry *filter = table_block(r, t, t->filter);
    if (!filter) return -1;
    if (!bloom_is_sound(cache_bytes(filter))) {
        cache_release(filter);
        return table_fail(r, t, FAILURE_CORRUPT, t->filter.offset, "malformed filter");
    }
    cursor_init_run(&c, one, r, 0);
    int result = cursor_seek(&c, NULL);
    while (result == 0 && c.valid) {
        const char *wrong = table_check_entry(k, t, &c, cache_bytes(filter));
        result = wrong ? table_fail(r, t, FAILURE_CORRUPT, c.data_block->offset, wrong) : cursor_step(&c);
    }
    if (result == 0 && k->totals.entries && slice_compare(buffer_slice(&k->last), t->largest) > 0)
        result = table_fail(r, t, FAILURE_CORRUPT, 0, "a key above the table's largest");
    if (result == 0 && (k->smallest.failed || k->last.failed || k->separator.failed))
        result = table_fail(r, t, FAILURE_MEMORY, 0, "out of memory");
    cursor_free(&c);
    cache_release(filter);
    return result;
}

#endif
