/* What a reader sees: memtables newest first, then runs newest first (each table of level 0, then the
 * levels). Never changed once made; only its first memtable still grows. */
#ifndef RINGKV_VIEW_H
#define RINGKV_VIEW_H

#include "merge.h"

typedef struct {
    memtable **memtables;
    size_t memtable_count;
    run *runs;
    size_t run_count;
} view;

/* The working memory of one caller: cursors whose buffers are used again. */
typedef struct {
    block_cursor index;
    block_cursor data;
} scratch;

static inline void scratch_free(scratch *s) {
    block_cursor_free(&s->index);
    block_cursor_free(&s->data);
}

/* Finds the newest version of `key` that is not newer than `sequence`: 1 found (may be a deletion), 0 none,
 * -1 failure (in r). `l->found.value` is valid until lookup_release. `*in_active`: it lies in the first
 * memtable. */
static inline int view_get(const view *v, reader *r, scratch *s, slice key, uint64_t sequence, lookup *l,
                           int *in_active) {
    l->pinned = NULL;
    *in_active = 0;
    for (size_t i = 0; i < v->memtable_count; i++) {
        if (memtable_get(v->memtables[i], key, sequence, &l->found)) {
            *in_active = i == 0;
            return 1;
        }
    }
    if (!v->run_count) return 0;
    uint64_t hash = hash64(key.data, key.size);
    for (size_t i = 0; i < v->run_count; i++) {
        size_t at = run_find(v->runs[i], key);
        if (at == v->runs[i].count || slice_compare(v->runs[i].tables[at]->smallest, key) > 0) continue;
        int result = table_get(r, v->runs[i].tables[at], key, hash, &s->index, &s->data, l);
        if (result) return result;
    }
    return 0;
}

/* A merge over everything, ready to be sought. */
static inline int view_merge(const view *v, reader *r, int reverse, merge *m) {
    if (merge_init(m, v->memtable_count + v->run_count, reverse) < 0)
        return fail(&r->failed, FAILURE_MEMORY, 0, 0, "out of memory");
    for (size_t i = 0; i < v->memtable_count; i++)
        merge_add_memory(m, v->memtables[i]);
    for (size_t i = 0; i < v->run_count; i++)
        merge_add_run(m, v->runs[i], r);
    return 0;
}

#endif
