/* A Bloom filter of one cache line per key (docs/formats.md section 4). Built from 64-bit hashes, probed with
 * one miss. */
#ifndef RINGKV_BLOOM_H
#define RINGKV_BLOOM_H

#include "bytes.h"

#define BLOOM_LINE_BYTES 64
#define BLOOM_LINE_BITS 512
#define BLOOM_PROBES 6 /* the best number for 10 bits a key within one line: about 1 % false positives */
#define BLOOM_TAIL_BYTES 8

static inline uint32_t bloom_line_of(uint64_t hash, uint32_t lines) {
    return (uint32_t)(((hash >> 32) * lines) >> 32);
}

/* Appends the filter of `count` hashes to `out`. */
static inline void bloom_build(buffer *out, const uint64_t *hashes, size_t count, unsigned bits_per_key) {
    uint32_t lines = (uint32_t)((count * bits_per_key + BLOOM_LINE_BITS - 1) / BLOOM_LINE_BITS);
    size_t size = (size_t)lines * BLOOM_LINE_BYTES + BLOOM_TAIL_BYTES;
    uint8_t *filter = buffer_reserve(out, size);
    if (!filter) return;
    memset(filter, 0, size);
    for (size_t i = 0; lines && i < count; i++) {
        uint8_t *line = filter + (size_t)bloom_line_of(hashes[i], lines) * BLOOM_LINE_BYTES;
        uint32_t g = (uint32_t)hashes[i];
        for (int probe = 0; probe < BLOOM_PROBES; probe++) {
            g *= 0x9e3779b9u;
            line[g >> 26] |= (uint8_t)(1u << ((g >> 23) & 7));
        }
    }
    store32(filter + size - 8, lines);
    filter[size - 4] = BLOOM_PROBES;
    out->size += size;
}

/* Whether the filter's lines fill it: what the checksum cannot tell. */
static inline int bloom_is_sound(slice filter) {
    return filter.size >= BLOOM_TAIL_BYTES && filter.data[filter.size - 4] <= 16 &&
           (uint64_t)load32(filter.data + filter.size - 8) * BLOOM_LINE_BYTES + BLOOM_TAIL_BYTES ==
               filter.size;
}

/* Has the line that bloom_may_hold will look at fetched. */
static inline void bloom_prefetch(slice filter, uint64_t hash) {
    uint32_t lines = bloom_is_sound(filter) ? load32(filter.data + filter.size - 8) : 0;
    if (lines) __builtin_prefetch(filter.data + (size_t)bloom_line_of(hash, lines) * BLOOM_LINE_BYTES);
}

/* 0: the key is certainly not there. The filter must be sound. */
static inline int bloom_may_hold(slice filter, uint64_t hash) {
    uint32_t lines = load32(filter.data + filter.size - 8);
    if (!lines) return 1;
    const uint8_t *line = filter.data + (size_t)bloom_line_of(hash, lines) * BLOOM_LINE_BYTES;
    uint32_t g = (uint32_t)hash;
    for (int probe = filter.data[filter.size - 4]; probe > 0; probe--) {
        g *= 0x9e3779b9u;
        if (!(line[g >> 26] & (1u << ((g >> 23) & 7)))) return 0;
    }
    return 1;
}

#endif
