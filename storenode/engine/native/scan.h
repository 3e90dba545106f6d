/* A scan at one sequence, page by page: the SCAN result of docs/protocol.md section 3, and what iterators are made
 * of. The merge under it may stay open from one page to the next (scan_more).
 *
 * A page ends at the limit, at 4 MiB of entries, or after a bounded number of versions looked at, so that a
 * range full of deletions cannot hold up the loop; `resume` then says where to go on. */
#ifndef RINGKV_SCAN_H
#define RINGKV_SCAN_H

#include "msgpack.h"
#include "pass.h"
#include "view.h"

enum { SCAN_REVERSE = 1, SCAN_KEYS_ONLY = 2, SCAN_COUNT = 4 };

#define SCAN_PAGE_BYTES_MAX (4u << 20)
#define SCAN_STEP_BYTES_MAX (64u << 10) /* of a scan that goes on: what stays in the caches until it is used */
#define SCAN_STEPS_MAX 200000 /* versions looked at in one page: about 20 ms */

/* What a backward scan knows about the key that it stands on. */
typedef struct {
    entry held; /* a version in a memtable: emitted when no newer one follows */
    int has_held;
    uint64_t count_before; /* the page without this key */
    size_t size_before;
    buffer key_before;
} scan_group;

typedef struct {
    slice start;
    slice stop;
    int has_stop;
    uint64_t limit;
    unsigned flags;
    uint64_t sequence;
    uint64_t now_ms;
    uint64_t count; /* out */
    buffer entries; /* out */
    buffer resume;  /* out */
    int has_resume; /* out */
    buffer looked;  /* the key last looked at */
    int has_looked;
    range_set ranges; /* the view's */
    scan_group group;
    int goes_on; /* the merge stays open: pages may be cut anywhere, and `resume` is not needed */
    int begun;
} scan;

static inline void scan_free(scan *s) {
    buffer_free(&s->entries);
    buffer_free(&s->resume);
    buffer_free(&s->looked);
    buffer_free(&s->group.key_before);
}

static inline void scan_set(buffer *to, slice key) {
    to->size = 0;
    buffer_append(to, key.data, key.size);
}

static inline void scan_emit(scan *s, const entry *e) {
    s->count++;
    if (s->flags & SCAN_COUNT) return;
    msgpack_append_bin(&s->entries, e->key);
    if (s->flags & SCAN_KEYS_ONLY)
        msgpack_append_byte(&s->entries, 0xc0);
    else
        msgpack_append_bin(&s->entries, e->value);
    msgpack_append_uint(&s->entries, entry_sequence(e));
}

static inline int scan_is_full(const scan *s, uint64_t steps) {
    size_t bytes_max = s->goes_on ? SCAN_STEP_BYTES_MAX : SCAN_PAGE_BYTES_MAX;
    return s->count >= s->limit || s->entries.size >= bytes_max || steps >= SCAN_STEPS_MAX;
}

static inline void scan_set_resume(scan *s, slice key) {
    if (!s->goes_on) scan_set(&s->resume, key);
    s->has_resume = 1;
}

/* Whether an entry of this size would carry a page that holds something over its bytes. */
static inline int scan_too_big(const scan *s, const entry *e) {
    size_t size =
        (s->flags & SCAN_COUNT) ? 0 : e->key.size + ((s->flags & SCAN_KEYS_ONLY) ? 0 : e->value.size) + 24;
    return !s->goes_on && s->entries.size && s->entries.size + size > SCAN_PAGE_BYTES_MAX;
}

/* How the key on top follows the one last looked at: 0 the same, 1 behind it in the scan's direction. -1: the
 * table on top is out of order under a right checksum; a scan that went on could go round for ever. */
static inline int scan_order(const scan *s, merge *m) {
    slice key = merge_at(m)->key;
    int order = 1;
    if (s->has_looked)
        order = slice_compare(key, buffer_slice(&s->looked)) * (m->reverse ? -1 : 1);
    else if (m->reverse ? s->has_stop && slice_compare(key, s->stop) >= 0 : slice_compare(key, s->start) < 0)
        order = -1;
    if (order < 0) cursor_fail(m->heap[0], m->heap[0]->data_block->offset, "keys out of order");
    return order;
}

