/* Range deletions as a reader needs them: intervals of keys in order that do not overlap, each with the highest
 * sequence that deleted it. A version of a key in an interval is absent if its sequence is lower. */
#ifndef RINGKV_RANGES_H
#define RINGKV_RANGES_H

#include "entry.h"

typedef struct {
    slice start;
    slice stop;
    int has_stop; /* 0, for the last one only: it goes to the end of all keys */
    uint64_t sequence;
} range_interval;

typedef struct {
    const range_interval *intervals;
    size_t count;
} range_set;

/* The interval that holds `key`, NULL if there is none. */
static inline const range_interval *ranges_find(const range_set *s, slice key) {
    size_t low = 0, high = s->count; /* the first interval that begins behind the key */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (slice_compare(s->intervals[middle].start, key) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0) return NULL;
    const range_interval *i = &s->intervals[low - 1];
    return !i->has_stop || slice_compare(key, i->stop) < 0 ? i : NULL;
}

/* The interval that makes this version absent, NULL if there is none. */
static inline const range_interval *ranges_hiding(const range_set *s, const entry *e) {
    if (__builtin_expect(s->count == 0, 1)) return NULL;
    const range_interval *i = ranges_find(s, e->key);
    return i && entry_sequence(e) < i->sequence ? i : NULL;
}

#endif
