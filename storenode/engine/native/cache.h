/* The block cache: checked blocks of all tables of a process (data, index and filter alike) within a budget of
 * bytes; out first is the oldest that was not used since it was looked at last (second chance): a hit writes
 * one word, and what a scan reads once does not stay. Keyed by a number that is unique per opened table, and
 * the block's offset.
 *
 * An entry is counted: one reference for the cache while it is in it, one for each reader. A reader's bytes
 * stay valid until it releases, however full the cache is. Any thread; the lock covers the map and the order,
 * never a read. */
#ifndef RINGKV_CACHE_H
#define RINGKV_CACHE_H

#include <pthread.h>

#include "bytes.h"

#define CACHE_BUCKETS_FIRST 64

typedef struct cache_entry {
    struct cache_entry *chain;
    struct cache_entry *newer;
    struct cache_entry *older;
    uint64_t table;
    uint64_t offset;
    uint32_t references;
    uint32_t size;
    int used;
    uint8_t data[] __attribute__((aligned(64))); /* a filter's lines are cache lines */
} cache_entry;

typedef struct {
    pthread_mutex_t lock;
    cache_entry **buckets;
    size_t bucket_count; /* a power of two */
    size_t entries;
    size_t bytes;  /* with the pinned ones */
    size_t pinned;
    size_t budget;
    cache_entry *newest;
    cache_entry *oldest;
    uint64_t hits;
    uint64_t misses;
    uint64_t evictions;
} cache;

static inline size_t cache_charge(const cache_entry *e) { return sizeof *e + e->size; }

static inline slice cache_bytes(const cache_entry *e) { return slice_of(e->data, e->size); }

static inline cache_entry *cache_entry_new(uint64_t table, uint64_t offset, size_t size) {
    void *memory;
    if (size > UINT32_MAX - 4096 || posix_memalign(&memory, 64, sizeof(cache_entry) + size)) return NULL;
    cache_entry *e = (cache_entry *)memory;
    memset(e, 0, sizeof *e);
    e->table = table;
    e->offset = offset;
    e->references = 1;
    e->size = (uint32_t)size;
    return e;
}

static inline void cache_release(cache_entry *e) {
    if (e && __atomic_sub_fetch(&e->references, 1, __ATOMIC_ACQ_REL) == 0) free(e);
}

