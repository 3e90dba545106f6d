/* CRC-32C (Castagnoli): the SSE4.2 instruction where the CPU has it, a table of 8 x 256 words elsewhere; same
 * numbers.
 *
 * crc32c(crc, data, size) continues `crc` (0 to begin). crc32c_mask is what is stored (docs/formats.md). */
#ifndef RINGKV_CRC32C_H
#define RINGKV_CRC32C_H

#include "bytes.h"

static uint32_t crc32c_table[8][256];

static void crc32c_make_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1)));
        crc32c_table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int slot = 1; slot < 8; slot++)
            crc32c_table[slot][byte] =
                (crc32c_table[slot - 1][byte] >> 8) ^ crc32c_table[0][crc32c_table[slot - 1][byte] & 0xff];
}

static uint32_t crc32c_portable(uint32_t crc, const uint8_t *p, size_t size) {
    crc = ~crc;
    for (; size >= 8; size -= 8, p += 8) {
        uint64_t word = load64(p) ^ crc;
        crc = 0;
        for (int slot = 0; slot < 8; slot++)
            crc ^= crc32c_table[7 - slot][(word >> (8 * slot)) & 0xff];
    }
    for (; size; size--, p++)
        crc = (crc >> 8) ^ crc32c_table[0][(crc ^ *p) & 0xff];
    return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const uint8_t *p, size_t size) {
    uint64_t state = (uint32_t)~crc;
    for (; size >= 8; size -= 8, p += 8)
        state = __builtin_ia32_crc32di(state, load64(p));
    for (; size; size--, p++)
        state = __builtin_ia32_crc32qi((uint32_t)state, *p);
    return ~(uint32_t)state;
}
#endif

static uint32_t (*crc32c_chosen)(uint32_t, const uint8_t *, size_t) = crc32c_portable;

/* Once per extension module that includes this file, when it is loaded. */
__attribute__((constructor)) static void crc32c_choose(void) {
    crc32c_make_table();
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2")) crc32c_chosen = crc32c_sse42;
#endif
}

static inline uint32_t crc32c(uint32_t crc, const void *data, size_t size) {
    return crc32c_chosen(crc, (const uint8_t *)data, size);
}

static inline uint32_t crc32c_mask(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

/* The checksum's start for bytes that live at `offset` of the file `file_id`. */
static inline uint32_t crc32c_context(uint64_t file_id, uint64_t offset) {
    uint8_t context[16];
    store64(context, file_id);
    store64(context + 8, offset);
    return crc32c(0, context, 16);
}

#endif
