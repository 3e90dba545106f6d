/* Bytes in memory: slices, little-endian numbers, varints, and a growable buffer whose failure is sticky. */
#ifndef RINGKV_BYTES_H
#define RINGKV_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const uint8_t *data;
    size_t size;
} slice;

static inline slice slice_of(const void *data, size_t size) {
    slice s = {(const uint8_t *)data, size};
    return s;
}

/* -1, 0 or 1; a prefix comes before what it begins. */
static inline int slice_compare(slice a, slice b) {
    size_t shorter = a.size < b.size ? a.size : b.size;
    int order = shorter ? memcmp(a.data, b.data, shorter) : 0;
    if (order) return order < 0 ? -1 : 1;
    return a.size < b.size ? -1 : a.size > b.size;
}

static inline int slice_equal(slice a, slice b) {
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

/* The first eight bytes as a number that orders as they do; shorter keys are filled with zeros, so equal
 * prefixes decide nothing. */
static inline uint64_t slice_prefix(slice s) {
    uint64_t word = 0;
    if (s.size >= 8) {
        memcpy(&word, s.data, 8);
    } else if (s.size) {
        memcpy(&word, s.data, s.size);
    }
    return __builtin_bswap64(word);
}

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the engine's native code assumes a little-endian machine"
#endif

static inline uint32_t load32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline uint64_t load64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static inline void store32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void store64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }

#define VARINT_BYTES_MAX 10

static inline size_t varint_put(uint8_t *p, uint64_t v) {
    size_t size = 0;
    while (v >= 0x80) {
        p[size++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    p[size++] = (uint8_t)v;
    return size;
}

/* Returns the byte behind the number, NULL if it does not end before `end` or is longer than ten bytes. */
static inline const uint8_t *varint_get(const uint8_t *p, const uint8_t *end, uint64_t *v) {
    if (p < end && *p < 0x80) {
        *v = *p;
        return p + 1;
    }
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && p < end; shift += 7) {
        uint64_t byte = *p++;
        value |= (byte & 0x7f) << shift;
        if (byte < 0x80) {
            *v = value;
            return p;
        }
    }
    return NULL;
}

typedef struct {
    uint8_t *data;
    size_t size;
    size_t capacity;
    int failed; /* memory ran out once; later appends do nothing */
} buffer;

static inline void buffer_free(buffer *b) {
    free(b->data);
    memset(b, 0, sizeof *b);
}

/* Room for `extra` more bytes behind `size`; NULL when memory ran out. Does not change `size`. */
static inline uint8_t *buffer_reserve(buffer *b, size_t extra) {
    if (b->failed) return NULL;
    if (b->capacity - b->size < extra) {
        size_t capacity = b->capacity ? b->capacity : 256;
        while (capacity - b->size < extra)
            capacity *= 2;
        uint8_t *data = (uint8_t *)realloc(b->data, capacity);
        if (!data) {
            b->failed = 1;
            return NULL;
        }
        b->data = data;
        b->capacity = capacity;
    }
    return b->data + b->size;
}

static inline void buffer_append(buffer *b, const void *data, size_t size) {
    uint8_t *to = buffer_reserve(b, size);
    if (to && size) {
        memcpy(to, data, size);
        b->size += size;
    }
}

static inline slice buffer_slice(const buffer *b) { return slice_of(b->data, b->size); }

/* What went wrong in native code; the caller turns it into an exception that names file and offset. */
enum {
    FAILURE_NONE = 0,
    FAILURE_CORRUPT = 1,
    FAILURE_IO = 2,
    FAILURE_MEMORY = 3,
    FAILURE_CANCELLED = 4,
};

typedef struct {
    int code;
    int os_error;
    uint64_t file_number;
    uint64_t offset;
    const char *what; /* static text */
} failure;

static inline int fail(failure *f, int code, uint64_t file_number, uint64_t offset, const char *what) {
    if (f->code == FAILURE_NONE) {
        f->code = code;
        f->file_number = file_number;
        f->offset = offset;
        f->what = what;
    }
    return -1;
}

#endif
