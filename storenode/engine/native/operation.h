/* One op of an op stream, taken apart (docs/protocol.md section 2). Trusts nothing: -1 for whatever is not
 * exactly an op. */
#ifndef RINGKV_OPERATION_H
#define RINGKV_OPERATION_H

#include "entry.h"
#include "hash64.h"
#include "msgpack.h"

enum {
    OP_GET = 1,
    OP_PUT = 2,
    OP_DELETE = 3,
    OP_EXISTS = 4,
    OP_INCREMENT = 5,
    OP_TOUCH = 6,
    OP_SCAN = 7,
    OP_TXN = 8
};
enum {
    CONDITION_NONE = 0,
    CONDITION_ABSENT = 1,
    CONDITION_PRESENT = 2,
    CONDITION_VERSION = 3,
    CONDITION_VALUE = 4
};

#define TTL_MS_MAX 315360000000ull    /* ten years */
#define TXN_PARTS_MAX 128u            /* compares and ops of a TXN together */
#define VALUE_BYTES_LIMIT (64u << 20) /* the protocol allows 8 MiB; the engine's own bound */

typedef struct {
    int code;
    slice key; /* SCAN: start */
    slice value;
    uint64_t ttl_ms; /* 0: none */
    int condition;
    uint64_t condition_version;
    slice condition_value;
    int64_t delta;
    slice stop;
    int has_stop;
    uint64_t limit;
    unsigned flags;
    slice parts; /* TXN: its compares, then its two branches */
} operation;

static inline int operation_writes(const operation *op) {
    return op->code != OP_GET && op->code != OP_EXISTS && op->code != OP_SCAN;
}

static inline const uint8_t *operation_ttl(const uint8_t *p, const uint8_t *end, operation *op) {
    if (msgpack_is_nil(p, end)) return p + 1;
    p = msgpack_uint(p, end, &op->ttl_ms);
    return p && op->ttl_ms >= 1 && op->ttl_ms <= TTL_MS_MAX ? p : NULL;
}

static inline const uint8_t *operation_condition(const uint8_t *p, const uint8_t *end, operation *op) {
    uint32_t count = 0;
    uint64_t code;
    if (msgpack_is_nil(p, end)) return p + 1;
    p = msgpack_array(p, end, &count);
    p = msgpack_uint(p, end, &code);
    if (!p || code < CONDITION_ABSENT || code > CONDITION_VALUE) return NULL;
    if (count != (code >= CONDITION_VERSION ? 2u : 1u)) return NULL;
    op->condition = (int)code;
    if (code == CONDITION_VERSION) return msgpack_uint(p, end, &op->condition_version);
    if (code == CONDITION_VALUE) return msgpack_bin(p, end, &op->condition_value);
    return p;
}

static inline const uint8_t *operation_scan(const uint8_t *p, const uint8_t *end, operation *op) {
    uint64_t flags;
    if (msgpack_is_nil(p, end)) {
        p++;
    } else {
        op->has_stop = 1;
        p = msgpack_bin(p, end, &op->stop);
    }
    p = msgpack_uint(p, end, &op->limit);
    p = msgpack_uint(p, end, &flags);
    if (!p || op->limit == 0 || flags > 7) return NULL;
    op->flags = (unsigned)flags;
    return p;
}

/* The head of the op at `p` and its code; `*count` elements, with the code. */
static inline const uint8_t *operation_head(const uint8_t *p, const uint8_t *end, operation *op, uint32_t *count) {
    static const uint8_t fields_min[] = {0, 2, 3, 2, 2, 3, 2, 5, 4}, fields_max[] = {0, 2, 5, 3, 2, 3, 3, 5, 4};
    uint64_t code;
    memset(op, 0, sizeof *op);
    p = msgpack_array(p, end, count);
    p = msgpack_uint(p, end, &code);
    if (!p || code < OP_GET || code > OP_TXN || *count < fields_min[code] || *count > fields_max[code]) return NULL;
    op->code = (int)code;
    return p;
}

static inline const uint8_t *operation_key(const uint8_t *p, const uint8_t *end, operation *op) {
    p = msgpack_bin(p, end, &op->key);
    return p && op->key.size <= KEY_BYTES_LIMIT && (op->key.size || op->code == OP_SCAN) ? p : NULL;
}

