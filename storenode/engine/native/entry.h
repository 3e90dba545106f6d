/* One version of one key, and the order of versions: user key ascending, then newest first (docs/formats.md
 * section 3). */
#ifndef RINGKV_ENTRY_H
#define RINGKV_ENTRY_H

#include "bytes.h"

enum {
    KIND_DELETE = 0,
    KIND_PUT = 1,
    KIND_PUT_DEADLINE = 2,
};

#define SEQUENCE_MAX ((1ull << 56) - 1)
#define TRAILER_NEWEST (~0ull) /* orders before every version of a key */
#define KEY_BYTES_LIMIT 65535  /* the protocol allows 4096; the engine's own bound */

typedef struct {
    slice key; /* the user key */
    uint64_t trailer;
    slice value; /* without the deadline */
    uint64_t deadline;
} entry;

static inline uint64_t trailer_of(uint64_t sequence, int kind) { return sequence << 8 | (unsigned)kind; }
static inline int entry_kind(const entry *e) { return (int)(e->trailer & 0xff); }
static inline uint64_t entry_sequence(const entry *e) { return e->trailer >> 8; }

/* Whether the key counts as absent at `now_ms` if this is its newest version. */
static inline int entry_is_absent(const entry *e, uint64_t now_ms) {
    int kind = entry_kind(e);
    return kind == KIND_DELETE || (kind == KIND_PUT_DEADLINE && e->deadline <= now_ms);
}

static inline int order_of(slice key_a, uint64_t trailer_a, slice key_b, uint64_t trailer_b) {
    int order = slice_compare(key_a, key_b);
    if (order) return order;
    return trailer_a > trailer_b ? -1 : trailer_a < trailer_b;
}

#endif
