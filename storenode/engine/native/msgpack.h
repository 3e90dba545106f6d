/* The part of MessagePack that ops and results use (docs/protocol.md). Readers return the byte behind what
 * they read, or NULL for anything that is not exactly what was asked for or does not end before `end`; NULL
 * in, NULL out, so that calls can be chained. */
#ifndef RINGKV_MSGPACK_H
#define RINGKV_MSGPACK_H

#include "bytes.h"

static inline uint64_t msgpack_big_endian(const uint8_t *p, size_t size) {
    uint64_t v = 0;
    for (size_t i = 0; i < size; i++)
        v = v << 8 | p[i];
    return v;
}

static inline const uint8_t *msgpack_array(const uint8_t *p, const uint8_t *end, uint32_t *count) {
    if (!p || p >= end) return NULL;
    size_t left = (size_t)(end - p);
    if ((*p & 0xf0) == 0x90) {
        *count = *p & 0x0f;
        return p + 1;
    }
    if (*p == 0xdc && left >= 3) {
        *count = (uint32_t)msgpack_big_endian(p + 1, 2);
        return p + 3;
    }
    if (*p == 0xdd && left >= 5) {
        *count = (uint32_t)msgpack_big_endian(p + 1, 4);
        return p + 5;
    }
    return NULL;
}

static inline const uint8_t *msgpack_bin(const uint8_t *p, const uint8_t *end, slice *s) {
    if (!p || p >= end || *p < 0xc4 || *p > 0xc6) return NULL;
    size_t width = (size_t)1 << (*p - 0xc4);
    if ((size_t)(end - p) < 1 + width) return NULL;
    s->size = (size_t)msgpack_big_endian(p + 1, width);
    s->data = p + 1 + width;
    return (size_t)(end - s->data) < s->size ? NULL : s->data + s->size;
}

static inline int msgpack_is_nil(const uint8_t *p, const uint8_t *end) { return p && p < end && *p == 0xc0; }

/* Any integer: the magnitude as two's complement, and whether it is negative. */
static inline const uint8_t *msgpack_integer(const uint8_t *p, const uint8_t *end, uint64_t *v,
                                             int *negative) {
    if (!p || p >= end) return NULL;
    uint8_t first = *p;
    *negative = 0;
    if (first < 0x80) {
        *v = first;
        return p + 1;
    }
    if (first >= 0xe0) {
        *v = (uint64_t)(int64_t)(int8_t)first;
        *negative = 1;
        return p + 1;
    }
    if (first < 0xcc || first > 0xd3) return NULL;
    size_t width = (size_t)1 << ((first - 0xcc) & 3);
    if ((size_t)(end - p) < 1 + width) return NULL;
    *v = msgpack_big_endian(p + 1, width);
    if (first >= 0xd0) {
        unsigned shift = (unsigned)(64 - 8 * width);
        int64_t value = (int64_t)(*v << shift) >> shift;
        *v = (uint64_t)value;
        *negative = value < 0;
    }
    return p + 1 + width;
}

static inline const uint8_t *msgpack_uint(const uint8_t *p, const uint8_t *end, uint64_t *v) {
    int negative;
    p = msgpack_integer(p, end, v, &negative);
    return p && !negative ? p : NULL;
}

static inline const uint8_t *msgpack_int64(const uint8_t *p, const uint8_t *end, int64_t *v) {
    uint64_t bits;
    int negative;
    p = msgpack_integer(p, end, &bits, &negative);
    if (!p || (!negative && bits > INT64_MAX)) return NULL;
    *v = (int64_t)bits;
    return p;
}

/* Writers: the caller has reserved room; they return the number of bytes written, at most 9 (a bin head: 5).
 * */
static inline size_t msgpack_put_big_endian(uint8_t *p, uint64_t v, size_t size) {
    for (size_t i = 0; i < size; i++)
        p[i] = (uint8_t)(v >> (8 * (size - 1 - i)));
    return size;
}

static inline size_t msgpack_put_uint(uint8_t *p, uint64_t v) {
    if (v < 0x80) {
        p[0] = (uint8_t)v;
        return 1;
    }
    int power = v <= 0xff ? 0 : v <= 0xffff ? 1 : v <= 0xffffffffull ? 2 : 3;
    p[0] = (uint8_t)(0xcc + power);
    return 1 + msgpack_put_big_endian(p + 1, v, (size_t)1 << power);
}

static inline size_t msgpack_put_int(uint8_t *p, int64_t v) {
    if (v >= 0) return msgpack_put_uint(p, (uint64_t)v);
    if (v >= -32) {
        p[0] = (uint8_t)v;
        return 1;
    }
    int power = v >= INT8_MIN ? 0 : v >= INT16_MIN ? 1 : v >= INT32_MIN ? 2 : 3;
    p[0] = (uint8_t)(0xd0 + power);
    return 1 + msgpack_put_big_endian(p + 1, (uint64_t)v, (size_t)1 << power);
}

static inline size_t msgpack_put_bin_head(uint8_t *p, size_t size) {
    int power = size <= 0xff ? 0 : size <= 0xffff ? 1 : 2;
    p[0] = (uint8_t)(0xc4 + power);
    return 1 + msgpack_put_big_endian(p + 1, size, (size_t)1 << power);
}

static inline size_t msgpack_put_bin(uint8_t *p, slice s) {
    size_t head = msgpack_put_bin_head(p, s.size);
    if (s.size) memcpy(p + head, s.data, s.size);
    return head + s.size;
}

static inline size_t msgpack_put_str_head(uint8_t *p, size_t size) {
    if (size < 32) {
        p[0] = (uint8_t)(0xa0 | size);
        return 1;
    }
    int power = size <= 0xff ? 0 : size <= 0xffff ? 1 : 2;
    p[0] = (uint8_t)(0xd9 + power);
    return 1 + msgpack_put_big_endian(p + 1, size, (size_t)1 << power);
}

static inline void msgpack_append_uint(buffer *out, uint64_t v) {
    uint8_t *p = buffer_reserve(out, 9);
    if (p) out->size += msgpack_put_uint(p, v);
}

/* Of less than 65536 elements. */
static inline void msgpack_append_array(buffer *out, size_t count) {
    uint8_t *p = buffer_reserve(out, 3);
    if (!p) return;
    p[0] = count < 16 ? (uint8_t)(0x90 | count) : 0xdc;
    out->size += 1 + (count < 16 ? 0 : msgpack_put_big_endian(p + 1, count, 2));
}

static inline void msgpack_append_bin(buffer *out, slice s) {
    uint8_t *p = buffer_reserve(out, 5 + s.size);
    if (p) out->size += msgpack_put_bin(p, s);
}

static inline void msgpack_append_str(buffer *out, const char *text) {
    size_t size = strlen(text);
    uint8_t *p = buffer_reserve(out, 5 + size);
    if (!p) return;
    size_t head = msgpack_put_str_head(p, size);
    memcpy(p + head, text, size);
    out->size += head + size;
}

static inline void msgpack_append_byte(buffer *out, uint8_t byte) { buffer_append(out, &byte, 1); }

#endif
