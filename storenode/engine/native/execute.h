/* Executing an op stream against a view, and writing its results (docs/protocol.md section 3).
 *
 * The stream was checked as a whole before (stream_check), so it is executed as a whole: what an op answers
 * is a function of the entry and of the state alone. A block that fails its checksum makes a read fail as a
 * whole; a write op that had to read it answers CORRUPTION for itself and changes nothing.
 *
 * A transaction has one sequence: all that it writes has the same version. */
#ifndef RINGKV_EXECUTE_H
#define RINGKV_EXECUTE_H

#include <stdio.h>

#include "pending.h"
#include "scan.h"

enum {
    STATUS_OK = 0,
    STATUS_NOT_FOUND = 1,
    STATUS_CONDITION_FAILED = 2,
    STATUS_NOT_AN_INTEGER = 3,
    STATUS_REQUEST_TOO_LARGE = 13,
    STATUS_CORRUPTION = 40,
};

/* Once the results of a stream hold more, it gets no more values: 10 000 of them, of 1 MiB, would take
 * 10 GiB. Depends on the results alone, so it is the same on every replica and in every replay. */
#define RESULTS_BYTES_MAX (64u << 20)

typedef struct {
    const view *v;
    memtable *active; /* NULL: only reading */
    reader *r;
    scratch *s;
    uint64_t sequence; /* of the op being executed; of a read: what it may see */
    uint64_t now_ms;
    buffer *out;
    uint64_t written;   /* versions added */
    failure corruption; /* the first one that a write op met */
    pending_writes *pending; /* within a branch of a transaction, otherwise NULL */
} execution;

/* What an op finds: the newest version that counts, if any. */
typedef struct {
    lookup at;
    int present;
    int in_active;
} state;

static inline int execute_find(execution *x, slice key, state *found) {
    const entry *pending = x->pending ? pending_find(x->pending, key) : NULL;
    if (pending) {
        found->at.found = *pending;
        found->present = entry_kind(pending) != KIND_DELETE;
        return 0;
    }
    int result = view_get(x->v, x->r, x->s, key, x->sequence, &found->at, &found->in_active);
    if (result < 0) return -1;
    found->present = result && !entry_is_absent(&found->at.found, x->now_ms);
    return 0;
}

static inline void result_status(execution *x, unsigned status) {
    msgpack_append_byte(x->out, 0x91);
    msgpack_append_byte(x->out, (uint8_t)status);
}

static inline void result_version(execution *x, unsigned status, uint64_t version) {
    uint8_t *p = buffer_reserve(x->out, 11);
    if (!p) return;
    p[0] = 0x92;
    p[1] = (uint8_t)status;
    x->out->size += 2 + msgpack_put_uint(p + 2, version);
}

static inline void result_message(execution *x, unsigned status, const char *text) {
    char named[200];
    if (x->pending) {
        snprintf(named, sizeof named, "op %u of the branch: %s", x->pending->position, text);
        text = named;
    }
    msgpack_append_byte(x->out, 0x92);
    msgpack_append_byte(x->out, (uint8_t)status);
    msgpack_append_str(x->out, text);
}

static inline void result_value(execution *x, const entry *e) {
    int has_ttl = entry_kind(e) == KIND_PUT_DEADLINE;
    msgpack_append_byte(x->out, has_ttl ? 0x94 : 0x93);
    msgpack_append_byte(x->out, STATUS_OK);
    msgpack_append_bin(x->out, e->value);
    msgpack_append_uint(x->out, entry_sequence(e));
    if (has_ttl) msgpack_append_uint(x->out, e->deadline - x->now_ms);
}

static inline int execute_add(execution *x, slice key, int kind, slice value, uint64_t deadline,
                              int shared_value) {
    entry e = {key, trailer_of(x->sequence, kind), value, deadline};
    if (x->pending) {
        pending_add(x->pending, &e, shared_value);
        return 0;
    }
    if (memtable_add(x->active, &e, shared_value) < 0)
        return fail(&x->r->failed, FAILURE_MEMORY, 0, 0, "out of memory");
    x->written++;
    return 0;
}

