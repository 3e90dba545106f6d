/* The memtable: a skip list of versions in an arena; nothing is ever changed or taken out, everything is
 * freed at once.
 *
 * One thread adds; any number may read at the same time: a node is complete before it is linked, and links
 * are stored with release and loaded with acquire. Links back at the lowest level make a step backwards as
 * cheap as one forwards; a reader that misses a link back to a node just added misses only a version newer
 * than its own sequence. Values are pointed to, so a version that only changes the deadline shares the bytes
 * of the one before it. The first chunk of the arena comes with the first entry: an idle engine costs
 * nothing. */
#ifndef RINGKV_MEMTABLE_H
#define RINGKV_MEMTABLE_H

#include <sys/mman.h>

#include "entry.h"

#define ARENA_CHUNK_FIRST                                                                                    \
    (4u << 10) /* doubles up to the last size: idle engines stay small, busy ones call rarely */
#define ARENA_CHUNK_LAST (1u << 20)
#define ARENA_MAPPED_FROM (128u << 10) /* mapped, not malloc'ed: goes back to the system when it is freed */

#define MEMTABLE_HEIGHT_MAX 12 /* with one in four going up: good for 4^12 entries */

typedef struct arena_chunk {
    struct arena_chunk *before;
    size_t size;
} arena_chunk;

typedef struct memtable_node {
    struct memtable_node *previous;
    const uint8_t *value;
    uint64_t trailer;
    uint64_t deadline;
    uint64_t prefix; /* slice_prefix of the key: most comparisons end here, in the node's first cache line */
    uint32_t key_size;
    uint32_t value_size;
    const uint8_t *key;
    struct memtable_node *next[];
} memtable_node;

typedef struct {
    arena_chunk *chunk;
    uint8_t *free_from;
    uint8_t *free_to;
    size_t bytes; /* all that was taken from the system */
    size_t chunk_next;
    uint64_t random;
    uint64_t count;
    memtable_node *head; /* of full height, before all keys; NULL as long as there are none */
    memtable_node *last;
    int height;
} memtable;

static inline void memtable_free(memtable *m) {
    if (!m) return;
    for (arena_chunk *chunk = m->chunk, *before; chunk; chunk = before) {
        before = chunk->before;
        if (chunk->size >= ARENA_MAPPED_FROM)
            munmap(chunk, chunk->size);
        else
            free(chunk);
    }
    free(m);
}

static inline memtable *memtable_new(void) {
    memtable *m = (memtable *)calloc(1, sizeof *m);
    if (!m) return NULL;
    m->chunk_next = ARENA_CHUNK_FIRST;
    m->random = 0x9e3779b97f4a7c15ull; /* heights need no secret, and equal runs are easier to debug */
    m->height = 1;
    return m;
}

static inline int arena_grow(memtable *m, size_t needed) {
    size_t size = m->chunk_next;
    if (size < ARENA_CHUNK_LAST) m->chunk_next = size * 2;
    if (size < needed + sizeof(arena_chunk)) size = (needed + sizeof(arena_chunk) + 4095) & ~(size_t)4095;
    arena_chunk *chunk;
    if (size >= ARENA_MAPPED_FROM) {
        chunk = (arena_chunk *)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (chunk == MAP_FAILED) return -1;
    } else {
        chunk = (arena_chunk *)malloc(size);
        if (!chunk) return -1;
    }
    chunk->before = m->chunk;
    chunk->size = size;
    m->chunk = chunk;
    m->bytes += size;
    m->free_from = (uint8_t *)(chunk + 1);
    m->free_to = (uint8_t *)chunk + size;
    return 0;
}

static inline void *arena_take(memtable *m, size_t size) {
    size = (size + 7) & ~(size_t)7;
    if ((size_t)(m->free_to - m->free_from) < size && arena_grow(m, size) < 0) return NULL;
    void *taken = m->free_from;
    m->free_from += size;
    return taken;
}

static inline memtable_node *memtable_next(const memtable_node *node, int level) {
    return __atomic_load_n(&node->next[level], __ATOMIC_ACQUIRE);
}

static inline memtable_node *memtable_head(const memtable *m) {
    return __atomic_load_n(&m->head, __ATOMIC_ACQUIRE);
}

static inline slice memtable_key(const memtable_node *node) { return slice_of(node->key, node->key_size); }

/* Whether `node` orders before (prefix, key, trailer); NULL is the end and orders before nothing. */
static inline int memtable_before(const memtable_node *node, uint64_t prefix, slice key, uint64_t trailer) {
    if (!node) return 0;
    if (node->prefix != prefix) return node->prefix < prefix;
    return order_of(memtable_key(node), node->trailer, key, trailer) < 0;
}

