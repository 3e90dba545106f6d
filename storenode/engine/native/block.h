/* Blocks: sorted keys with shared prefixes left out, and restart points to search from (docs/formats.md
 * section 3).
 *
 * The cursor checks every length against the block's end: a block whose checksum holds but whose content is
 * nonsense makes it report corruption, never read beyond. It knows nothing of internal keys except in
 * block_seek_entry. */
#ifndef RINGKV_BLOCK_H
#define RINGKV_BLOCK_H

#include "entry.h"

#define BLOCK_TRAILER_BYTES 5

typedef struct {
    buffer out;
    buffer restarts;
    buffer last_key;
    unsigned interval;
    unsigned since_restart;
} block_builder;

static inline void block_builder_free(block_builder *b) {
    buffer_free(&b->out);
    buffer_free(&b->restarts);
    buffer_free(&b->last_key);
}

static inline void block_builder_reset(block_builder *b) {
    b->out.size = b->restarts.size = b->last_key.size = 0;
    b->since_restart = 0;
}

static inline int block_builder_is_empty(const block_builder *b) { return b->out.size == 0; }

static inline size_t block_builder_size(const block_builder *b) { return b->out.size + b->restarts.size + 4; }

/* The key comes in two parts (user key and trailer), the value too (deadline and value): nobody has to join
 * them first. */
static inline void block_builder_add(block_builder *b, slice key, slice key_tail, slice value_head,
                                     slice value) {
    size_t shared = 0, key_size = key.size + key_tail.size, value_size = value_head.size + value.size;
    if (b->since_restart == b->interval || b->out.size == 0) {
        uint8_t restart[4];
        store32(restart, (uint32_t)b->out.size);
        buffer_append(&b->restarts, restart, 4);
        b->since_restart = 0;
    } else {
        const uint8_t *last = b->last_key.data;
        size_t limit = b->last_key.size < key.size ? b->last_key.size : key.size;
        while (shared < limit && last[shared] == key.data[shared])
            shared++;
    }
    uint8_t head[3 * VARINT_BYTES_MAX];
    size_t head_size = varint_put(head, shared);
    head_size += varint_put(head + head_size, key_size - shared);
    head_size += varint_put(head + head_size, value_size);
    if (!buffer_reserve(&b->out, head_size + key_size + value_size)) return;
    buffer_append(&b->out, head, head_size);
    buffer_append(&b->out, key.data + shared, key.size - shared);
    buffer_append(&b->out, key_tail.data, key_tail.size);
    buffer_append(&b->out, value_head.data, value_head.size);
    buffer_append(&b->out, value.data, value.size);
    b->last_key.size = shared;
    buffer_append(&b->last_key, key.data + shared, key.size - shared);
    buffer_append(&b->last_key, key_tail.data, key_tail.size);
    b->since_restart++;
}

static inline int block_builder_failed(const block_builder *b) {
    return b->out.failed || b->restarts.failed || b->last_key.failed;
}

/* The finished block; valid until the next reset. */
static inline slice block_builder_finish(block_builder *b) {
    uint8_t count[4];
    if (b->restarts.size == 0) buffer_append(&b->restarts, "\0\0\0\0", 4);
    store32(count, (uint32_t)(b->restarts.size / 4));
    buffer_append(&b->out, b->restarts.data, b->restarts.size);
    buffer_append(&b->out, count, 4);
    return buffer_slice(&b->out);
}

typedef struct {
    const uint8_t *data;
    uint32_t entries_end; /* where the restart array begins */
    uint32_t restarts;
    uint32_t current; /* offset of the entry the cursor stands on */
    uint32_t following;
    buffer key;
    slice value;
    int valid;
    int corrupt;
} block_cursor;

static inline void block_cursor_free(block_cursor *c) { buffer_free(&c->key); }

static inline int block_cursor_open(block_cursor *c, slice block) {
    c->valid = c->corrupt = 0;
    c->data = block.data;
    c->key.size = 0;
    if (block.size < 8 || block.size > UINT32_MAX) goto corrupt;
    c->restarts = load32(block.data + block.size - 4);
    if (c->restarts == 0 || c->restarts > (block.size - 4) / 4) goto corrupt;
    c->entries_end = (uint32_t)(block.size - 4 - 4 * (size_t)c->restarts);
    c->current = c->following = c->entries_end;
    return 0;
corrupt:
    c->corrupt = 1;
    return -1;
}

static inline int block_cursor_corrupt(block_cursor *c) {
    c->corrupt = 1;
    c->valid = 0;
    return -1;
}

typedef struct {
    uint64_t shared, unshared, value_size;
    const uint8_t *key;
} block_entry_head;