static inline int condition_holds(const operation *op, const state *found) {
    switch (op->condition) {
    case CONDITION_ABSENT:
        return !found->present;
    case CONDITION_PRESENT:
        return found->present;
    case CONDITION_VERSION:
        return found->present && entry_sequence(&found->at.found) == op->condition_version;
    case CONDITION_VALUE:
        return found->present && slice_equal(found->at.found.value, op->condition_value);
    default:
        return 1;
    }
}

static inline void result_condition_failed(execution *x, const state *found) {
    result_version(x, STATUS_CONDITION_FAILED, found->present ? entry_sequence(&found->at.found) : 0);
}

static inline int execute_put(execution *x, const operation *op, const state *found) {
    if (!condition_holds(op, found)) {
        result_condition_failed(x, found);
        return 0;
    }
    int kind = op->ttl_ms ? KIND_PUT_DEADLINE : KIND_PUT;
    result_version(x, STATUS_OK, x->sequence);
    return execute_add(x, op->key, kind, op->value, op->ttl_ms ? x->now_ms + op->ttl_ms : 0, 0);
}

static inline int execute_delete(execution *x, const operation *op, const state *found) {
    if (!condition_holds(op, found)) {
        result_condition_failed(x, found);
        return 0;
    }
    if (!found->present) {
        result_status(x, STATUS_NOT_FOUND);
        return 0;
    }
    result_version(x, STATUS_OK, x->sequence);
    return execute_add(x, op->key, KIND_DELETE, slice_of(NULL, 0), 0, 0);
}

/* A decimal int64 as the protocol means it: an optional minus, digits, no leading zero, nothing else. */
static inline int parse_decimal(slice text, int64_t *number) {
    size_t at = text.size && text.data[0] == '-';
    uint64_t magnitude = 0, limit = (uint64_t)INT64_MAX + at;
    if (text.size == at || text.size > 20 || (text.data[at] == '0' && text.size > 1)) return -1;
    for (size_t i = at; i < text.size; i++) {
        unsigned digit = text.data[i] - '0';
        if (digit > 9 || magnitude > (limit - digit) / 10) return -1;
        magnitude = magnitude * 10 + digit;
    }
    *number = at ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    return 0;
}

static inline int execute_increment(execution *x, const operation *op, const state *found) {
    int64_t number = 0;
    if (found->present && parse_decimal(found->at.found.value, &number) < 0) {
        result_message(x, STATUS_NOT_AN_INTEGER, "the value is not a decimal 64-bit integer");
        return 0;
    }
    if (__builtin_add_overflow(number, op->delta, &number)) {
        result_message(x, STATUS_NOT_AN_INTEGER, "the sum does not fit into 64 bits");
        return 0;
    }
    char text[24];
    int size = snprintf(text, sizeof text, "%lld", (long long)number);
    int keeps_ttl = found->present && entry_kind(&found->at.found) == KIND_PUT_DEADLINE;
    uint8_t *p = buffer_reserve(x->out, 20);
    if (p) {
        p[0] = 0x93;
        p[1] = STATUS_OK;
        size_t head = 2 + msgpack_put_int(p + 2, number);
        x->out->size += head + msgpack_put_uint(p + head, x->sequence);
    }
    return execute_add(x, op->key, keeps_ttl ? KIND_PUT_DEADLINE : KIND_PUT, slice_of(text, (size_t)size),
                       keeps_ttl ? found->at.found.deadline : 0, 0);
}

static inline int execute_touch(execution *x, const operation *op, const state *found) {
    if (!found->present) {
        result_status(x, STATUS_NOT_FOUND);
        return 0;
    }
    result_version(x, STATUS_OK, x->sequence);
    return execute_add(x, op->key, op->ttl_ms ? KIND_PUT_DEADLINE : KIND_PUT, found->at.found.value,
                       op->ttl_ms ? x->now_ms + op->ttl_ms : 0, found->in_active);
}

