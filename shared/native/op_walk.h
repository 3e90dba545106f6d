/* The grammar of docs/protocol.md section 2 as one function: op_next() reads, checks and describes the next
 * op of a stream.
 *
 * Holds pointers into the stream, copies nothing, allocates nothing. A stream that op_next() walked to its
 * end without a fault is valid in everything but what concerns several ops at once (their number, a SCAN
 * among others): that is the caller's to check.
 */
#ifndef RINGKV_OP_WALK_H
#define RINGKV_OP_WALK_H

#include "msgpack_walk.h"
#include "xxh64.h"

enum op_code { OP_GET = 1, OP_PUT, OP_DELETE, OP_EXISTS, OP_INCREMENT, OP_TOUCH, OP_SCAN, OP_TXN };
enum op_condition { OP_ALWAYS = 0, OP_IF_ABSENT, OP_IF_PRESENT, OP_IF_VERSION, OP_IF_VALUE };
enum { OP_SCAN_REVERSE = 1, OP_SCAN_KEYS_ONLY = 2, OP_SCAN_COUNT = 4 };

#define OP_KEY_BYTES_MAX 4096u
#define OP_SCAN_LIMIT_MAX 10000u
#define OP_TTL_MS_MAX (10ULL * 365 * 24 * 3600 * 1000)
#define OP_BYTES_MIN 5u /* 92 01 c4 01 xx */
#define OP_TXN_PARTS_MAX 128u /* as many as etcd's default: what one entry of the log executes stays short */

/* Status numbers of docs/protocol.md section 4. */
enum { OP_INVALID_REQUEST = 10, OP_KEY_TOO_LONG = 11, OP_VALUE_TOO_LARGE = 12, OP_UNSUPPORTED = 15 };

typedef struct {
    const uint8_t *data;
    uint32_t size;
} op_bytes;

typedef struct {
    int code;
    int condition;              /* PUT, DELETE: an op_condition */
    int has_stop;               /* SCAN */
    uint32_t limit, flags;      /* SCAN */
    op_bytes key;               /* the key; SCAN: start; TXN: the first of its keys */
    op_bytes stop;              /* SCAN, when has_stop */
    op_bytes value;             /* PUT */
    op_bytes condition_value;   /* when OP_IF_VALUE */
    uint64_t condition_version; /* when OP_IF_VERSION */
    uint64_t ttl_ms;            /* PUT, TOUCH; 0 = none */
    int64_t delta;              /* INCREMENT */
} op_view;

/* The parts of a TXN: its compares, then the ops of its branches, in their order. */
typedef struct {
    uint32_t count;
    op_bytes keys[OP_TXN_PARTS_MAX];
} op_parts;

/* The keys that a branch of a TXN writes. Their hashes are compared first: 128 long keys with one beginning would
 * cost some megabytes of comparing. */
typedef struct {
    uint32_t count;
    uint64_t hashes[OP_TXN_PARTS_MAX];
    op_bytes keys[OP_TXN_PARTS_MAX];
} op_written;

typedef struct {
    int status;
    const char *text;
    uint64_t limit, size; /* of KEY_TOO_LONG and VALUE_TOO_LARGE, and UNSUPPORTED's code in size */
} op_fault;

static inline int op_refuse(op_fault *fault, int status, const char *text, uint64_t limit, uint64_t size) {
    fault->status = status;
    fault->text = text;
    fault->limit = limit;
    fault->size = size;
    return 0;
}

static inline int op_malformed(op_fault *fault, const char *text) {
    return op_refuse(fault, OP_INVALID_REQUEST, text, 0, 0);
}

static inline int op_truncated(op_fault *fault) {
    return op_malformed(fault, "the op stream ends in the middle of an op");
}

/* A bin of at most `max` bytes. */
static inline int op_read_bytes(mp_cursor *cursor, uint64_t max, int too_big, const char *text, op_bytes *out,
                                op_fault *fault) {
    mp_value value;
    if (!mp_next(cursor, &value))
        return op_truncated(fault);
    if (value.type != MP_BIN)
        return op_malformed(fault, text);
    if (value.number > max)
        return op_refuse(fault, too_big, NULL, max, value.number);
    out->data = value.data;
    out->size = (uint32_t)value.number;
    return 1;
}

/* A key, or empty: the bounds of a range. */
static inline int op_read_bound(mp_cursor *cursor, const char *text, op_bytes *key, op_fault *fault) {
    return op_read_bytes(cursor, OP_KEY_BYTES_MAX, OP_KEY_TOO_LONG, text, key, fault);
}

static inline int op_read_key(mp_cursor *cursor, op_bytes *key, op_fault *fault) {
    if (!op_read_bound(cursor, "a key must be bin", key, fault))
        return 0;
    return key->size ? 1 : op_malformed(fault, "a key must not be empty");
}

static inline int op_read_value(mp_cursor *cursor, uint64_t max, op_bytes *value, op_fault *fault) {
    return op_read_bytes(cursor, max, OP_VALUE_TOO_LARGE, "a value must be bin", value, fault);
}