/* Reads the head of the entry at `offset` and checks that the entry ends inside the block. */
static inline int block_read_head(const block_cursor *c, uint32_t offset, block_entry_head *head) {
    const uint8_t *p = c->data + offset, *end = c->data + c->entries_end;
    if (end - p >= 3 && (p[0] | p[1] | p[2]) < 0x80) {
        head->shared = p[0];
        head->unshared = p[1];
        head->value_size = p[2];
        p += 3;
    } else {
        if (!(p = varint_get(p, end, &head->shared)) || !(p = varint_get(p, end, &head->unshared)) ||
            !(p = varint_get(p, end, &head->value_size)))
            return -1;
    }
    size_t left = (size_t)(end - p);
    if (head->unshared > left || head->value_size > left - head->unshared) return -1;
    head->key = p;
    return 0;
}

/* Moves to the entry at `following`. */
static inline int block_next(block_cursor *c) {
    if (c->following >= c->entries_end) {
        c->valid = 0;
        c->current = c->entries_end;
        return 0;
    }
    block_entry_head head;
    if (block_read_head(c, c->following, &head) < 0 || head.shared > c->key.size)
        return block_cursor_corrupt(c);
    c->current = c->following;
    c->key.size = (size_t)head.shared;
    buffer_append(&c->key, head.key, (size_t)head.unshared);
    if (c->key.failed) return block_cursor_corrupt(c);
    c->value = slice_of(head.key + head.unshared, (size_t)head.value_size);
    c->following = (uint32_t)(c->value.data + c->value.size - c->data);
    c->valid = 1;
    return 0;
}

static inline int block_go_to_restart(block_cursor *c, uint32_t restart) {
    uint32_t offset = load32(c->data + c->entries_end + 4 * (size_t)restart);
    if (offset > c->entries_end) return block_cursor_corrupt(c);
    c->key.size = 0;
    c->following = offset;
    c->valid = 0;
    return 0;
}

static inline int block_first(block_cursor *c) { return block_go_to_restart(c, 0) < 0 ? -1 : block_next(c); }

/* The last entry that ends at or before `limit`, found from the restart before it. */
static inline int block_last_before(block_cursor *c, uint32_t limit) {
    uint32_t low = 0, high = c->restarts;
    while (high - low > 1) { /* the last restart that lies before the limit */
        uint32_t middle = low + (high - low) / 2;
        if (load32(c->data + c->entries_end + 4 * (size_t)middle) < limit)
            low = middle;
        else
            high = middle;
    }
    if (block_go_to_restart(c, low) < 0) return -1;
    if (c->following >= limit) {
        c->valid = 0;
        return 0;
    }
    do {
        if (block_next(c) < 0) return -1;
    } while (c->valid && c->following < limit);
    return 0;
}

static inline int block_last(block_cursor *c) { return block_last_before(c, c->entries_end); }

static inline int block_previous(block_cursor *c) {
    uint32_t limit = c->current;
    c->valid = 0;
    return limit == 0 ? 0 : block_last_before(c, limit);
}

/* How a stored key orders against the one sought; `internal`: the last 8 bytes of the stored key are its
 * trailer. Returns 2 for a stored key that is too short to be one. */
static inline int block_order(slice stored, slice key, uint64_t trailer, int internal) {
    if (!internal) return slice_compare(stored, key);
    if (stored.size < 8) return 2;
    stored.size -= 8;
    return order_of(stored, load64(stored.data + stored.size), key, trailer);
}

/* The first entry at or behind (key, trailer). */
static inline int block_seek(block_cursor *c, slice key, uint64_t trailer, int internal) {
    uint32_t low = 0, high = c->restarts;
    while (high - low > 1) { /* the last restart whose key is before the one sought */
        uint32_t middle = low + (high - low) / 2;
        uint32_t offset = load32(c->data + c->entries_end + 4 * (size_t)middle);
        block_entry_head head;
        if (offset >= c->entries_end || block_read_head(c, offset, &head) < 0 || head.shared)
            return block_cursor_corrupt(c);
        int order = block_order(slice_of(head.key, (size_t)head.unshared), key, trailer, internal);
        if (order == 2) return block_cursor_corrupt(c);
        if (order < 0)
            low = middle;
        else
            high = middle;
    }
    if (block_go_to_restart(c, low) < 0) return -1;
    for (;;) {
        if (block_next(c) < 0) return -1;
        if (!c->valid) return 0;
        int order = block_order(buffer_slice(&c->key), key, trailer, internal);
        if (order == 2) return block_cursor_corrupt(c);
        if (order >= 0) return 0;
    }
}

