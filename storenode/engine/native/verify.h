/* Reading all of a table and checking what checksums cannot: that its keys are in order, that each lies where the
 * index leads to, and inside the bounds that the manifest gives the table. */
#ifndef RINGKV_VERIFY_H
#define RINGKV_VERIFY_H

#include "cursor.h"

typedef struct {
    buffer key; /* of the entry before */
    uint64_t trailer;
    buffer separator; /* of the block that it is in */
    uint32_t block;   /* which one: offset of its index entry */
    uint64_t count;
} table_check;

static inline void table_check_set(buffer *to, slice key) {
    to->size = 0;
    buffer_append(to, key.data, key.size);
}

/* What is wrong with the entry that the cursor stands on, by those before it; NULL: nothing. */
static inline const char *table_check_entry(table_check *k, const table *t, const cursor *c) {
    slice key = c->at.key, before = buffer_slice(&k->key), separator = buffer_slice(&c->index.key);
    if (k->count == 0 && slice_compare(key, t->smallest) < 0) return "a key below the table's smallest";
    if (k->count && order_of(before, k->trailer, key, c->at.trailer) >= 0) return "keys out of order";
    if (entry_sequence(&c->at) > t->max_sequence) return "a version newer than the manifest says of the table";
    if (slice_compare(key, separator) > 0) return "a key above what the index says of its block";
    if (k->count == 0 || c->index.current != k->block) {
        int order = k->count ? slice_compare(key, buffer_slice(&k->separator)) : 1;
        if (order < 0 || (order == 0 && !slice_equal(key, before)))
            return "a key that the index says is in the block before";
        table_check_set(&k->separator, separator);
        k->block = c->index.current;
    }
    table_check_set(&k->key, key);
    k->trailer = c->at.trailer;
    k->count++;
    return NULL;
}

/* Reads every block past the cache, and counts the entries; -1: failure (in r). */
static inline int table_verify(reader *r, table *t, uint64_t *count) {
    table *tables[1] = {t};
    run one = {tables, 1};
    table_check k;
    cursor c;
    memset(&k, 0, sizeof k);
    cursor_init_run(&c, one, r, 0);
    int result = cursor_seek(&c, NULL);
    while (result == 0 && c.valid) {
        const char *wrong = table_check_entry(&k, t, &c);
        result = wrong ? table_fail(r, t, FAILURE_CORRUPT, c.data_block->offset, wrong) : cursor_step(&c);
    }
    if (result == 0 && k.count && slice_compare(buffer_slice(&k.key), t->largest) > 0)
        result = table_fail(r, t, FAILURE_CORRUPT, 0, "a key above the table's largest");
    if (result == 0 && (k.key.failed || k.separator.failed))
        result = table_fail(r, t, FAILURE_MEMORY, 0, "out of memory");
    *count = k.count;
    buffer_free(&k.key);
    buffer_free(&k.separator);
    cursor_free(&c);
    return result;
}

#endif
