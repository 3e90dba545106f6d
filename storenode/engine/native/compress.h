/* Compressed blocks (docs/formats.md section 3): LZ4 blocks and Zstandard frames behind the block's length.
 *
 * A `compressor` belongs to one job and is used again for each block. Who decompresses needs a Zstandard
 * context and room for what was read: each thread has its own, made when it first needs it, so a read
 * allocates nothing but the block that it is for.
 *
 * What is decompressed is not trusted, a checksum is no proof of good will: its length is bounded before
 * memory is taken for it, and has to come out exactly. */
#ifndef RINGKV_COMPRESS_H
#define RINGKV_COMPRESS_H

#include <lz4.h>
#include <pthread.h>
#include <zstd.h>

#include "bytes.h"

enum {
    BLOCK_TYPE_PLAIN = 0,
    BLOCK_TYPE_LZ4 = 1,
    BLOCK_TYPE_ZSTD = 2,
};

#define COMPRESS_SAVES_SHIFT 3 /* a block stays as it is unless 1/8 is saved: reading it is cheaper */
#define COMPRESS_FROM_BYTES_MAX (16u << 20) /* twice the largest value that the protocol allows */
#define COMPRESS_ZSTD_LEVEL 1 /* blocks of 4 KiB give the higher ones little to find */
#define COMPRESS_HELD_BYTES_MAX (64u << 10) /* what a thread keeps for reading: 16 usual blocks */

typedef struct {
    int type; /* of the blocks it makes */
    void *lz4;
    ZSTD_CCtx *zstd;
    buffer out;
} compressor;

static inline int compressor_init(compressor *c, int type) {
    memset(c, 0, sizeof *c);
    c->type = type;
    if (type == BLOCK_TYPE_LZ4) return (c->lz4 = malloc((size_t)LZ4_sizeofState())) ? 0 : -1;
    if (type != BLOCK_TYPE_ZSTD) return 0;
    if (!(c->zstd = ZSTD_createCCtx())) return -1;
    size_t set = ZSTD_CCtx_setParameter(c->zstd, ZSTD_c_compressionLevel, COMPRESS_ZSTD_LEVEL);
    return ZSTD_isError(set) ? -1 : 0;
}

static inline void compressor_free(compressor *c) {
    free(c->lz4);
    ZSTD_freeCCtx(c->zstd);
    buffer_free(&c->out);
}

/* The block as it is to be stored, valid until the next call, and its type: plain if compression does not
 * pay or there was no memory for it. */
static inline slice compressor_run(compressor *c, slice block, int *type) {
    size_t limit = block.size - (block.size >> COMPRESS_SAVES_SHIFT), made = 0;
    *type = BLOCK_TYPE_PLAIN;
    c->out.size = 0;
    if (c->type == BLOCK_TYPE_PLAIN || block.size > COMPRESS_FROM_BYTES_MAX) return block;
    uint8_t *to = buffer_reserve(&c->out, limit + VARINT_BYTES_MAX);
    if (!to) return block;
    size_t head = varint_put(to, block.size);
    if (head >= limit) return block;
    if (c->type == BLOCK_TYPE_LZ4) {
        made = (size_t)LZ4_compress_fast_extState(c->lz4, (const char *)block.data, (char *)to + head,
                                                  (int)block.size, (int)(limit - head), 1);
    } else {
        made = ZSTD_compress2(c->zstd, to + head, limit - head, block.data, block.size);
        if (ZSTD_isError(made)) made = 0; /* it did not fit */
    }
    if (made == 0) return block;
    *type = c->type;
    c->out.size = head + made;
    return buffer_slice(&c->out);
}

/* Takes the length off a compressed block: what is left is its payload. 0: the length is out of bounds. */
static inline size_t compressed_length(slice *stored) {
    uint64_t length;
    const uint8_t *end = stored->data + stored->size, *p = varint_get(stored->data, end, &length);
    if (!p || length > COMPRESS_FROM_BYTES_MAX) return 0;
    *stored = slice_of(p, (size_t)(end - p));
    return (size_t)length;
}

typedef struct {
    ZSTD_DCtx *zstd;
    uint8_t held[COMPRESS_HELD_BYTES_MAX];
} decompressor;

static pthread_once_t decompressor_once = PTHREAD_ONCE_INIT;
static pthread_key_t decompressor_key;
static int decompressor_key_made;

static inline void decompressor_free(void *of_thread) {
    ZSTD_freeDCtx(((decompressor *)of_thread)->zstd);
    free(of_thread);
}

static inline void decompressor_make_key(void) {
    decompressor_key_made = pthread_key_create(&decompressor_key, decompressor_free) == 0;
}

/* This thread's, freed when it ends; NULL: no memory. */
static inline decompressor *decompressor_of_thread(void) {
    pthread_once(&decompressor_once, decompressor_make_key);
    if (!decompressor_key_made) return NULL;
    decompressor *d = (decompressor *)pthread_getspecific(decompressor_key);
    if (d) return d;
    d = (decompressor *)malloc(sizeof *d);
    if (!d) return NULL;
    d->zstd = NULL;
    if (pthread_setspecific(decompressor_key, d) == 0) return d;
    free(d);
    return NULL;
}

/* One whole frame of today's format that says how long it gets: the library would also take several, and
 * those of its first versions, whose decoders nobody tests any more. */
static inline int zstd_frame_is_expected(slice payload, size_t length) {
    return payload.size >= 4 && load32(payload.data) == ZSTD_MAGICNUMBER &&
           ZSTD_getFrameContentSize(payload.data, payload.size) == length &&
           ZSTD_findFrameCompressedSize(payload.data, payload.size) == payload.size;
}

enum { DECOMPRESS_MALFORMED = -1, DECOMPRESS_NO_MEMORY = -2 };

/* Decompresses to `to`, which has room for `length` bytes; 0 if exactly that came out. */
static inline int decompress(int type, slice payload, uint8_t *to, size_t length) {
    if (type == BLOCK_TYPE_LZ4) {
        if (payload.size > LZ4_MAX_INPUT_SIZE) return DECOMPRESS_MALFORMED;
        int made =
            LZ4_decompress_safe((const char *)payload.data, (char *)to, (int)payload.size, (int)length);
        return made >= 0 && (size_t)made == length ? 0 : DECOMPRESS_MALFORMED;
    }
    if (!zstd_frame_is_expected(payload, length)) return DECOMPRESS_MALFORMED;
    decompressor *d = decompressor_of_thread();
    if (!d || (!d->zstd && !(d->zstd = ZSTD_createDCtx()))) return DECOMPRESS_NO_MEMORY;
    size_t made = ZSTD_decompressDCtx(d->zstd, to, length, payload.data, payload.size);
    return made == length ? 0 : DECOMPRESS_MALFORMED;
}

#endif
