/* XXH64, the hash that maps keys onto partitions, and the hash-tag rule of docs/protocol.md section 2.
 *
 * Written from the algorithm's published description. Reads little-endian whatever the CPU, one byte range,
 * no allocation.
 */
#ifndef RINGKV_XXH64_H
#define RINGKV_XXH64_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define XXH64_P1 0x9E3779B185EBCA87ULL
#define XXH64_P2 0xC2B2AE3D27D4EB4FULL
#define XXH64_P3 0x165667B19E3779F9ULL
#define XXH64_P4 0x85EBCA77C2B2AE63ULL
#define XXH64_P5 0x27D4EB2F165667C5ULL

static inline uint64_t xxh64_rotate(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

static inline uint64_t xxh64_load64(const uint8_t *at) {
    uint64_t x;
    memcpy(&x, at, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    x = __builtin_bswap64(x);
#endif
    return x;
}

static inline uint32_t xxh64_load32(const uint8_t *at) {
    uint32_t x;
    memcpy(&x, at, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    x = __builtin_bswap32(x);
#endif
    return x;
}

static inline uint64_t xxh64_round(uint64_t lane, uint64_t input) {
    return xxh64_rotate(lane + input * XXH64_P2, 31) * XXH64_P1;
}

static inline uint64_t xxh64_fold(uint64_t hash, uint64_t lane) {
    return (hash ^ xxh64_round(0, lane)) * XXH64_P1 + XXH64_P4;
}

/* The hash of `size` bytes; `data` may be NULL when size is 0. */
static inline uint64_t xxh64(const uint8_t *data, size_t size, uint64_t seed) {
    const uint8_t *at = data, *end = data + size;
    uint64_t hash;
    if (size >= 32) {
        uint64_t a = seed + XXH64_P1 + XXH64_P2, b = seed + XXH64_P2, c = seed, d = seed - XXH64_P1;
        for (; end - at >= 32; at += 32) {
            a = xxh64_round(a, xxh64_load64(at));
            b = xxh64_round(b, xxh64_load64(at + 8));
            c = xxh64_round(c, xxh64_load64(at + 16));
            d = xxh64_round(d, xxh64_load64(at + 24));
        }
        hash = xxh64_rotate(a, 1) + xxh64_rotate(b, 7) + xxh64_rotate(c, 12) + xxh64_rotate(d, 18);
        hash = xxh64_fold(xxh64_fold(xxh64_fold(xxh64_fold(hash, a), b), c), d);
    } else {
        hash = seed + XXH64_P5;
    }
    hash += (uint64_t)size;
    for (; end - at >= 8; at += 8)
        hash = xxh64_rotate(hash ^ xxh64_round(0, xxh64_load64(at)), 27) * XXH64_P1 + XXH64_P4;
    if (end - at >= 4) {
        hash = xxh64_rotate(hash ^ (xxh64_load32(at) * XXH64_P1), 23) * XXH64_P2 + XXH64_P3;
        at += 4;
    }
    for (; at < end; at++)
        hash = xxh64_rotate(hash ^ (*at * XXH64_P5), 11) * XXH64_P1;
    hash = (hash ^ (hash >> 33)) * XXH64_P2;
    hash = (hash ^ (hash >> 29)) * XXH64_P3;
    return hash ^ (hash >> 32);
}

/* Narrows a key to its hashed part: what stands between the first '{' and the next '}', if that is not empty.
 * */
static inline void hashed_part(const uint8_t **key, size_t *size) {
    const uint8_t *end = *key + *size;
    const uint8_t *open = *size ? (const uint8_t *)memchr(*key, '{', *size) : NULL;
    if (open == NULL)
        return;
    const uint8_t *close = (const uint8_t *)memchr(open, '}', (size_t)(end - open));
    if (close == NULL || close == open + 1)
        return;
    *key = open + 1;
    *size = (size_t)(close - open - 1);
}

/* The partition of a key; bits = log2(partition count), 0..12. */
static inline uint32_t partition_of(const uint8_t *key, size_t size, int bits) {
    hashed_part(&key, &size);
    return bits ? (uint32_t)(xxh64(key, size, 0) >> (64 - bits)) : 0;
}

#endif
