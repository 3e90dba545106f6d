/* The block cache: checked blocks of all tables of a process (data, index and filter alike) within a budget of
 * bytes. Keyed by a number that is unique per opened table, and the block's offset.
 *
 * The map is one array of small slots, so that a lookup or the search for what goes next looks at memory that is
 * near; an entry itself is only touched by those who want its bytes. Out goes what was not used since the hand of a
 * clock came by last: a hit writes one byte, and what a scan reads once does not stay. The memory of what goes is
 * kept for what comes.
 *
 * An entry is counted: one reference for the cache while it is in it, one for each reader. A reader's bytes
 * stay valid until it releases, however full the cache is. Any thread; the lock covers the map, never a read. */
#ifndef RINGKV_CACHE_H
#define RINGKV_CACHE_H

#include <pthread.h>

#include "bytes.h"

#define CACHE_SLOTS_FIRST 64
#define CACHE_SPARE_CLASS_BYTES 256
#define CACHE_SPARE_CLASSES 64               /* larger blocks are few, and their memory is given back */
#define CACHE_SPARE_BYTES_MAX (256u << 10) /* at most this is kept: what a few readers need between them */

typedef struct cache_entry {
    struct cache_entry *next_spare;
    uint64_t table;
    uint64_t offset;
    uint32_t references;
    uint32_t size;
    uint32_t capacity; /* of its memory, this included */
    uint8_t data[] __attribute__((aligned(64))); /* a filter's lines are cache lines */
} cache_entry;

typedef struct {
    uint64_t table;
    uint64_t offset;
    cache_entry *entry; /* NULL: free */
    uint32_t charge;
    uint32_t size : 31;
    uint32_t used : 1;
} cache_slot;

typedef struct {
    pthread_mutex_t lock;
    cache_slot *slots;
    size_t mask; /* slots - 1; their number is a power of two */
    size_t hand;
    size_t entries;
    size_t bytes;  /* with the pinned ones */
    size_t pinned;
    size_t budget;
    cache_entry *spares[CACHE_SPARE_CLASSES];
    size_t spare_bytes;
    uint64_t hits;
    uint64_t misses;
    uint64_t evictions;
} cache;

static inline size_t cache_charge(const cache_entry *e) { return e->capacity; }

static inline slice cache_bytes(const cache_entry *e) { return slice_of(e->data, e->size); }

