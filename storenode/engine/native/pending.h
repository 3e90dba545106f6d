/* What a transaction (docs/protocol.md section 2, TXN) is going to write: kept apart until all of its ops have
 * succeeded, so that one that fails has changed nothing.
 *
 * At most one version a key: the format has it so. Values are pointed to: they lie in the op stream, in the
 * memtable, in a block that is kept for as long, or, if they are short, here. */
#ifndef RINGKV_PENDING_H
#define RINGKV_PENDING_H

#include "operation.h"
#include "table.h"

#define PENDING_VALUE_BYTES 24 /* the sum of an INCREMENT, which nothing else holds */

typedef struct {
    entry e;
    int shared_value;
    uint8_t value[PENDING_VALUE_BYTES];
} pending_write;

typedef struct {
    uint32_t count;
    uint32_t kept;
    uint32_t position; /* of the op being executed in its branch */
    pending_write writes[TXN_PARTS_MAX];
    lookup blocks[TXN_PARTS_MAX];
} pending_writes;

static inline void pending_begin(pending_writes *pending) { pending->count = pending->kept = pending->position = 0; }

static inline void pending_add(pending_writes *pending, const entry *e, int shared_value) {
    pending_write *write = &pending->writes[pending->count++];
    write->e = *e;
    write->shared_value = shared_value;
    if (shared_value || e->value.size > PENDING_VALUE_BYTES) return;
    if (e->value.size) memcpy(write->value, e->value.data, e->value.size);
    write->e.value.data = write->value;
}

/* What will be the newest version of a key; NULL if that is none of these. */
static inline const entry *pending_find(const pending_writes *pending, slice key) {
    for (uint32_t i = 0; i < pending->count; i++)
        if (slice_equal(pending->writes[i].e.key, key)) return &pending->writes[i].e;
    return NULL;
}

/* Takes over what an op has found, for it may have written its value again. */
static inline void pending_keep(pending_writes *pending, const lookup *found) {
    if (found->pinned) pending->blocks[pending->kept++] = *found;
}

static inline void pending_release(pending_writes *pending) {
    for (uint32_t i = 0; i < pending->kept; i++)
        lookup_release(&pending->blocks[i]);
}

#endif