/* What follows the code of any op but a TXN. */
static inline const uint8_t *operation_fields(const uint8_t *p, const uint8_t *end, operation *op, uint32_t count) {
    p = operation_key(p, end, op);
    if (!p) return NULL;
    switch (op->code) {
    case OP_PUT:
        p = msgpack_bin(p, end, &op->value);
        if (p && op->value.size > VALUE_BYTES_LIMIT) return NULL;
        if (count > 3) p = operation_ttl(p, end, op);
        if (count > 4 && p) p = operation_condition(p, end, op);
        return p;
    case OP_DELETE:
        return count > 2 ? operation_condition(p, end, op) : p;
    case OP_INCREMENT:
        return msgpack_int64(p, end, &op->delta);
    case OP_TOUCH:
        return count > 2 ? operation_ttl(p, end, op) : p;
    case OP_SCAN:
        return operation_scan(p, end, op);
    default:
        return p;
    }
}

/* A compare of a TXN, as an op without a code that has a condition. */
static inline const uint8_t *operation_compare(const uint8_t *p, const uint8_t *end, operation *op) {
    uint32_t count;
    memset(op, 0, sizeof *op);
    p = msgpack_array(p, end, &count);
    if (!p || count != 2) return NULL;
    p = operation_key(p, end, op);
    if (p) p = operation_condition(p, end, op);
    return p && op->condition != CONDITION_NONE ? p : NULL;
}

/* An op in a branch of a TXN. */
static inline const uint8_t *operation_inner(const uint8_t *p, const uint8_t *end, operation *op) {
    uint32_t count;
    p = operation_head(p, end, op, &count);
    if (!p || op->code == OP_SCAN || op->code == OP_TXN) return NULL;
    p = operation_fields(p, end, op, count);
    return p && op->condition == CONDITION_NONE ? p : NULL;
}

/* The keys that a branch writes. */
typedef struct {
    uint32_t count;
    uint64_t hashes[TXN_PARTS_MAX];
    slice keys[TXN_PARTS_MAX];
} written_keys;

/* Adds a key; -1 if it is there already, as a version of a key is made only once. */
static inline int written_keys_add(written_keys *written, slice key) {
    uint64_t hash = hash64(key.data, key.size);
    for (uint32_t i = 0; i < written->count; i++)
        if (written->hashes[i] == hash && slice_equal(written->keys[i], key)) return -1;
    written->hashes[written->count] = hash;
    written->keys[written->count++] = key;
    return 0;
}

/* A branch of a TXN, of whose parts there are `*parts` before it. */
static inline const uint8_t *operation_branch(const uint8_t *p, const uint8_t *end, uint32_t *parts) {
    uint32_t count;
    operation op;
    written_keys written;
    written.count = 0;
    p = msgpack_array(p, end, &count);
    if (!p || count > TXN_PARTS_MAX - *parts) return NULL;
    *parts += count;
    for (; count && p; count--) {
        p = operation_inner(p, end, &op);
        if (p && operation_writes(&op) && written_keys_add(&written, op.key) < 0) return NULL;
    }
    return p;
}

static inline const uint8_t *operation_txn(const uint8_t *p, const uint8_t *end, operation *op) {
    const uint8_t *begin = p;
    uint32_t count, parts;
    operation compare;
    p = msgpack_array(p, end, &count);
    if (!p || count > TXN_PARTS_MAX) return NULL;
    for (parts = count; count && p; count--)
        p = operation_compare(p, end, &compare);
    for (int branch = 0; branch < 2 && p; branch++)
        p = operation_branch(p, end, &parts);
    if (!p || !parts) return NULL;
    op->parts = slice_of(begin, (size_t)(p - begin));
    return p;
}

/* Reads the op at `p`; returns the byte behind it, NULL if it is none. */
static inline const uint8_t *operation_read(const uint8_t *p, const uint8_t *end, operation *op) {
    uint32_t count;
    p = operation_head(p, end, op, &count);
    if (!p) return NULL;
    return op->code == OP_TXN ? operation_txn(p, end, op) : operation_fields(p, end, op, count);
}

typedef struct {
    uint64_t count;
    uint64_t writes;
    uint64_t scans;
} stream_shape;

/* Walks a whole stream; 0 if every op is one, -1 otherwise. */
static inline int stream_check(slice ops, stream_shape *shape) {
    const uint8_t *p = ops.data, *end = p + ops.size;
    operation op;
    memset(shape, 0, sizeof *shape);
    while (p < end) {
        p = operation_read(p, end, &op);
        if (!p) return -1;
        shape->count++;
        shape->scans += op.code == OP_SCAN;
        shape->writes += operation_writes(&op);
    }
    return 0;
}

#endif
