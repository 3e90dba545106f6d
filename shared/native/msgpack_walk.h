/* Walking MessagePack bytes in place: one header at a time, never past `end`, no allocation, no recursion.
 *
 * Accepts every width the MessagePack specification allows for a value, minimal or not. Knows nothing of what
 * the bytes mean. Invariant: a cursor only moves forward and never beyond `end`, whatever the bytes are; on
 * failure it may stand anywhere between.
 */
#ifndef RINGKV_MSGPACK_WALK_H
#define RINGKV_MSGPACK_WALK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum mp_type {
    MP_NIL, MP_BOOL, MP_UINT, MP_NEGATIVE, MP_FLOAT, MP_BIN, MP_STR, MP_EXT, MP_ARRAY, MP_MAP, MP_INVALID
};

typedef struct {
    const uint8_t *at, *end;
} mp_cursor;

typedef struct {
    enum mp_type type;
    /* UINT: the value. NEGATIVE: its two's complement. BIN, STR, EXT: bytes. ARRAY: elements. MAP: pairs. */
    uint64_t number;
    const uint8_t *data; /* BIN, STR, EXT: the payload */
} mp_value;

static inline uint64_t mp_big_endian(const uint8_t *at, int width) {
    uint64_t x = 0;
    for (int i = 0; i < width; i++)
        x = x << 8 | at[i];
    return x;
}

static inline uint64_t mp_left(const mp_cursor *cursor) { return (uint64_t)(cursor->end - cursor->at); }

/* Reads a `width`-byte number behind the header byte. */
static inline int mp_number(mp_cursor *cursor, int width, uint64_t *number) {
    if (mp_left(cursor) < (uint64_t)width)
        return 0;
    *number = mp_big_endian(cursor->at, width);
    cursor->at += width;
    return 1;
}

static inline int mp_signed(mp_cursor *cursor, int width, mp_value *value) {
    if (!mp_number(cursor, width, &value->number))
        return 0;
    int shift = 64 - 8 * width;
    int64_t number = (int64_t)(value->number << shift) >> shift;
    value->type = number < 0 ? MP_NEGATIVE : MP_UINT;
    value->number = (uint64_t)number;
    return 1;
}

static inline int mp_payload(mp_cursor *cursor, enum mp_type type, uint64_t size, mp_value *value) {
    if (mp_left(cursor) < size)
        return 0;
    value->type = type;
    value->number = size;
    value->data = cursor->at;
    cursor->at += size;
    return 1;
}

static inline int mp_sized(mp_cursor *cursor, enum mp_type type, int width, uint64_t extra, mp_value *value) {
    uint64_t size;
    return mp_number(cursor, width, &size) && mp_payload(cursor, type, size + extra, value);
}

/* An element takes at least one byte: a count that the bytes left cannot hold is refused here, so counts need
 * no other bound. */
static inline int mp_container(mp_cursor *cursor, enum mp_type type, uint64_t count, mp_value *value) {
    value->type = type;
    value->number = count;
    return (type == MP_MAP ? 2 * count : count) <= mp_left(cursor);
}

static inline int mp_counted(mp_cursor *cursor, enum mp_type type, int width, mp_value *value) {
    uint64_t count;
    return mp_number(cursor, width, &count) && mp_container(cursor, type, count, value);
}

/* Steps over the rarer headers; split off so that the common ones inline well. */
static int mp_next_rare(mp_cursor *cursor, uint8_t head, mp_value *value) {
    switch (head) {
    case 0xc0: value->type = MP_NIL; return 1;
    case 0xc2: case 0xc3: value->type = MP_BOOL; return 1;
    case 0xc4: return mp_sized(cursor, MP_BIN, 1, 0, value);
    case 0xc5: return mp_sized(cursor, MP_BIN, 2, 0, value);
    case 0xc6: return mp_sized(cursor, MP_BIN, 4, 0, value);
    case 0xc7: return mp_sized(cursor, MP_EXT, 1, 1, value);
    case 0xc8: return mp_sized(cursor, MP_EXT, 2, 1, value);
    case 0xc9: return mp_sized(cursor, MP_EXT, 4, 1, value);
    case 0xca: return mp_payload(cursor, MP_FLOAT, 4, value);
    case 0xcb: return mp_payload(cursor, MP_FLOAT, 8, value);
    case 0xcc: case 0xcd: case 0xce: case 0xcf:
        value->type = MP_UINT;
        return mp_number(cursor, 1 << (head - 0xcc), &value->number);
    case 0xd0: case 0xd1: case 0xd2: case 0xd3: return mp_signed(cursor, 1 << (head - 0xd0), value);
    case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8:
        return mp_payload(cursor, MP_EXT, (1u << (head - 0xd4)) + 1u, value);
    case 0xd9: return mp_sized(cursor, MP_STR, 1, 0, value);
    case 0xda: return mp_sized(cursor, MP_STR, 2, 0, value);
    case 0xdb: return mp_sized(cursor, MP_STR, 4, 0, value);
    case 0xdc: return mp_counted(cursor, MP_ARRAY, 2, value);
    case 0xdd: return mp_counted(cursor, MP_ARRAY, 4, value);
    case 0xde: return mp_counted(cursor, MP_MAP, 2, value);
    case 0xdf: return mp_counted(cursor, MP_MAP, 4, value);
    default: value->type = MP_INVALID; return 1; /* 0xc1, never used by MessagePack */
    }
}