/* uint 1..OP_TTL_MS_MAX, or nil, which leaves 0. */
static inline int op_read_ttl(mp_cursor *cursor, uint64_t *ttl_ms, op_fault *fault) {
    mp_value value;
    if (!mp_next(cursor, &value))
        return op_truncated(fault);
    if (value.type == MP_NIL)
        return 1;
    if (value.type != MP_UINT || value.number < 1 || value.number > OP_TTL_MS_MAX)
        return op_malformed(fault, "a ttl_ms must be 1..315360000000 (ten years) or nil");
    *ttl_ms = value.number;
    return 1;
}

/* A condition array, or nil, which leaves OP_ALWAYS. */
static int op_read_condition(mp_cursor *cursor, uint64_t value_max, op_view *op, op_fault *fault) {
    mp_value array, value;
    if (!mp_next(cursor, &array))
        return op_truncated(fault);
    if (array.type == MP_NIL)
        return 1;
    if (array.type != MP_ARRAY || array.number < 1 || array.number > 2)
        return op_malformed(fault, "a condition must be an array of 1 or 2");
    if (!mp_next(cursor, &value))
        return op_truncated(fault);
    if (value.type != MP_UINT || value.number < OP_IF_ABSENT || value.number > OP_IF_VALUE)
        return op_malformed(fault, "a condition must begin with a number 1..4");
    op->condition = (int)value.number;
    if (array.number != (op->condition >= OP_IF_VERSION ? 2u : 1u))
        return op_malformed(fault, "a condition has the wrong number of elements");
    if (op->condition == OP_IF_VALUE)
        return op_read_value(cursor, value_max, &op->condition_value, fault);
    if (op->condition == OP_IF_VERSION) {
        if (!mp_next(cursor, &value))
            return op_truncated(fault);
        if (value.type != MP_UINT)
            return op_malformed(fault, "the version of a condition must be an unsigned integer");
        op->condition_version = value.number;
    }
    return 1;
}

static inline int op_read_delta(mp_cursor *cursor, int64_t *delta, op_fault *fault) {
    mp_value value;
    if (!mp_next(cursor, &value))
        return op_truncated(fault);
    if (value.type != MP_NEGATIVE && (value.type != MP_UINT || value.number > INT64_MAX))
        return op_malformed(fault, "the delta of an INCREMENT must be a signed 64-bit integer");
    *delta = (int64_t)value.number;
    return 1;
}

/* start, stop?, limit, flags. */
static int op_read_scan(mp_cursor *cursor, op_view *op, op_fault *fault) {
    mp_value value;
    if (!op_read_bound(cursor, "the start of a SCAN must be bin", &op->key, fault))
        return 0;
    if (cursor->at < cursor->end && *cursor->at == 0xc0) {
        cursor->at++;
    } else {
        op->has_stop = 1;
        if (!op_read_bound(cursor, "the stop of a SCAN must be bin or nil", &op->stop, fault))
            return 0;
    }
    if (!mp_next(cursor, &value))
        return op_truncated(fault);
    if (value.type != MP_UINT || value.number < 1 || value.number > OP_SCAN_LIMIT_MAX)
        return op_malformed(fault, "the limit of a SCAN must be 1..10000");
    op->limit = (uint32_t)value.number;
    if (!mp_next(cursor, &value))
        return op_truncated(fault);
    if (value.type != MP_UINT || value.number > (OP_SCAN_REVERSE | OP_SCAN_KEYS_ONLY | OP_SCAN_COUNT))
        return op_malformed(fault, "the flags of a SCAN must be 0..7");
    op->flags = (uint32_t)value.number;
    return 1;
}

/* The header of an op and its code; *elements counts the code. */
static inline int op_read_head(mp_cursor *cursor, op_view *op, uint64_t *elements, op_fault *fault) {
    static const uint8_t arity_min[] = {0, 2, 3, 2, 2, 3, 2, 5, 4}, arity_max[] = {0, 2, 5, 3, 2, 3, 3, 5, 4};
    mp_value array, code;
    if (!mp_next(cursor, &array))
        return op_truncated(fault);
    if (array.type != MP_ARRAY || array.number < 1)
        return op_malformed(fault, "an op must be an array that begins with its code");
    if (!mp_next(cursor, &code))
        return op_truncated(fault);
    if (code.type != MP_UINT)
        return op_malformed(fault, "the code of an op must be an unsigned integer");
    if (code.number < OP_GET || code.number > OP_TXN)
        return op_refuse(fault, OP_UNSUPPORTED, NULL, 0, code.number);
    if (array.number < arity_min[code.number] || array.number > arity_max[code.number])
        return op_malformed(fault, "an op has the wrong number of elements");
    memset(op, 0, sizeof *op);
    op->code = (int)code.number;
    *elements = array.number;
    return 1;
}

