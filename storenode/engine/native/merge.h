/* Several cursors as one sorted sequence of versions: a binary heap, smallest (in the direction of travel) on
 * top. */
#ifndef RINGKV_MERGE_H
#define RINGKV_MERGE_H

#include "cursor.h"

typedef struct {
    cursor *cursors; /* owned */
    cursor **heap;
    size_t capacity;
    size_t count; /* cursors opened */
    size_t live;  /* cursors in the heap */
    int reverse;
} merge;

static inline int merge_init(merge *m, size_t capacity, int reverse) {
    memset(m, 0, sizeof *m);
    m->capacity = capacity;
    m->reverse = reverse;
    m->cursors = (cursor *)calloc(capacity ? capacity : 1, sizeof *m->cursors);
    m->heap = (cursor **)calloc(capacity ? capacity : 1, sizeof *m->heap);
    return m->cursors && m->heap ? 0 : -1;
}

static inline void merge_free(merge *m) {
    for (size_t i = 0; i < m->count; i++)
        cursor_free(&m->cursors[i]);
    free(m->cursors);
    free(m->heap);
    memset(m, 0, sizeof *m);
}

/* Sources are added newest first; at most `capacity` of them. */
static inline void merge_add_memory(merge *m, const memtable *memory) {
    cursor_init_memory(&m->cursors[m->count], memory, m->reverse);
    m->cursors[m->count].rank = (uint32_t)m->count;
    m->count++;
}

static inline void merge_add_run(merge *m, run tables, reader *r) {
    cursor_init_run(&m->cursors[m->count], tables, r, m->reverse);
    m->cursors[m->count].rank = (uint32_t)m->count;
    m->count++;
}

static inline int merge_precedes(const merge *m, const cursor *a, const cursor *b) {
    int order;
    if (a->prefix != b->prefix)
        order = a->prefix < b->prefix ? -1 : 1;
    else
        order = order_of(a->at.key, a->at.trailer, b->at.key, b->at.trailer);
    if (order == 0) return a->rank < b->rank;
    return m->reverse ? order > 0 : order < 0;
}

static inline void merge_sift(merge *m, size_t at) {
    cursor **heap = m->heap, *moving = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= m->live) break;
        if (child + 1 < m->live && merge_precedes(m, heap[child + 1], heap[child])) child++;
        if (!merge_precedes(m, heap[child], moving)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

/* See cursor_seek. -1: a cursor failed, the merge must not be used further. */
static inline int merge_seek(merge *m, const slice *from) {
    m->live = 0;
    for (size_t i = 0; i < m->count; i++) {
        if (cursor_seek(&m->cursors[i], from) < 0) return -1;
        if (m->cursors[i].valid) m->heap[m->live++] = &m->cursors[i];
    }
    for (size_t i = m->live / 2; i-- > 0;)
        merge_sift(m, i);
    return 0;
}

static inline const entry *merge_at(const merge *m) { return m->live ? &m->heap[0]->at : NULL; }

static inline int merge_step(merge *m) {
    cursor *top = m->heap[0];
    if (cursor_step(top) < 0) return -1;
    if (!top->valid) m->heap[0] = m->heap[--m->live];
    if (m->live > 1) merge_sift(m, 0);
    return 0;
}

#endif
