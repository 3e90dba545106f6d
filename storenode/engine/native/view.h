/* What a reader sees: memtables newest first, then runs newest first (each table of level 0, then the
 * levels). Never changed once made; only its first memtable still grows. */
#ifndef RINGKV_VIEW_H
#define RINGKV_VIEW_H

#include "merge.h"
#include "ranges.h"

typedef struct {
    memtable **memtables;
    size_t memtable_count;
    run *runs;
    size_t run_count;
    range_set ranges; /* not owned. None is newer than a sequence that the view is read at: see Tree.apply */
} view;

/* The working memory of one caller: a cursor whose buffer is used again. */
typedef struct {
    block_cursor index;
} scratch;

static inline void scratch_free(scratch *s) { block_cursor_free(&s->index); }

/* 1, or 0 if a range deletion makes what was found absent. */
static inline int view_keeps(const view *v, lookup *l) {
    if (!ranges_hiding(&v->ranges, &l->found)) return 1;
    lookup_release(l);
    return 0;
}

/* Finds the newest version of `key` that is not newer than `sequence`: 1 found (may be a deletion), 0 none,
 * -1 failure (in r). `l->found.value` is valid until lookup_release. `*in_active`: it lies in the first
 * memtable. */
static inline int view_get(const view *v, reader *r, scratch *s, slice key, uint64_t sequence, lookup *l,
                           int *in_active) {
    l->pinned = NULL;
    *in_active = 0;
    r->lookups++;
    for (size_t i = 0; i < v->memtable_count; i++) {
        if (memtable_get(v->memtables[i], key, sequence, &l->found)) {
            *in_active = i == 0;
            return view_keeps(v, l);
        }
    }
    if (!v->run_count) return 0;
    uint64_t hash = hash64(key.data, key.size);
    for (size_t i = 0; i < v->run_count; i++) {
        size_t at = run_find(v->runs[i], key);
        if (at == v->runs[i].count || slice_compare(v->runs[i].tables[at]->smallest, key) > 0) continue;
        int result = table_get(r, v->runs[i].tables[at], key, hash, &s->index, l);
        if (result) return result > 0 ? view_keeps(v, l) : result;
    }
    return 0;
}

/* One key of view_get_group. */
typedef struct {
    slice key;
    uint64_t hash;
    const table *t; /* where it is looked for just now; NULL: nowhere */
    block_handle h;
    cache_entry *block;
    lookup at;
    int found; /* as view_get returns */
} group_key;

#define GROUP_KEYS 64 /* enough to hide the misses; bounds the blocks that are held at once */

static inline void group_release(group_key *keys, size_t count) {
    for (size_t i = 0; i < count; i++) {
        cache_release(keys[i].block);
        lookup_release(&keys[i].at);
    }
}

/* The steps of table_get for many keys of one run, each step for all of them: what the next one will look at is
 * fetched meanwhile. */
static inline int run_get_group(reader *r, run tables, scratch *s, group_key *keys, size_t count) {
    for (group_key *k = keys; k < keys + count; k++) {
        size_t at = k->found ? tables.count : run_find(tables, k->key);
        k->t = at < tables.count && slice_compare(tables.tables[at]->smallest, k->key) <= 0 ? tables.tables[at] : NULL;
        cache_entry *filter = k->t ? __atomic_load_n(&k->t->pinned_filter, __ATOMIC_ACQUIRE) : NULL;
        if (filter) bloom_prefetch(cache_bytes(filter), k->hash);
    }
    for (group_key *k = keys; k < keys + count; k++) {
        if (!k->t) continue;
        int may_hold = table_may_hold(r, k->t, k->hash);
        r->filtered += may_hold == 0;
        if (may_hold > 0) {
            r->searched++;
            may_hold = table_locate(r, k->t, k->key, &s->index, &k->h);
            r->misled += may_hold == 0;
        }
        if (may_hold < 0) return -1;
        if (!may_hold) k->t = NULL;
        if (may_hold && r->blocks) cache_prefetch(r->blocks, k->t->cache_key, k->h.offset);
    }
    for (group_key *k = keys; k < keys + count; k++) {
        if (!k->t) continue;
        k->block = table_block(r, k->t, k->h);
        if (!k->block) return -1;
        __builtin_prefetch(k->block->data + k->block->size - 4);
    }
    for (group_key *k = keys; k < keys + count; k++) {
        if (!k->t) continue;
        cache_entry *block = k->block;
        k->block = NULL;
        k->found = table_get_in_block(r, k->t, k->h, block, k->key, &k->at);
        if (k->found == 0) /* behind all of that block: the long way knows the next one */
            k->found = table_get_by_index(r, k->t, k->key, &s->index, &k->at);
        r->misled += k->found == 0 || k->found == 2;
        if (k->found == 2) k->found = 0;
        if (k->found < 0) return -1;
    }
    return 0;
}

/* view_get for up to GROUP_KEYS keys, whose `key` is set; -1: failure (in r). Then group_release, in any case. */
static inline int view_get_group(const view *v, reader *r, scratch *s, group_key *keys, size_t count,
                                 uint64_t sequence) {
    size_t missing = 0;
    r->lookups += count;
    for (group_key *k = keys; k < keys + count; k++) {
        k->block = k->at.pinned = NULL;
        k->found = 0;
        for (size_t i = 0; i < v->memtable_count && !k->found; i++)
            k->found = memtable_get(v->memtables[i], k->key, sequence, &k->at.found);
        if (k->found) continue;
        missing++;
        k->hash = hash64(k->key.data, k->key.size);
    }
    for (size_t i = 0; i < v->run_count && missing; i++)
        if (run_get_group(r, v->runs[i], s, keys, count) < 0) return -1;
    for (group_key *k = keys; v->ranges.count && k < keys + count; k++)
        k->found = k->found && view_keeps(v, &k->at);
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