static inline int execute_scan(execution *x, const operation *op) {
    scan s;
    memset(&s, 0, sizeof s);
    s.start = op->key;
    s.stop = op->stop;
    s.has_stop = op->has_stop;
    s.limit = op->limit;
    s.flags = op->flags;
    s.sequence = x->sequence;
    s.now_ms = x->now_ms;
    int result = scan_run(&s, x->v, x->r);
    if (result == 0) scan_result(&s, x->out);
    scan_free(&s);
    return result;
}

/* A write op that could not read what it depends on: an answer of its own, no change. Only for damaged
 * blocks. */
static inline int execute_unreadable(execution *x) {
    if (x->r->failed.code == FAILURE_MEMORY || !x->active) return -1;
    char text[160];
    snprintf(text, sizeof text, "table %06llu, offset %llu: %s", (unsigned long long)x->r->failed.file_number,
             (unsigned long long)x->r->failed.offset, x->r->failed.what);
    result_message(x, STATUS_CORRUPTION, text);
    if (x->corruption.code == FAILURE_NONE) x->corruption = x->r->failed;
    memset(&x->r->failed, 0, sizeof x->r->failed);
    return 0;
}

static inline int execute_found(execution *x, const operation *op, const state *found) {
    switch (op->code) {
    case OP_PUT:
        return execute_put(x, op, found);
    case OP_DELETE:
        return execute_delete(x, op, found);
    case OP_INCREMENT:
        return execute_increment(x, op, found);
    case OP_TOUCH:
        return execute_touch(x, op, found);
    case OP_GET:
        if (found->present) result_value(x, &found->at.found);
        break;
    default:
        if (found->present) result_version(x, STATUS_OK, entry_sequence(&found->at.found));
    }
    if (!found->present) result_status(x, STATUS_NOT_FOUND);
    return 0;
}

static inline int execute_op(execution *x, const operation *op) {
    state found;
    memset(&found, 0, sizeof found);
    if ((op->code == OP_GET || op->code == OP_SCAN) && x->out->size > RESULTS_BYTES_MAX) {
        result_message(x, STATUS_REQUEST_TOO_LARGE,
                       "the results before this one are over 64 MiB: ask for fewer keys at once");
        return 0;
    }
    if (op->code == OP_SCAN) return execute_scan(x, op);
    if (execute_find(x, op->key, &found) < 0) return execute_unreadable(x);
    int result = execute_found(x, op, &found);
    if (x->pending && op->code == OP_TOUCH)
        pending_keep(x->pending, &found.at);
    else
        lookup_release(&found.at);
    return result;
}

static inline int execute_changed(execution *x) {
    return fail(&x->r->failed, FAILURE_CORRUPT, 0, 0, "an op stream changed while it was executed");
}

enum { COMPARES_FAILED = 0, COMPARES_HELD = 1, COMPARES_ANSWERED = 2 };

/* Whether all compares at `*p` hold, which it then is behind; or the op has been answered, as one could not be
 * read. -1: failure. */
static inline int execute_compares(execution *x, const uint8_t **p, const uint8_t *end) {
    uint32_t count;
    int held = COMPARES_HELD;
    *p = msgpack_array(*p, end, &count);
    if (!*p) return execute_changed(x);
    for (; count; count--) {
        operation compare;
        state found;
        *p = operation_compare(*p, end, &compare);
        if (!*p) return execute_changed(x);
        if (held == COMPARES_FAILED) continue;
        memset(&found, 0, sizeof found);
        if (execute_find(x, compare.key, &found) < 0) return execute_unreadable(x) < 0 ? -1 : COMPARES_ANSWERED;
        if (!condition_holds(&compare, &found)) held = COMPARES_FAILED;
        lookup_release(&found.at);
    }
    return held;
}

/* Puts the result that begins at `last` in the place of all from `first` on. */
static inline void result_replace(buffer *out, size_t first, size_t last) {
    memmove(out->data + first, out->data + last, out->size - last);
    out->size = first + out->size - last;
}

/* Executes the ops of a branch at `p` into x->pending: 1 all have succeeded; 0 one has not, and its result is that of
 * the transaction, which begins at `first`; -1 failure. */
