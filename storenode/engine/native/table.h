/* Reading a table: footer, blocks (always checked), point lookup (docs/formats.md section 4).
 *
 * A `reader` says how blocks are fetched and collects the first failure. Blocks come from the cache when
 * there is one; a `reader` without a cache reads for itself, far ahead, and leaves the cache alone: that is
 * what compaction wants. A caller that holds the interpreter's lock gives `pause` and `resume`, which are
 * called around every read of a file, with the decompression of what was read. */
#ifndef RINGKV_TABLE_H
#define RINGKV_TABLE_H

#include <errno.h>
#include <unistd.h>

#include "block.h"
#include "bloom.h"
#include "cache.h"
#include "compress.h"
#include "crc32c.h"
#include "handles.h"
#include "hash64.h"

#define TABLE_FOOTER_BYTES 64
#define TABLE_VERSION 1
#define TABLE_MAGIC "rkv-sst\n"

typedef struct {
    uint64_t offset;
    uint32_t size;
} block_handle;

typedef struct {
    handle *file;
    uint64_t number;
    uint64_t file_id;
    uint64_t cache_key;
    uint64_t size;
    uint64_t sequence_bits; /* of a prepared table: the sequence it was given, as in a trailer; stored is 0 */
    int compression; /* the type of its compressed data blocks; the others are plain */
    block_handle index, filter, properties;
    cache_entry *pinned_index, *pinned_filter; /* once read, if the cache had room: table_pinned */
    cache_entry *pinned_fences;                /* a table_fences, made of the pinned index */
    slice smallest, largest;                   /* user keys; owned by whoever owns the table */
    uint64_t max_sequence;                     /* no version is newer */
} table;

typedef struct {
    cache *blocks; /* NULL: blocks are read privately */
    void *(*pause)(void);
    void (*resume)(void *);
    failure failed;
    uint64_t bytes;    /* read from files */
    uint64_t lookups;
    uint64_t filtered; /* tables that a filter spared a lookup */
    uint64_t searched; /* tables that a lookup searched */
    uint64_t misled;   /* of those, in vain */
    uint64_t blocks_searched;
} reader;

static inline int table_fail(reader *r, const table *t, int code, uint64_t offset, const char *what) {
    return fail(&r->failed, code, t->number, offset, what);
}

static inline int table_read(reader *r, const table *t, uint64_t offset, uint8_t *to, size_t size) {
    int fd = handle_acquire(t->file, &r->failed.os_error);
    if (fd < 0) return table_fail(r, t, FAILURE_IO, offset, "cannot be opened");
    int result = 0;
    r->bytes += size;
    while (size && result == 0) {
        ssize_t got = pread(fd, to, size, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            r->failed.os_error = got < 0 ? errno : 0;
            int code = got < 0 ? FAILURE_IO : FAILURE_CORRUPT;
            result = table_fail(r, t, code, offset, "the file ends too early");
        } else {
            to += got;
            offset += (uint64_t)got;
            size -= (size_t)got;
        }
    }
    handle_release(t->file);
    return result;
}

static inline int block_is_sound(const table *t, uint64_t offset, const uint8_t *data, size_t size) {
    uint32_t crc = crc32c(crc32c_context(t->file_id, offset), data, size + 1);
    return crc32c_mask(crc) == load32(data + size + 1);
}

/* Reads block and trailer to `to`, which has room for both, and checks them; a mismatch is read once more,
 * since the bits may have turned on the way and not on the disk. */
static inline int table_read_block(reader *r, const table *t, block_handle h, uint8_t *to) {
    for (int attempt = 0; attempt < 2; attempt++) {
        if (table_read(r, t, h.offset, to, (size_t)h.size + BLOCK_TRAILER_BYTES) < 0) return -1;
        if (block_is_sound(t, h.offset, to, h.size)) return 0;
    }
    return table_fail(r, t, FAILURE_CORRUPT, h.offset, "block checksum mismatch");
}