/* Steps over one scalar, or over the header of one array or map (its elements follow). 0 when the bytes end
 * before it does. */
static inline int mp_next(mp_cursor *cursor, mp_value *value) {
    if (cursor->at >= cursor->end)
        return 0;
    uint8_t head = *cursor->at++;
    if (head <= 0x7f) {
        value->type = MP_UINT;
        value->number = head;
        return 1;
    }
    if (head >= 0xe0) {
        value->type = MP_NEGATIVE;
        value->number = (uint64_t)(int64_t)(int8_t)head;
        return 1;
    }
    if (head <= 0x8f)
        return mp_container(cursor, MP_MAP, head & 0x0f, value);
    if (head <= 0x9f)
        return mp_container(cursor, MP_ARRAY, head & 0x0f, value);
    if (head <= 0xbf)
        return mp_payload(cursor, MP_STR, head & 0x1f, value);
    return mp_next_rare(cursor, head, value);
}

/* Steps over one whole value, nested as deep as it likes. 0 when the bytes end before it does or are no
 * MessagePack. */
static inline int mp_skip(mp_cursor *cursor) {
    uint64_t pending = 1;
    mp_value value;
    while (pending) {
        if (!mp_next(cursor, &value) || value.type == MP_INVALID)
            return 0;
        pending -= 1;
        if (value.type == MP_ARRAY)
            pending += value.number;
        else if (value.type == MP_MAP)
            pending += 2 * value.number;
    }
    return 1;
}

enum mp_extent { MP_WHOLE, MP_BROKEN, MP_TOO_MANY };

/* Steps over one whole value as mp_skip() does, unless it and all that it holds are more than `most` values. */
static inline enum mp_extent mp_skip_within(mp_cursor *cursor, uint64_t most) {
    uint64_t pending = 1;
    mp_value value;
    while (pending) {
        if (pending > most)
            return MP_TOO_MANY;
        if (!mp_next(cursor, &value) || value.type == MP_INVALID)
            return MP_BROKEN;
        pending -= 1;
        most -= 1;
        if (value.type == MP_ARRAY)
            pending += value.number;
        else if (value.type == MP_MAP)
            pending += 2 * value.number;
    }
    return MP_WHOLE;
}

/* Bytes that mp_write_bin() and mp_write_uint() may need for their header at most. */
#define MP_HEADER_MAX 9

static inline uint8_t *mp_write_big_endian(uint8_t *to, uint8_t head, uint64_t number, int width) {
    *to++ = head;
    for (int shift = 8 * (width - 1); shift >= 0; shift -= 8)
        *to++ = (uint8_t)(number >> shift);
    return to;
}

/* Writes an unsigned integer in its shortest form; returns the end. */
static inline uint8_t *mp_write_uint(uint8_t *to, uint64_t number) {
    if (number <= 0x7f) {
        *to++ = (uint8_t)number;
        return to;
    }
    if (number <= 0xff)
        return mp_write_big_endian(to, 0xcc, number, 1);
    if (number <= 0xffff)
        return mp_write_big_endian(to, 0xcd, number, 2);
    if (number <= 0xffffffff)
        return mp_write_big_endian(to, 0xce, number, 4);
    return mp_write_big_endian(to, 0xcf, number, 8);
}

/* Writes the header of `size` bytes of bin in its shortest form; returns the end. */
static inline uint8_t *mp_write_bin_header(uint8_t *to, uint32_t size) {
    if (size <= 0xff)
        return mp_write_big_endian(to, 0xc4, size, 1);
    if (size <= 0xffff)
        return mp_write_big_endian(to, 0xc5, size, 2);
    return mp_write_big_endian(to, 0xc6, size, 4);
}

#endif