static inline int scan_forward(scan *s, merge *m) {
    if (!s->begun && merge_seek(m, &s->start) < 0) return -1;
    uint64_t steps = 0;
    for (const entry *e; (e = merge_at(m)) != NULL; steps++) {
        if (s->has_stop && slice_compare(e->key, s->stop) >= 0) return 0;
        const range_interval *hiding = NULL;
        int order = scan_order(s, m);
        if (order < 0) return -1;
        if (order > 0 && entry_sequence(e) <= s->sequence) {
            hiding = ranges_hiding(&s->ranges, e);
            int absent = hiding || entry_is_absent(e, s->now_ms);
            if (scan_is_full(s, steps) || (!absent && scan_too_big(s, e))) {
                scan_set_resume(s, e->key);
                return 0;
            }
            scan_set(&s->looked, e->key);
            s->has_looked = 1;
            if (!absent) scan_emit(s, e);
        }
        if (merge_pass(m, hiding) < 0) return -1;
    }
    return 0;
}

/* The key's last version was seen: emit it. 1: the page became too big by it, was cut back and is complete.
 * */
static inline int scan_end_group(scan *s, scan_group *g) {
    if (g->has_held) scan_emit(s, &g->held);
    g->has_held = 0;
    if (s->goes_on || s->entries.size <= SCAN_PAGE_BYTES_MAX || g->size_before == 0) return 0;
    s->count = g->count_before;
    s->entries.size = g->size_before;
    scan_set(&s->resume, buffer_slice(&g->key_before));
    return s->has_resume = 1;
}

static inline void scan_begin_group(scan *s, scan_group *g, slice key) {
    g->count_before = s->count;
    g->size_before = s->entries.size;
    buffer swapped = g->key_before;
    g->key_before = s->looked;
    s->looked = swapped;
    scan_set(&s->looked, key);
    s->has_looked = 1;
}

/* Backwards, the versions of a key come oldest first: each newer one takes the place of the one before.
 * Versions in memtables are only held, since there may be many of one key; in tables there is one per run at
 * most. */
static inline int scan_backward(scan *s, merge *m) {
    scan_group *g = &s->group;
    if (!s->begun && merge_seek(m, s->has_stop ? &s->stop : NULL) < 0) return -1;
    uint64_t steps = 0;
    for (const entry *e; (e = merge_at(m)) != NULL; steps++) {
        const range_interval *hiding = NULL;
        if (slice_compare(e->key, s->start) < 0) break;
        if (entry_sequence(e) <= s->sequence) {
            int order = scan_order(s, m);
            if (order < 0) return -1;
            if (order == 0) {
                s->count = g->count_before;
                s->entries.size = g->size_before;
            } else {
                if (scan_end_group(s, g)) return 0;
                if (s->has_looked && scan_is_full(s, steps)) {
                    scan_set_resume(s, buffer_slice(&s->looked));
                    return 0;
                }
                scan_begin_group(s, g, e->key);
            }
            hiding = ranges_hiding(&s->ranges, e);
            int absent = hiding || entry_is_absent(e, s->now_ms);
            g->held = *e;
            g->has_held = m->heap[0]->memory && !absent;
            if (!m->heap[0]->memory && !absent) scan_emit(s, e);
        }
        if (merge_pass(m, hiding) < 0) return -1;
    }
    scan_end_group(s, g);
    return 0;
}

/* Opens what the pages of a scan are taken from; `s` stays where it is meanwhile. -1: failure in r. Then merge_free,
 * in any case. */
static inline int scan_open(scan *s, const view *v, reader *r, merge *m) {
    int reverse = (s->flags & SCAN_REVERSE) != 0;
    s->ranges = v->ranges;
    if (view_merge(v, r, reverse, m) < 0) return -1;
    for (size_t i = 0; i < m->count; i++)
        m->cursors[i].bound = reverse ? &s->start : s->has_stop ? &s->stop : NULL;
    return 0;
}

/* The next page of an open merge, in place of the one before. */
static inline int scan_more(scan *s, merge *m, reader *r) {
    s->count = s->entries.size = s->has_resume = 0;
    int result = m->reverse ? scan_backward(s, m) : scan_forward(s, m);
    s->begun = 1;
    if (result == 0 && (s->entries.failed || s->resume.failed || s->looked.failed))
        result = fail(&r->failed, FAILURE_MEMORY, 0, 0, "out of memory");
    return result;
}

/* One page; -1: failure in r. */
static inline int scan_run(scan *s, const view *v, reader *r) {
    merge m;
    int result = scan_open(s, v, r, &m);
    if (result == 0) result = scan_more(s, &m, r);
    merge_free(&m);
    return result;
}

/* Appends the SCAN result. */
static inline void scan_result(const scan *s, buffer *out) {
    msgpack_append_byte(out, (uint8_t)(0x93 + s->has_resume));
    msgpack_append_byte(out, 0);
    msgpack_append_uint(out, s->count);
    msgpack_append_bin(out, buffer_slice(&s->entries));
    if (s->has_resume) msgpack_append_bin(out, buffer_slice(&s->resume));
}

#endif