/* The first node at or behind (key, trailer). With `path`, also the last node before it at every level. */
static inline memtable_node *memtable_seek(const memtable *m, slice key, uint64_t trailer,
                                           memtable_node **path) {
    memtable_node *node = memtable_head(m), *next = NULL, *passed = NULL;
    if (!node) return NULL;
    uint64_t prefix = slice_prefix(key);
    for (int level = __atomic_load_n(&m->height, __ATOMIC_RELAXED) - 1; level >= 0; level--) {
        next = memtable_next(node, level);
        while (next != passed && memtable_before(next, prefix, key, trailer)) {
            node = next;
            next = memtable_next(node, level);
        }
        passed = next; /* known not to be before: need not be compared again one level down */
        if (path) path[level] = node;
    }
    return next;
}

/* The last node before (key, trailer), NULL if there is none. */
static inline memtable_node *memtable_seek_before(const memtable *m, slice key, uint64_t trailer) {
    memtable_node *path[MEMTABLE_HEIGHT_MAX], *head = memtable_head(m);
    if (!head) return NULL;
    memtable_seek(m, key, trailer, path);
    return path[0] == head ? NULL : path[0];
}

static inline memtable_node *memtable_first(const memtable *m) {
    memtable_node *head = memtable_head(m);
    return head ? memtable_next(head, 0) : NULL;
}

static inline memtable_node *memtable_last(const memtable *m) {
    return __atomic_load_n(&m->last, __ATOMIC_ACQUIRE);
}

static inline memtable_node *memtable_previous(const memtable *m, const memtable_node *node) {
    memtable_node *previous = __atomic_load_n(&node->previous, __ATOMIC_ACQUIRE);
    return previous == m->head ? NULL : previous;
}

static inline int memtable_random_height(memtable *m) {
    m->random ^= m->random << 13;
    m->random ^= m->random >> 7;
    m->random ^= m->random << 17;
    int height = 1;
    for (uint64_t bits = m->random; height < MEMTABLE_HEIGHT_MAX && (bits & 3) == 0; bits >>= 2)
        height++;
    return height;
}

static inline memtable_node *memtable_make_node(memtable *m, int height, slice key) {
    size_t links = (size_t)height * sizeof(memtable_node *);
    memtable_node *node = (memtable_node *)arena_take(m, sizeof(memtable_node) + links + key.size);
    if (!node) return NULL;
    uint8_t *key_at = (uint8_t *)node + sizeof(memtable_node) + links;
    if (key.size) memcpy(key_at, key.data, key.size);
    node->key = key_at;
    node->key_size = (uint32_t)key.size;
    node->prefix = slice_prefix(key);
    return node;
}

static inline int memtable_make_head(memtable *m) {
    memtable_node *head = memtable_make_node(m, MEMTABLE_HEIGHT_MAX, slice_of(NULL, 0));
    if (!head) return -1;
    memset(head->next, 0, MEMTABLE_HEIGHT_MAX * sizeof(memtable_node *));
    head->previous = NULL;
    __atomic_store_n(&m->head, head, __ATOMIC_RELEASE); /* a reader may look already */
    return 0;
}

/* Adds a version; its (key, sequence) must be new. With `shared_value` the value already lives in this
 * memtable. Returns -1 only when memory runs out, with nothing changed. */
static inline int memtable_add(memtable *m, const entry *e, int shared_value) {
    if (!m->head && memtable_make_head(m) < 0) return -1;
    memtable_node *path[MEMTABLE_HEIGHT_MAX];
    int height = memtable_random_height(m);
    const uint8_t *value = e->value.data;
    if (!shared_value && e->value.size) {
        uint8_t *copy = (uint8_t *)arena_take(m, e->value.size);
        if (!copy) return -1;
        memcpy(copy, e->value.data, e->value.size);
        value = copy;
    }
    memtable_node *node = memtable_make_node(m, height, e->key);
    if (!node) return -1;
    node->value = value;
    node->value_size = (uint32_t)e->value.size;
    node->trailer = e->trailer;
    node->deadline = e->deadline;
    memtable_node *behind = memtable_seek(m, e->key, e->trailer, path);
    for (int level = m->height; level < height; level++)
        path[level] = m->head;
    if (m->height < height) __atomic_store_n(&m->height, height, __ATOMIC_RELAXED);
    node->previous = path[0];
    for (int level = 0; level < height; level++) {
        node->next[level] = path[level]->next[level];
        __atomic_store_n(&path[level]->next[level], node, __ATOMIC_RELEASE);
    }
    if (behind)
        __atomic_store_n(&behind->previous, node, __ATOMIC_RELEASE);
    else
        __atomic_store_n(&m->last, node, __ATOMIC_RELEASE);
    m->count++;
    return 0;
}

static inline void memtable_entry(const memtable_node *node, entry *e) {
    e->key = memtable_key(node);
    e->trailer = node->trailer;
    e->value = slice_of(node->value, node->value_size);
    e->deadline = node->deadline;
}

/* The newest version of `key` whose sequence is at most `sequence`; 0 if the memtable has none. */
static inline int memtable_get(const memtable *m, slice key, uint64_t sequence, entry *e) {
    memtable_node *node = memtable_seek(m, key, sequence << 8 | 0xff, NULL);
    if (!node || !slice_equal(memtable_key(node), key)) return 0;
    memtable_entry(node, e);
    return 1;
}

#endif
