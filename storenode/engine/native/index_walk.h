/* Walking over the data blocks of a table, by its fences; by its index where there are none, or where they cannot
 * tell. */
#ifndef RINGKV_INDEX_WALK_H
#define RINGKV_INDEX_WALK_H

#include "table.h"

typedef struct {
    const table *t;
    reader *r;
    int valid;
    block_handle handle; /* of the block it stands on */
    const table_fences *fences;
    size_t at; /* among the fences */
    block_cursor cursor; /* without fences: on the index */
    cache_entry *held;
} index_walk;

static inline void walk_leave(index_walk *w) {
    cache_release(w->held);
    w->held = NULL;
    w->valid = 0;
}

static inline void walk_free(index_walk *w) {
    walk_leave(w);
    block_cursor_free(&w->cursor);
}

static inline int walk_open_index(index_walk *w) {
    cache_release(w->held);
    cache_entry *index = table_pinned(w->r, w->t, w->t->index, &w->t->pinned_index, &w->held);
    w->fences = NULL;
    if (!index) return -1;
    if (block_cursor_open(&w->cursor, cache_bytes(index)) < 0) return table_index_broken(w->r, w->t);
    return 0;
}

/* Leaves the table it is in, for another one; it stands nowhere then. */
static inline int walk_enter(index_walk *w, reader *r, const table *t) {
    walk_leave(w);
    w->t = t;
    w->r = r;
    w->fences = table_fences_of(t);
    return w->fences ? 0 : walk_open_index(w);
}

/* Takes over where the index cursor, or `at`, has come to. */
static inline int walk_settle(index_walk *w, int moved) {
    if (w->fences) {
        w->valid = w->at < w->fences->count; /* below the first is beyond the last: it is unsigned */
        if (w->valid) w->handle = w->fences->handles[w->at];
        return 0;
    }
    w->valid = 0;
    if (moved < 0) return table_index_broken(w->r, w->t);
    w->valid = w->cursor.valid;
    return w->valid ? table_handle(w->r, w->t, w->cursor.value, &w->handle) : 0;
}

static inline int walk_first(index_walk *w) {
    w->at = 0;
    return walk_settle(w, w->fences ? 0 : block_first(&w->cursor));
}

static inline int walk_last(index_walk *w) {
    if (w->fences) w->at = w->fences->count - 1;
    return walk_settle(w, w->fences ? 0 : block_last(&w->cursor));
}

static inline int walk_next(index_walk *w) {
    w->at++;
    return walk_settle(w, w->fences ? 0 : block_next(&w->cursor));
}

static inline int walk_previous(index_walk *w) {
    w->at--;
    return walk_settle(w, w->fences ? 0 : block_previous(&w->cursor));
}

/* To the block in which `key`, which is not behind the table's largest key, would be. */
static inline int walk_seek(index_walk *w, slice key) {
    if (w->fences) {
        int64_t at = fences_find(w->fences, w->t, key);
        if (at >= 0) {
            w->at = (size_t)at;
            return walk_settle(w, 0);
        }
        if (walk_open_index(w) < 0) return -1;
    }
    return walk_settle(w, block_seek(&w->cursor, key, 0, 0));
}

#endif