static inline cache *cache_new(size_t budget) {
    cache *c = (cache *)calloc(1, sizeof *c);
    if (!c) return NULL;
    c->buckets = (cache_entry **)calloc(CACHE_BUCKETS_FIRST, sizeof *c->buckets);
    if (!c->buckets) {
        free(c);
        return NULL;
    }
    c->bucket_count = CACHE_BUCKETS_FIRST;
    c->budget = budget;
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

static inline size_t cache_slot(const cache *c, uint64_t table, uint64_t offset) {
    uint64_t mixed = (table * 0x9e3779b97f4a7c15ull ^ offset) * 0xff51afd7ed558ccdull;
    return (size_t)(mixed >> 32) & (c->bucket_count - 1);
}

static inline void cache_link_newest(cache *c, cache_entry *e) {
    e->newer = NULL;
    e->older = c->newest;
    if (c->newest) c->newest->newer = e;
    c->newest = e;
    if (!c->oldest) c->oldest = e;
}

static inline void cache_unlink(cache *c, cache_entry *e) {
    if (e->newer)
        e->newer->older = e->older;
    else
        c->newest = e->older;
    if (e->older)
        e->older->newer = e->newer;
    else
        c->oldest = e->newer;
}

/* Out of the map and the order; the cache's reference goes with it. */
static inline void cache_drop(cache *c, cache_entry *e) {
    cache_entry **at = &c->buckets[cache_slot(c, e->table, e->offset)];
    while (*at != e)
        at = &(*at)->chain;
    *at = e->chain;
    cache_unlink(c, e);
    c->entries--;
    c->bytes -= cache_charge(e);
    cache_release(e);
}

static inline void cache_free(cache *c) {
    if (!c) return;
    while (c->oldest)
        cache_drop(c, c->oldest);
    pthread_mutex_destroy(&c->lock);
    free(c->buckets);
    free(c);
}

static inline void cache_grow(cache *c) {
    size_t count = c->bucket_count * 2;
    cache_entry **buckets = (cache_entry **)calloc(count, sizeof *buckets);
    if (!buckets) return; /* longer chains, nothing worse */
    free(c->buckets);
    c->buckets = buckets;
    c->bucket_count = count;
    for (cache_entry *e = c->newest; e; e = e->older) {
        cache_entry **slot = &c->buckets[cache_slot(c, e->table, e->offset)];
        e->chain = *slot;
        *slot = e;
    }
}

static inline cache_entry *cache_lookup(cache *c, uint64_t table, uint64_t offset) {
    cache_entry *e = c->buckets[cache_slot(c, table, offset)];
    while (e && (e->offset != offset || e->table != table))
        e = e->chain;
    return e;
}

/* Has what cache_find will look at first fetched. Without the lock: if the buckets are replaced meanwhile, it is an
 * address that is no more, or another slot, and fetching that does no harm. */
static inline void cache_prefetch(const cache *c, uint64_t table, uint64_t offset) {
    __builtin_prefetch(__atomic_load_n(&c->buckets, __ATOMIC_RELAXED) + cache_slot(c, table, offset));
}

/* The entry with a reference for the caller, or NULL. */
static inline cache_entry *cache_find(cache *c, uint64_t table, uint64_t offset) {
    pthread_mutex_lock(&c->lock);
    cache_entry *e = cache_lookup(c, table, offset);
    if (e) {
        __atomic_add_fetch(&e->references, 1, __ATOMIC_RELAXED);
        e->used = 1;
        c->hits++;
    } else {
        c->misses++;
    }
    pthread_mutex_unlock(&c->lock);
    return e;
}

/* Ends: each step drops an entry or takes a mark away that nobody sets meanwhile. */
static inline void cache_evict(cache *c) {
    while (c->bytes > c->budget && c->oldest) {
        cache_entry *e = c->oldest;
        if (e->used) {
            e->used = 0;
            cache_unlink(c, e);
            cache_link_newest(c, e);
        } else {
            cache_drop(c, e);
            c->evictions++;
        }
    }
}

/* Puts an entry in, unless another reader was faster; the caller keeps its own reference either way. */
static inline void cache_insert(cache *c, cache_entry *e) {
    pthread_mutex_lock(&c->lock);
    if (!cache_lookup(c, e->table, e->offset)) {
        if (c->entries >= c->bucket_count) cache_grow(c);
        cache_entry **slot = &c->buckets[cache_slot(c, e->table, e->offset)];
        e->chain = *slot;
        *slot = e;
        __atomic_add_fetch(&e->references, 1, __ATOMIC_RELAXED);
        cache_link_newest(c, e);
        c->entries++;
        c->bytes += cache_charge(e);
        cache_evict(c);
    }
    pthread_mutex_unlock(&c->lock);
}

/* Gives the cache's own reference of an entry to the caller, who keeps the entry until cache_unpin; it counts
 * against the budget all the same, and half the budget may go that way. 0: it stays as it is. */
static inline int cache_pin(cache *c, cache_entry *e) {
    pthread_mutex_lock(&c->lock);
    size_t charge = cache_charge(e);
    int fits = c->pinned + charge <= c->budget / 2 && cache_lookup(c, e->table, e->offset) == e;
    if (fits) {
        __atomic_add_fetch(&e->references, 1, __ATOMIC_RELAXED);
        cache_drop(c, e);
        c->bytes += charge;
        c->pinned += charge;
    }
    pthread_mutex_unlock(&c->lock);
    return fits;
}

static inline void cache_unpin(cache *c, cache_entry *e) {
    if (!e) return;
    pthread_mutex_lock(&c->lock);
    c->bytes -= cache_charge(e);
    c->pinned -= cache_charge(e);
    pthread_mutex_unlock(&c->lock);
    cache_release(e);
}

/* Forgets all blocks of a table that nobody will ask for again. */
static inline void cache_forget(cache *c, uint64_t table) {
    pthread_mutex_lock(&c->lock);
    for (cache_entry *e = c->newest, *older; e; e = older) {
        older = e->older;
        if (e->table == table) cache_drop(c, e);
    }
    pthread_mutex_unlock(&c->lock);
}

#endif