static inline cache *cache_new(size_t budget) {
    cache *c = (cache *)calloc(1, sizeof *c);
    if (!c) return NULL;
    c->slots = (cache_slot *)calloc(CACHE_SLOTS_FIRST, sizeof *c->slots);
    if (!c->slots) {
        free(c);
        return NULL;
    }
    c->mask = CACHE_SLOTS_FIRST - 1;
    c->budget = budget;
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

/* An entry for a reader; `c` may be NULL. NULL if memory ran out. */
static inline cache_entry *cache_entry_new(cache *c, uint64_t table, uint64_t offset, size_t size) {
    if (size > INT32_MAX - 4096) return NULL;
    size_t class = (sizeof(cache_entry) + size + CACHE_SPARE_CLASS_BYTES - 1) / CACHE_SPARE_CLASS_BYTES;
    size_t capacity = class * CACHE_SPARE_CLASS_BYTES;
    cache_entry *e = NULL;
    if (c && class < CACHE_SPARE_CLASSES && __atomic_load_n(&c->spares[class], __ATOMIC_RELAXED)) {
        pthread_mutex_lock(&c->lock);
        if ((e = c->spares[class]) != NULL) {
            c->spares[class] = e->next_spare;
            c->spare_bytes -= capacity;
        }
        pthread_mutex_unlock(&c->lock);
    }
    void *memory = e;
    if (!e && posix_memalign(&memory, 64, capacity)) return NULL;
    e = (cache_entry *)memory;
    e->next_spare = NULL;
    e->table = table;
    e->offset = offset;
    e->references = 1;
    e->size = (uint32_t)size;
    e->capacity = (uint32_t)capacity;
    return e;
}

static inline void cache_release(cache_entry *e) {
    if (e && __atomic_sub_fetch(&e->references, 1, __ATOMIC_ACQ_REL) == 0) free(e);
}

/* Gives the cache's reference up, under the lock; memory that nobody holds is kept for the next entry. */
static inline void cache_retire(cache *c, cache_entry *e) {
    if (__atomic_sub_fetch(&e->references, 1, __ATOMIC_ACQ_REL)) return;
    size_t class = e->capacity / CACHE_SPARE_CLASS_BYTES;
    if (class >= CACHE_SPARE_CLASSES || c->spare_bytes + e->capacity > CACHE_SPARE_BYTES_MAX) {
        free(e);
        return;
    }
    e->next_spare = c->spares[class];
    __atomic_store_n(&c->spares[class], e, __ATOMIC_RELAXED);
    c->spare_bytes += e->capacity;
}

static inline void cache_free(cache *c) {
    if (!c) return;
    for (size_t at = 0; at <= c->mask; at++)
        if (c->slots[at].entry) cache_release(c->slots[at].entry);
    for (size_t class = 0; class < CACHE_SPARE_CLASSES; class++) {
        for (cache_entry *e = c->spares[class], *next; e; e = next) {
            next = e->next_spare;
            free(e);
        }
    }
    pthread_mutex_destroy(&c->lock);
    free(c->slots);
    free(c);
}

static inline size_t cache_home(uint64_t table, uint64_t offset, size_t mask) {
    uint64_t mixed = (table * 0x9e3779b97f4a7c15ull ^ offset) * 0xff51afd7ed558ccdull;
    return (size_t)(mixed >> 32) & mask;
}

/* The slot of a block, or the free one where it would be put. */
static inline cache_slot *cache_lookup(cache *c, uint64_t table, uint64_t offset) {
    size_t at = cache_home(table, offset, c->mask);
    cache_slot *s = &c->slots[at];
    while (s->entry && (s->offset != offset || s->table != table))
        s = &c->slots[at = (at + 1) & c->mask];
    return s;
}

/* Has what cache_find will look at first fetched. Without the lock: if the slots are replaced meanwhile, it is an
 * address that is no more, or another slot, and fetching that does no harm. */
static inline void cache_prefetch(const cache *c, uint64_t table, uint64_t offset) {
    size_t mask = __atomic_load_n(&c->mask, __ATOMIC_RELAXED);
    __builtin_prefetch(__atomic_load_n(&c->slots, __ATOMIC_RELAXED) + cache_home(table, offset, mask));
}

/* Takes an entry out of the map; its reference goes to the caller. Those behind it move up, so that no search ends
 * too early (Knuth, The Art of Computer Programming 3, section 6.4, algorithm R). */
static inline cache_entry *cache_take(cache *c, cache_slot *s) {
    cache_entry *e = s->entry;
    size_t hole = (size_t)(s - c->slots), at = hole;
    c->entries--;
    c->bytes -= s->charge;
    for (;;) {
        at = (at + 1) & c->mask;
        cache_slot *other = &c->slots[at];
        if (!other->entry) break;
        size_t home = cache_home(other->table, other->offset, c->mask);
        if (((at - home) & c->mask) >= ((at - hole) & c->mask)) {
            c->slots[hole] = *other;
            hole = at;
        }
    }
    c->slots[hole].entry = NULL;
    return e;
}

static inline void cache_grow(cache *c) {
    size_t count = 2 * (c->mask + 1);
    cache_slot *slots = (cache_slot *)calloc(count, sizeof *slots), *old = c->slots;
    if (!slots) return; /* tried again with the next entry */
    for (size_t at = 0; at <= c->mask; at++) {
        if (!old[at].entry) continue;
        size_t to = cache_home(old[at].table, old[at].offset, count - 1);
        while (slots[to].entry)
            to = (to + 1) & (count - 1);
        slots[to] = old[at];
    }
    __atomic_store_n(&c->slots, slots, __ATOMIC_RELAXED);
    __atomic_store_n(&c->mask, count - 1, __ATOMIC_RELAXED);
    free(old);
}

/* The entry with a reference for the caller, or NULL. */
static inline cache_entry *cache_find(cache *c, uint64_t table, uint64_t offset) {
    pthread_mutex_lock(&c->lock);
    cache_slot *s = cache_lookup(c, table, offset);
    cache_entry *e = s->entry;
    if (e) {
        __builtin_prefetch(e->data + s->size - 4); /* the restarts; counting waits for another line */
        __atomic_add_fetch(&e->references, 1, __ATOMIC_RELAXED);
        s->used = 1;
        c->hits++;
    } else {
        c->misses++;
    }
    pthread_mutex_unlock(&c->lock);
    return e;
}

/* Ends: each step takes an entry out or a mark away that nobody sets meanwhile, or passes a free slot. */
static inline void cache_evict(cache *c) {
    while (c->bytes > c->budget && c->entries) {
        cache_slot *s = &c->slots[c->hand & c->mask];
        if (s->entry && !s->used) {
            cache_retire(c, cache_take(c, s)); /* another one may have moved up: the hand stays */
            c->evictions++;
        } else {
            s->used = 0;
            c->hand++;
        }
    }
}

/* Puts an entry in, unless another reader was faster; the caller keeps its own reference either way. */
static inline void cache_insert(cache *c, cache_entry *e) {
    pthread_mutex_lock(&c->lock);
    if (4 * (c->entries + 1) > 3 * (c->mask + 1)) cache_grow(c);
    cache_slot *s = cache_lookup(c, e->table, e->offset);
    if (!s->entry && c->entries < c->mask) {
        __atomic_add_fetch(&e->references, 1, __ATOMIC_RELAXED);
        *s = (cache_slot){e->table, e->offset, e, (uint32_t)cache_charge(e), e->size, 0};
        c->entries++;
        c->bytes += s->charge;
        cache_evict(c);
    }
    pthread_mutex_unlock(&c->lock);
}

/* Whether an entry fits without another one having to go. */
static inline int cache_has_room(cache *c, const cache_entry *e) {
    pthread_mutex_lock(&c->lock);
    int fits = c->bytes + cache_charge(e) <= c->budget;
    pthread_mutex_unlock(&c->lock);
    return fits;
}

/* Gives the cache's own reference of an entry to the caller, who keeps the entry until cache_unpin; it counts
 * against the budget all the same, and half the budget may go that way. 0: it stays as it is. */
static inline int cache_pin(cache *c, cache_entry *e) {
    pthread_mutex_lock(&c->lock);
    size_t charge = cache_charge(e);
    cache_slot *s = cache_lookup(c, e->table, e->offset);
    int fits = c->pinned + charge <= c->budget / 2 && s->entry == e;
    if (fits) {
        cache_take(c, s);
        c->bytes += charge;
        c->pinned += charge;
    }
    pthread_mutex_unlock(&c->lock);
    return fits;
}

/* Counts an entry that was never in the map as a pinned one, if there is room for it; else 0. */
static inline int cache_pin_new(cache *c, cache_entry *e) {
    pthread_mutex_lock(&c->lock);
    int fits = c->pinned + cache_charge(e) <= c->budget / 2;
    if (fits) {
        c->bytes += cache_charge(e);
        c->pinned += cache_charge(e);
        cache_evict(c);
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
    for (size_t at = 0; at <= c->mask;) {
        cache_slot *s = &c->slots[at];
        if (s->entry && s->table == table)
            cache_retire(c, cache_take(c, s)); /* another one may have moved up: look again */
        else
            at++;
    }
    pthread_mutex_unlock(&c->lock);
}

#endif
