/* XXH64 with seed 0 (the published algorithm): the filter's hash, and the manifest's digest. */
#ifndef RINGKV_HASH64_H
#define RINGKV_HASH64_H

#include "bytes.h"

#define HASH64_P1 0x9E3779B185EBCA87ull
#define HASH64_P2 0xC2B2AE3D27D4EB4Full
#define HASH64_P3 0x165667B19E3779F9ull
#define HASH64_P4 0x85EBCA77C2B2AE63ull
#define HASH64_P5 0x27D4EB2F165667C5ull

static inline uint64_t hash64_rotate(uint64_t v, int bits) { return (v << bits) | (v >> (64 - bits)); }

static inline uint64_t hash64_round(uint64_t lane, uint64_t word) {
    return hash64_rotate(lane + word * HASH64_P2, 31) * HASH64_P1;
}

static inline uint64_t hash64_merge(uint64_t h, uint64_t lane) {
    return (h ^ hash64_round(0, lane)) * HASH64_P1 + HASH64_P4;
}

static inline uint64_t hash64(const void *data, size_t size) {
    const uint8_t *p = (const uint8_t *)data, *end = p + size;
    uint64_t h;
    if (size >= 32) {
        uint64_t a = HASH64_P1 + HASH64_P2, b = HASH64_P2, c = 0, d = 0 - HASH64_P1;
        for (; end - p >= 32; p += 32) {
            a = hash64_round(a, load64(p));
            b = hash64_round(b, load64(p + 8));
            c = hash64_round(c, load64(p + 16));
            d = hash64_round(d, load64(p + 24));
        }
        h = hash64_rotate(a, 1) + hash64_rotate(b, 7) + hash64_rotate(c, 12) + hash64_rotate(d, 18);
        h = hash64_merge(hash64_merge(hash64_merge(hash64_merge(h, a), b), c), d);
    } else {
        h = HASH64_P5;
    }
    h += size;
    for (; end - p >= 8; p += 8)
        h = hash64_rotate(h ^ hash64_round(0, load64(p)), 27) * HASH64_P1 + HASH64_P4;
    if (end - p >= 4) {
        h = hash64_rotate(h ^ load32(p) * HASH64_P1, 23) * HASH64_P2 + HASH64_P3;
        p += 4;
    }
    for (; p < end; p++)
        h = hash64_rotate(h ^ *p * HASH64_P5, 11) * HASH64_P1;
    h = (h ^ (h >> 33)) * HASH64_P2;
    h = (h ^ (h >> 29)) * HASH64_P3;
    return h ^ (h >> 32);
}

#endif