/* Takes trailer and stored value of an entry apart. -1: it is no entry of a data block. */
static inline int block_entry_value(entry *e, const uint8_t *trailer, slice value) {
    e->trailer = load64(trailer);
    e->value = value;
    e->deadline = 0;
    switch (entry_kind(e)) {
    case KIND_PUT_DEADLINE:
        if (e->value.size < 8) return -1;
        e->deadline = load64(e->value.data);
        e->value.data += 8;
        e->value.size -= 8;
        return 0;
    case KIND_PUT:
    case KIND_DELETE:
        return 0;
    default:
        return -1;
    }
}

/* The entry the cursor stands on, taken apart. -1: it is no entry of a data block. */
static inline int block_entry(const block_cursor *c, entry *e) {
    if (c->key.size < 8) return -1;
    e->key = slice_of(c->key.data, c->key.size - 8);
    return block_entry_value(e, c->key.data + e->key.size, c->value);
}

/* How far a search among entries that share prefixes has come: all entries so far lie before the key sought. */
typedef struct {
    size_t same;            /* bytes that the last one's user key has in common with the key */
    size_t user;            /* the size of that user key */
    const uint8_t *trailer; /* behind it */
} block_prefix;

enum { BLOCK_BEFORE = 0, BLOCK_EQUAL = 1, BLOCK_BEHIND = 2 };

/* How the next entry's user key, `user` bytes, orders against `key`; bytes in common with the entry before need
 * not be looked at again. */
static inline int block_prefix_order(block_prefix *at, const block_entry_head *head, size_t user, slice key) {
    size_t shared = (size_t)head->shared, same = at->same;
    if (shared > same && same < at->user) return BLOCK_BEFORE; /* has the byte by which the one before was smaller */
    if (shared <= same) {
        same = shared;
    } else { /* the one before is a prefix of the key, and this one goes on with bytes of its trailer */
        for (; same < shared; same++) {
            if (same == key.size) return BLOCK_BEHIND;
            uint8_t byte = at->trailer[same - at->user];
            if (byte == key.data[same]) continue;
            at->same = same;
            return byte < key.data[same] ? BLOCK_BEFORE : BLOCK_BEHIND;
        }
    }
    size_t limit = user < key.size ? user : key.size;
    while (same < limit && head->key[same - shared] == key.data[same])
        same++;
    at->same = same;
    if (same < limit) return head->key[same - shared] < key.data[same] ? BLOCK_BEFORE : BLOCK_BEHIND;
    return user == key.size ? BLOCK_EQUAL : user < key.size ? BLOCK_BEFORE : BLOCK_BEHIND;
}

/* The newest version of `key` in a data block: BLOCK_EQUAL with `e` filled in, BLOCK_BEHIND if something behind it
 * is there instead, BLOCK_BEFORE if all is before, -1 if the block is malformed. The same answer as a cursor's, but
 * without putting keys together. */
static inline int block_get(slice block, slice key, entry *e) {
    block_cursor c;
    block_entry_head head;
    memset(&c.key, 0, sizeof c.key);
    if (block_cursor_open(&c, block) < 0) return -1;
    uint32_t low = 0, high = c.restarts;
    while (high - low > 1) { /* the last restart whose key is before the one sought */
        uint32_t middle = low + (high - low) / 2;
        uint32_t offset = load32(c.data + c.entries_end + 4 * (size_t)middle);
        if (offset >= c.entries_end || block_read_head(&c, offset, &head) < 0 || head.shared || head.unshared < 8)
            return -1;
        if (slice_compare(slice_of(head.key, (size_t)head.unshared - 8), key) < 0)
            low = middle;
        else
            high = middle;
    }
    uint32_t offset = load32(c.data + c.entries_end + 4 * (size_t)low);
    if (offset > c.entries_end) return -1;
    block_prefix at = {0, 0, NULL};
    while (offset < c.entries_end) {
        if (block_read_head(&c, offset, &head) < 0 || head.unshared < 8) return -1;
        if (head.shared > (at.trailer ? at.user + 8 : 0)) return -1;
        size_t user = (size_t)(head.shared + head.unshared - 8);
        const uint8_t *trailer = head.key + head.unshared - 8;
        int order = block_prefix_order(&at, &head, user, key);
        if (order == BLOCK_BEHIND) return BLOCK_BEHIND;
        if (order == BLOCK_EQUAL) {
            e->key = key;
            slice value = slice_of(head.key + head.unshared, (size_t)head.value_size);
            return block_entry_value(e, trailer, value) < 0 ? -1 : BLOCK_EQUAL;
        }
        at.user = user;
        at.trailer = trailer;
        offset = (uint32_t)(trailer + 8 + head.value_size - c.data);
    }
    return BLOCK_BEFORE;
}

#endif
