/* Passing what a range deletion hides, without looking at each version of it. */
#ifndef RINGKV_PASS_H
#define RINGKV_PASS_H

#include "merge.h"
#include "ranges.h"

/* The reader knows why. */
static inline int cursor_index_failed(cursor *c) {
    c->valid = 0;
    return -1;
}

/* The cursor stands in the interval, on a version that it hides: to the next version that it may not hide. In a
 * table whose newest version is older than the deletion that is behind the interval or the table, whichever ends
 * first; elsewhere it is one step. */
static inline int cursor_pass(cursor *c, const range_interval *hiding) {
    if (c->memory || cursor_table(c)->max_sequence >= hiding->sequence) return cursor_step(c);
    const table *t = cursor_table(c);
    if (c->reverse) {
        if (slice_compare(hiding->start, t->smallest) > 0) return cursor_seek(c, &hiding->start);
        if (walk_first(&c->index) < 0) return cursor_index_failed(c);
    } else {
        if (hiding->has_stop && slice_compare(hiding->stop, t->largest) <= 0)
            return cursor_seek(c, &hiding->stop);
        if (walk_last(&c->index) < 0) return cursor_index_failed(c);
    }
    c->data.valid = 0;
    return cursor_settle(c);
}

/* merge_step, with the interval that hides the version on top; NULL: none does. */
static inline int merge_pass(merge *m, const range_interval *hiding) {
    if (!hiding) return merge_step(m);
    cursor *top = m->heap[0];
    if (cursor_pass(top, hiding) < 0) return -1;
    if (!top->valid) m->heap[0] = m->heap[--m->live];
    if (m->live > 1) merge_sift(m, 0);
    return 0;
}

#endif