static inline cache_entry *table_entry_new(reader *r, const table *t, block_handle h, size_t size) {
    cache_entry *e = cache_entry_new(r->blocks, t->cache_key, h.offset, size);
    if (!e) table_fail(r, t, FAILURE_MEMORY, h.offset, "out of memory");
    return e;
}

/* The data block whose stored form, checked, is at `stored`; NULL on failure. */
static inline cache_entry *table_unpack(reader *r, const table *t, block_handle h, const uint8_t *stored) {
    int type = stored[h.size], result = 0;
    slice payload = slice_of(stored, h.size);
    size_t length = h.size;
    cache_entry *e = NULL;
    if (type != BLOCK_TYPE_PLAIN && type != t->compression) {
        table_fail(r, t, FAILURE_CORRUPT, h.offset, "unknown block type");
    } else if (type != BLOCK_TYPE_PLAIN && (length = compressed_length(&payload)) == 0) {
        table_fail(r, t, FAILURE_CORRUPT, h.offset, "the length of a compressed block is out of bounds");
    } else if ((e = table_entry_new(r, t, h, length)) != NULL) {
        if (type == BLOCK_TYPE_PLAIN)
            memcpy(e->data, payload.data, length);
        else
            result = decompress(type, payload, e->data, length);
    }
    if (result == 0) return e;
    cache_release(e);
    if (result == DECOMPRESS_NO_MEMORY)
        table_fail(r, t, FAILURE_MEMORY, h.offset, "out of memory");
    else
        table_fail(r, t, FAILURE_CORRUPT, h.offset, "malformed compressed block");
    return NULL;
}

/* A block that may be compressed: read to this thread's own room, then unpacked. */
static inline cache_entry *table_load_packed(reader *r, const table *t, block_handle h) {
    decompressor *d = decompressor_of_thread();
    size_t size = (size_t)h.size + BLOCK_TRAILER_BYTES;
    uint8_t *stored = d && size > sizeof d->held ? (uint8_t *)malloc(size) : d ? d->held : NULL;
    cache_entry *e = NULL;
    if (!stored)
        table_fail(r, t, FAILURE_MEMORY, h.offset, "out of memory");
    else if (table_read_block(r, t, h, stored) == 0)
        e = table_unpack(r, t, h, stored);
    if (stored && stored != d->held) free(stored);
    return e;
}

static inline cache_entry *table_load(reader *r, const table *t, block_handle h) {
    if (h.offset > t->size || (uint64_t)h.size + BLOCK_TRAILER_BYTES > t->size - h.offset) {
        table_fail(r, t, FAILURE_CORRUPT, h.offset, "a block lies outside of the file");
        return NULL;
    }
    int is_data = h.offset < t->filter.offset;
    if (is_data && t->compression != BLOCK_TYPE_PLAIN) return table_load_packed(r, t, h);
    cache_entry *e = table_entry_new(r, t, h, (size_t)h.size + BLOCK_TRAILER_BYTES);
    if (!e) return NULL;
    int result = table_read_block(r, t, h, e->data);
    if (result == 0 && e->data[h.size] != BLOCK_TYPE_PLAIN)
        result = table_fail(r, t, FAILURE_CORRUPT, h.offset, "unknown block type");
    e->size = h.size;
    if (result == 0) return e;
    cache_release(e);
    return NULL;
}

/* A checked block that the cache has not, with a reference for the caller; NULL on failure. */
static inline cache_entry *table_block_uncached(reader *r, const table *t, block_handle h) {
    void *paused = r->pause ? r->pause() : NULL;
    cache_entry *e = table_load(r, t, h);
    if (r->pause) r->resume(paused);
    if (e && r->blocks) cache_insert(r->blocks, e);
    return e;
}