/* What follows the code of an op on one key. */
static inline int op_read_fields(mp_cursor *cursor, uint64_t elements, uint64_t value_max, op_view *op,
                                 op_fault *fault) {
    if (!op_read_key(cursor, &op->key, fault))
        return 0;
    switch (op->code) {
    case OP_PUT:
        return op_read_value(cursor, value_max, &op->value, fault) &&
               (elements < 4 || op_read_ttl(cursor, &op->ttl_ms, fault)) &&
               (elements < 5 || op_read_condition(cursor, value_max, op, fault));
    case OP_DELETE: return elements < 3 || op_read_condition(cursor, value_max, op, fault);
    case OP_INCREMENT: return op_read_delta(cursor, &op->delta, fault);
    case OP_TOUCH: return elements < 3 || op_read_ttl(cursor, &op->ttl_ms, fault);
    default: return 1; /* GET, EXISTS */
    }
}

static inline int op_writes(int code) { return code != OP_GET && code != OP_EXISTS && code != OP_SCAN; }

/* The header of one of the three arrays of a TXN, whose elements still have room among its parts. */
static inline int op_read_parts(mp_cursor *cursor, const op_parts *parts, uint64_t *count, op_fault *fault) {
    mp_value array;
    if (!mp_next(cursor, &array))
        return op_truncated(fault);
    if (array.type != MP_ARRAY)
        return op_malformed(fault, "the compares and the branches of a TXN must be arrays");
    if (array.number > OP_TXN_PARTS_MAX - parts->count)
        return op_malformed(fault, "a TXN must have at most 128 compares and ops together");
    *count = array.number;
    return 1;
}

/* [key, condition]. */
static int op_read_compare(mp_cursor *cursor, uint64_t value_max, op_parts *parts, op_fault *fault) {
    mp_value array;
    op_view compare;
    if (!mp_next(cursor, &array))
        return op_truncated(fault);
    if (array.type != MP_ARRAY || array.number != 2)
        return op_malformed(fault, "a compare must be an array of a key and a condition");
    compare.condition = OP_ALWAYS;
    if (!op_read_key(cursor, &parts->keys[parts->count++], fault) ||
        !op_read_condition(cursor, value_max, &compare, fault))
        return 0;
    return compare.condition != OP_ALWAYS ? 1 : op_malformed(fault, "a compare must have a condition");
}

/* Adds a key; 0 if it is there already. */
static inline int op_written_add(op_written *written, op_bytes key) {
    uint64_t hash = xxh64(key.data, key.size, 0);
    for (uint32_t i = 0; i < written->count; i++)
        if (written->hashes[i] == hash && written->keys[i].size == key.size &&
            memcmp(written->keys[i].data, key.data, key.size) == 0)
            return 0;
    written->hashes[written->count] = hash;
    written->keys[written->count++] = key;
    return 1;
}

static int op_read_branch(mp_cursor *cursor, uint64_t value_max, op_parts *parts, op_fault *fault) {
    op_written written;
    op_view op;
    uint64_t count, elements;
    written.count = 0;
    if (!op_read_parts(cursor, parts, &count, fault))
        return 0;
    for (; count; count--) {
        if (!op_read_head(cursor, &op, &elements, fault))
            return 0;
        if (op.code == OP_SCAN || op.code == OP_TXN)
            return op_malformed(fault, "a TXN must hold no SCAN and no other TXN");
        if (!op_read_fields(cursor, elements, value_max, &op, fault))
            return 0;
        if (op.condition != OP_ALWAYS)
            return op_malformed(fault, "an op in a TXN must have no condition: its compares are there for that");
        if (op_writes(op.code) && !op_written_add(&written, op.key))
            return op_malformed(fault, "a branch of a TXN must write a key only once");
        parts->keys[parts->count++] = op.key;
    }
    return 1;
}

/* Compares and two branches. */
static int op_read_txn(mp_cursor *cursor, uint64_t value_max, op_view *op, op_parts *parts, op_fault *fault) {
    uint64_t count;
    parts->count = 0;
    if (!op_read_parts(cursor, parts, &count, fault))
        return 0;
    for (; count; count--)
        if (!op_read_compare(cursor, value_max, parts, fault))
            return 0;
    if (!op_read_branch(cursor, value_max, parts, fault) || !op_read_branch(cursor, value_max, parts, fault))
        return 0;
    if (!parts->count)
        return op_malformed(fault, "a TXN must have a compare or an op");
    op->key = parts->keys[0];
    return 1;
}

/* Reads one op into *op, and the parts of a TXN into *parts, which other ops leave as it is. 1, or 0 with *fault
 * filled; a fault without text is a limit that was passed. */
static int op_next(mp_cursor *cursor, uint64_t value_max, op_view *op, op_parts *parts, op_fault *fault) {
    uint64_t elements;
    if (!op_read_head(cursor, op, &elements, fault))
        return 0;
    if (op->code == OP_SCAN)
        return op_read_scan(cursor, op, fault);
    if (op->code == OP_TXN)
        return op_read_txn(cursor, value_max, op, parts, fault);
    return op_read_fields(cursor, elements, value_max, op, fault);
}

#endif
