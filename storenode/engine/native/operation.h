/* One op of an op stream, taken apart (docs/protocol.md section 2). Trusts nothing: -1 for whatever is not
 * exactly an op. */
#ifndef RINGKV_OPERATION_H
#define RINGKV_OPERATION_H

#include "entry.h"
#include "msgpack.h"

enum { OP_GET = 1, OP_PUT = 2, OP_DELETE = 3, OP_EXISTS = 4, OP_INCREMENT = 5, OP_TOUCH = 6, OP_SCAN = 7 };
enum {
    CONDITION_NONE = 0,
    CONDITION_ABSENT = 1,
    CONDITION_PRESENT = 2,
    CONDITION_VERSION = 3,
    CONDITION_VALUE = 4
};

#define TTL_MS_MAX 315360000000ull    /* ten years */
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
} operation;

static inline const uint8_t *operation_ttl(const uint8_t *p, const uint8_t *end, operation *op) {
    if (msgpack_is_nil(p, end)) return p + 1;
    p = msgpack_uint(p, end, &op->ttl_ms);
    return p && op->ttl_ms >= 1 && op->ttl_ms <= TTL_MS_MAX ? p : NULL;
}

static inline const uint8_t *operation_condition(const uint8_t *p, const uint8_t *end, operation *op) {
    uint32_t count;
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

/* Reads the op at `p`; returns the byte behind it, NULL if it is none. */
static inline const uint8_t *operation_read(const uint8_t *p, const uint8_t *end, operation *op) {
    static const uint8_t fields_min[] = {0, 2, 3, 2, 2, 3, 2, 5}, fields_max[] = {0, 2, 5, 3, 2, 3, 3, 5};
    uint32_t count;
    uint64_t code;
    memset(op, 0, sizeof *op);
    p = msgpack_array(p, end, &count);
    p = msgpack_uint(p, end, &code);
    if (!p || code < OP_GET || code > OP_SCAN || count < fields_min[code] || count > fields_max[code])
        return NULL;
    op->code = (int)code;
    p = msgpack_bin(p, end, &op->key);
    if (!p || op->key.size > KEY_BYTES_LIMIT || (op->key.size == 0 && code != OP_SCAN)) return NULL;
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
        shape->writes += op.code != OP_SCAN && op.code != OP_GET && op.code != OP_EXISTS;
    }
    return 0;
}

#endif