/* A checked block, as it was before it was compressed, with a reference for the caller; NULL on failure. */
static inline cache_entry *table_block(reader *r, const table *t, block_handle h) {
    cache_entry *e = r->blocks ? cache_find(r->blocks, t->cache_key, h.offset) : NULL;
    return e ? e : table_block_uncached(r, t, h);
}

static inline int table_handle(reader *r, const table *t, slice value, block_handle *h) {
    uint64_t offset, size;
    const uint8_t *end = value.data + value.size, *p = varint_get(value.data, end, &offset);
    if (!p || !varint_get(p, end, &size) || size > UINT32_MAX - 64)
        return table_fail(r, t, FAILURE_CORRUPT, t->index.offset, "malformed index entry");
    h->offset = offset;
    h->size = (uint32_t)size;
    return 0;
}

/* Leaves a pinned entry in `slot`, unless another thread was faster. */
static inline int table_keep(reader *r, cache_entry *const *slot, cache_entry *e) {
    cache_entry *none = NULL;
    if (__atomic_compare_exchange_n((cache_entry **)slot, &none, e, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) return 1;
    cache_unpin(r->blocks, e);
    return 0;
}

/* The index as two arrays, for point lookups: where the keys of a table begin to differ, eight bytes of each
 * separator mostly tell the block. */
typedef struct {
    uint32_t count;  /* blocks */
    uint32_t shared; /* bytes that all keys of the table, and all separators but the last, begin with */
    block_handle handles[];
    /* then: uint64_t fences[count] */
} table_fences;

static inline const uint64_t *fences_of(const table_fences *f) { return (const uint64_t *)(f->handles + f->count); }

static inline size_t common_prefix(slice a, slice b) {
    size_t limit = a.size < b.size ? a.size : b.size, at = 0;
    while (at < limit && a.data[at] == b.data[at])
        at++;
    return at;
}

static inline slice slice_from(slice s, size_t at) { return slice_of(s.data + at, s.size - at); }

/* Makes the fences of a table whose index has just been pinned. Without room or memory for them, or of an index that
 * is no sound one, there are none, and lookups go by the index. */
static inline void table_make_fences(reader *r, const table *t, slice index) {
    block_cursor c;
    memset(&c, 0, sizeof c);
    uint32_t count = 0;
    if (block_cursor_open(&c, index) == 0 && block_first(&c) == 0)
        for (; c.valid && block_next(&c) == 0; count++) {
        }
    size_t size = sizeof(table_fences) + count * (sizeof(block_handle) + sizeof(uint64_t));
    cache_entry *e = c.corrupt || !count ? NULL : cache_entry_new(NULL, t->cache_key, t->size, size);
    if (e) {
        table_fences *f = (table_fences *)e->data;
        uint64_t *fences;
        f->count = count;
        f->shared = (uint32_t)common_prefix(t->smallest, t->largest);
        fences = (uint64_t *)fences_of(f);
        uint32_t at = 0;
        int sound = block_first(&c) == 0;
        for (; sound && c.valid && at < count; at++) {
            slice separator = buffer_slice(&c.key);
            reader probe = {0};
            int is_last = at + 1 == count;
            sound = table_handle(&probe, t, c.value, &f->handles[at]) == 0 &&
                    (is_last || common_prefix(separator, t->smallest) >= f->shared);
            if (sound) fences[at] = is_last ? UINT64_MAX : slice_prefix(slice_from(separator, f->shared));
            sound = sound && (!at || fences[at - 1] <= fences[at]) && block_next(&c) == 0;
        }
        if (sound && at == count && cache_pin_new(r->blocks, e))
            table_keep(r, &t->pinned_fences, e);
        else
            cache_release(e);
    }
    block_cursor_free(&c);
}

/* Index or filter, which every lookup in the table needs: the first one to read it leaves it in `slot` until the
 * table is closed, so that later ones need not ask the cache. `*held`: what the caller has to release. */
static inline cache_entry *table_pinned(reader *r, const table *t, block_handle h, cache_entry *const *slot,
                                        cache_entry **held) {
    cache_entry *e = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
    *held = NULL;
    if (e) return e;
    e = *held = table_block(r, t, h);
    if (e && r->blocks && cache_pin(r->blocks, e) && table_keep(r, slot, e) && slot == &t->pinned_index)
        table_make_fences(r, t, cache_bytes(e));
    return e;
}

static inline void table_unpin(table *t, cache *c) {
    cache_unpin(c, t->pinned_index);
    cache_unpin(c, t->pinned_filter);
    cache_unpin(c, t->pinned_fences);
    t->pinned_index = t->pinned_filter = t->pinned_fences = NULL;
}

/* Fills in the handles from the footer; `t` has fd, number, size and the file id that the manifest expects.
 * */
static inline int table_open(reader *r, table *t) {
    uint8_t footer[TABLE_FOOTER_BYTES];
    uint64_t offset = t->size - TABLE_FOOTER_BYTES;
    if (t->size < TABLE_FOOTER_BYTES) return table_fail(r, t, FAILURE_CORRUPT, 0, "too short for a table");
    if (table_read(r, t, offset, footer, sizeof footer) < 0) return -1;
    if (memcmp(footer + 56, TABLE_MAGIC, 8))
        return table_fail(r, t, FAILURE_CORRUPT, offset, "no table footer");
    if (crc32c_mask(crc32c(0, footer, 52)) != load32(footer + 52))
        return table_fail(r, t, FAILURE_CORRUPT, offset, "footer checksum mismatch");
    if (load32(footer + 44) != TABLE_VERSION)
        return table_fail(r, t, FAILURE_CORRUPT, offset, "unknown table version");
    if (load64(footer + 36) != t->file_id)
        return table_fail(r, t, FAILURE_CORRUPT, offset, "the table of another file id");
    if (load32(footer + 48) > BLOCK_TYPE_ZSTD)
        return table_fail(r, t, FAILURE_CORRUPT, offset, "unknown compression");
    t->compression = (int)load32(footer + 48);
    t->filter.offset = load64(footer);
    t->filter.size = load32(footer + 8);
    t->index.offset = load64(footer + 12);
    t->index.size = load32(footer + 20);
    t->properties.offset = load64(footer + 24);
    t->properties.size = load32(footer + 32);
    return 0;
}

static inline int table_index_broken(reader *r, const table *t) {
    return table_fail(r, t, FAILURE_CORRUPT, t->index.offset, "malformed index block");
}

static inline const table_fences *table_fences_of(const table *t) {
    const cache_entry *e = __atomic_load_n(&t->pinned_fences, __ATOMIC_ACQUIRE);
    return e ? (const table_fences *)e->data : NULL;
}

/* The number of the block for `key`, which is not behind the table's largest key; -1: only the index can tell. */
static inline int64_t fences_find(const table_fences *f, const table *t, slice key) {
    if (key.size < f->shared || memcmp(key.data, t->smallest.data, f->shared)) return -1;
    const uint64_t *fence = fences_of(f), wanted = slice_prefix(slice_from(key, f->shared));
    uint32_t length = f->count;
    while (length > 1) { /* the first fence at or behind what is wanted; the last one is behind everything */
        uint32_t half = length / 2;
        fence += fence[half - 1] < wanted ? half : 0;
        length -= half;
    }
    return *fence == wanted ? -1 : fence - fences_of(f);
}

/* The block for `key`; 0: only the index can tell. */
static inline int table_fence(const table *t, slice key, block_handle *h) {
    const table_fences *f = table_fences_of(t);
    int64_t at = f ? fences_find(f, t, key) : -1;
    if (at < 0) return 0;
    *h = f->handles[at];
    return 1;
}

/* 0: certainly not in the table; 1: look; -1: failure. */
static inline int table_may_hold(reader *r, const table *t, uint64_t hash) {
    cache_entry *held, *filter = table_pinned(r, t, t->filter, &t->pinned_filter, &held);
    if (!filter) return -1;
    int result = bloom_is_sound(cache_bytes(filter))
                     ? bloom_may_hold(cache_bytes(filter), hash)
                     : table_fail(r, t, FAILURE_CORRUPT, t->filter.offset, "malformed filter");
    cache_release(held);
    return result;
}

/* A searched-for version and what keeps its bytes alive. */
typedef struct {
    entry found;
    cache_entry *pinned;
} lookup;

static inline void lookup_release(lookup *l) {
    cache_release(l->pinned);
    l->pinned = NULL;
}

/* Seeks in the block that was read from `h`, and takes the reference over; 1 found, 0 the block has nothing at or
 * behind the key, 2 something else lies there, -1 failure. */
static inline int table_get_in_block(reader *r, const table *t, block_handle h, cache_entry *block, slice key,
                                     lookup *l) {
    if (!block) return -1;
    r->blocks_searched++;
    int result = block_get(cache_bytes(block), key, &l->found);
    if (result == BLOCK_EQUAL) {
        l->found.trailer |= t->sequence_bits;
        l->pinned = block;
        return 1;
    }
    cache_release(block);
    if (result < 0) return table_fail(r, t, FAILURE_CORRUPT, h.offset, "malformed block");
    return result == BLOCK_BEHIND ? 2 : 0;
}

/* Where the block is in which `key` would be: 1 known, 0 it is behind the last one, -1 failure. */
static inline int table_locate(reader *r, const table *t, slice key, block_cursor *index_cursor,
                               block_handle *h) {
    if (table_fence(t, key, h)) return 1;
    cache_entry *held, *index = table_pinned(r, t, t->index, &t->pinned_index, &held);
    if (!index) return -1;
    int result;
    if (block_cursor_open(index_cursor, cache_bytes(index)) < 0 || block_seek(index_cursor, key, 0, 0) < 0)
        result = table_index_broken(r, t);
    else
        result = index_cursor->valid ? (table_handle(r, t, index_cursor->value, h) < 0 ? -1 : 1) : 0;
    cache_release(held);
    return result;
}

/* The newest version of `key` in the table, block after block as the index has them: as table_get_in_block. */
static inline int table_get_by_index(reader *r, const table *t, slice key, block_cursor *index_cursor, lookup *l) {
    cache_entry *held, *index = table_pinned(r, t, t->index, &t->pinned_index, &held);
    if (!index) return -1;
    int result = 0;
    if (block_cursor_open(index_cursor, cache_bytes(index)) < 0 || block_seek(index_cursor, key, 0, 0) < 0)
        result = table_index_broken(r, t);
    while (result == 0 && index_cursor->valid) {
        block_handle h;
        result = table_handle(r, t, index_cursor->value, &h);
        if (result == 0) result = table_get_in_block(r, t, h, table_block(r, t, h), key, l);
        if (result == 0 && block_next(index_cursor) < 0) result = table_index_broken(r, t);
    }
    cache_release(held);
    return result == 2 ? 0 : result;
}

/* The newest version of `key`, a key between the table's smallest and largest: 1 found, 0 not there, -1 failure. */
static inline int table_get(reader *r, const table *t, slice key, uint64_t hash, block_cursor *index_cursor,
                            lookup *l) {
    int may_hold = table_may_hold(r, t, hash);
    if (may_hold <= 0) {
        r->filtered += may_hold == 0;
        return may_hold;
    }
    r->searched++;
    block_handle h;
    int result = 0;
    if (table_fence(t, key, &h)) result = table_get_in_block(r, t, h, table_block(r, t, h), key, l);
    if (result == 0) result = table_get_by_index(r, t, key, index_cursor, l);
    r->misled += result == 0 || result == 2;
    return result == 2 ? 0 : result;
}

#endif