static inline int execute_branch(execution *x, const uint8_t *p, const uint8_t *end, size_t first) {
    uint32_t count;
    p = msgpack_array(p, end, &count);
    if (!p || count > TXN_PARTS_MAX) return execute_changed(x);
    msgpack_append_array(x->out, count);
    for (uint32_t i = 0; i < count; i++) {
        operation op;
        size_t last = x->out->size;
        p = operation_inner(p, end, &op);
        if (!p) return execute_changed(x);
        x->pending->position = i;
        if (execute_op(x, &op) < 0) return -1;
        if (x->out->failed) return 0;
        if (x->out->data[last + 1] > STATUS_NOT_FOUND) { /* every result is a short array that begins with its status */
            result_replace(x->out, first, last);
            return 0;
        }
    }
    return 1;
}

static inline int execute_pending(execution *x, const pending_writes *pending) {
    for (uint32_t i = 0; i < pending->count; i++) {
        const pending_write *write = &pending->writes[i];
        if (execute_add(x, write->e.key, entry_kind(&write->e), write->e.value, write->e.deadline,
                        write->shared_value) < 0)
            return -1;
    }
    return 0;
}

/* All or nothing: what the branch writes is added when its last op has succeeded. */
static inline int execute_transaction(execution *x, const operation *op) {
    const uint8_t *p = op->parts.data, *end = p + op->parts.size;
    size_t first = x->out->size;
    uint32_t parts = 0;
    pending_writes pending;
    int held = execute_compares(x, &p, end), result;
    if (held < 0 || held == COMPARES_ANSWERED) return held < 0 ? -1 : 0;
    if (held == COMPARES_FAILED) p = operation_branch(p, end, &parts);
    if (!p) return execute_changed(x);
    msgpack_append_byte(x->out, 0x93);
    msgpack_append_byte(x->out, STATUS_OK);
    msgpack_append_byte(x->out, (uint8_t)held);
    pending_begin(&pending);
    x->pending = &pending;
    result = execute_branch(x, p, end, first);
    x->pending = NULL;
    if (result > 0) result = execute_pending(x, &pending);
    pending_release(&pending);
    return result;
}

/* PUTs without a condition, which depend on nothing: they are added together. */
typedef struct {
    entry entries[MEMTABLE_GROUP];
    size_t count;
} put_group;

static inline int execute_group(execution *x, put_group *group) {
    size_t count = group->count;
    group->count = 0;
    if (count && memtable_add_group(x->active, group->entries, count) < 0)
        return fail(&x->r->failed, FAILURE_MEMORY, 0, 0, "out of memory");
    x->written += count;
    return 0;
}

static inline int execute_in_group(execution *x, const operation *op, put_group *group) {
    entry *e = &group->entries[group->count++];
    e->key = op->key;
    e->trailer = trailer_of(x->sequence, op->ttl_ms ? KIND_PUT_DEADLINE : KIND_PUT);
    e->value = op->value;
    e->deadline = op->ttl_ms ? x->now_ms + op->ttl_ms : 0;
    result_version(x, STATUS_OK, x->sequence);
    return group->count == MEMTABLE_GROUP ? execute_group(x, group) : 0;
}

/* Executes checked streams as if they were one; a logged one counts its sequence up by one per op. `ends`, if not
 * NULL, gets where the results of each stream end. -1: failure in r. */
static inline int execute_streams(execution *x, const slice *streams, size_t count, size_t *ends) {
    operation op;
    put_group group;
    group.count = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *p = streams[i].data, *end = p + streams[i].size;
        while (p < end) {
            p = operation_read(p, end, &op);
            if (!p) return execute_changed(x);
            if (op.code == OP_PUT && op.condition == CONDITION_NONE) {
                if (execute_in_group(x, &op, &group) < 0) return -1;
            } else if (execute_group(x, &group) < 0) {
                return -1;
            } else if ((op.code == OP_TXN ? execute_transaction(x, &op) : execute_op(x, &op)) < 0) {
                return -1;
            }
            if (x->out->failed) return fail(&x->r->failed, FAILURE_MEMORY, 0, 0, "out of memory");
            if (x->active) x->sequence++;
        }
        if (ends) ends[i] = x->out->size;
    }
    return execute_group(x, &group);
}

#endif
