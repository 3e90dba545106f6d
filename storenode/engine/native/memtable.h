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
#define ARENA_CHUNK_LAST (2u << 20) /* aligned to its size: one huge page, which spares searches most TLB misses */
#define ARENA_MAPPED_FROM (128u << 10) /* mapped, not malloc'ed: goes back to the system when it is freed */

#define MEMTABLE_HEIGHT_MAX 12 /* with one in four going up: good for 4^12 entries */

typedef struct arena_chunk {
    struct arena_chunk *before;
    size_t size;
} arena_chunk;

/* In the arena the links forward lie in front of the node, the lowest one nearest, and the key behind it: so
 * what a search looks at (links, prefixes) is together, mostly in one cache line. */
typedef struct memtable_node {
    uint64_t prefix; /* slice_prefix of the key, and of what is behind: most comparisons end here */
    uint64_t second_prefix;
    uint64_t trailer;
    uint32_t key_size;
    uint32_t value_size;
    struct memtable_node *previous;
    const uint8_t *value;
    uint64_t deadline;
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
    memtable_node *tails[MEMTABLE_HEIGHT_MAX]; /* the last node of each level; keys often come in order */
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

static inline void *arena_map(size_t size) {
    size_t slack = size >= ARENA_CHUNK_LAST ? ARENA_CHUNK_LAST : 0;
    uint8_t *from = (uint8_t *)mmap(NULL, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (from == MAP_FAILED) return NULL;
    if (!slack) return from;
    size_t before = (size_t)(-(uintptr_t)from & (slack - 1));
    if (before) munmap(from, before);
    munmap(from + before + size, slack - before);
    madvise(from + before, size, MADV_HUGEPAGE);
    return from + before;
}

static inline int arena_grow(memtable *m, size_t needed) {
    size_t size = m->chunk_next;
    if (size < ARENA_CHUNK_LAST) m->chunk_next = size * 2;
    if (size < needed + sizeof(arena_chunk)) size = (needed + sizeof(arena_chunk) + 4095) & ~(size_t)4095;
    arena_chunk *chunk;
    if (size >= ARENA_MAPPED_FROM) {
        chunk = (arena_chunk *)arena_map(size);
    } else {
        chunk = (arena_chunk *)malloc(size);
    }
    if (!chunk) return -1;
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

static inline memtable_node **memtable_link(const memtable_node *node, int level) {
    return (memtable_node **)node - 1 - level;
}

static inline memtable_node *memtable_next(const memtable_node *node, int level) {
    return __atomic_load_n(memtable_link(node, level), __ATOMIC_ACQUIRE);
}

static inline memtable_node *memtable_head(const memtable *m) {
    return __atomic_load_n(&m->head, __ATOMIC_ACQUIRE);
}

static inline slice memtable_key(const memtable_node *node) { return slice_of(node + 1, node->key_size); }

/* A (key, trailer) to search for. */
typedef struct {
    uint64_t prefix, second_prefix, trailer;
    slice key;
} memtable_target;

#define MEMTABLE_PREFIX_BYTES 8

static inline memtable_target memtable_target_of(slice key, uint64_t trailer) {
    memtable_target t = {slice_prefix(key), 0, trailer, key};
    if (key.size > MEMTABLE_PREFIX_BYTES)
        t.second_prefix =
            slice_prefix(slice_of(key.data + MEMTABLE_PREFIX_BYTES, key.size - MEMTABLE_PREFIX_BYTES));
    return t;
}

/* Whether `node` orders before the target; NULL is the end and orders before nothing. */
static inline int memtable_before(const memtable_node *node, const memtable_target *t) {
    if (!node) return 0;
    if (node->prefix != t->prefix) return node->prefix < t->prefix;
    if (node->second_prefix != t->second_prefix) return node->second_prefix < t->second_prefix;
    if (node->key_size <= 2 * MEMTABLE_PREFIX_BYTES && node->key_size == t->key.size)
        return node->trailer > t->trailer;
    return order_of(memtable_key(node), node->trailer, t->key, t->trailer) < 0;
}

/* The first node at or behind the target. With `path`, also the last node before it at every level. */
static inline memtable_node *memtable_seek_target(const memtable *m, const memtable_target *t,
                                                  memtable_node **path) {
    memtable_node *node = memtable_head(m), *next = NULL, *passed = NULL;
    if (!node) return NULL;
    for (int level = __atomic_load_n(&m->height, __ATOMIC_RELAXED) - 1; level >= 0; level--) {
        next = memtable_next(node, level);
        if (level) __builtin_prefetch(memtable_next(node, level - 1)); /* is looked at next, unless we go on */
        while (next != passed && memtable_before(next, t)) {
            node = next;
            next = memtable_next(node, level);
            if (level) __builtin_prefetch(memtable_next(node, level - 1));
        }
        passed = next; /* known not to be before: need not be compared again one level down */
        if (path) path[level] = node;
    }
    return next;
}

static inline memtable_node *memtable_seek(const memtable *m, slice key, uint64_t trailer,
                                           memtable_node **path) {
    memtable_target t = memtable_target_of(key, trailer);
    return memtable_seek_target(m, &t, path);
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

static inline size_t memtable_node_bytes(int height, size_t key_size) {
    return (size_t)height * sizeof(memtable_node *) + sizeof(memtable_node) + key_size;
}

/* Whether an entry of these sizes fits without memory from the system. */
static inline int memtable_has_room(const memtable *m, size_t key_size, size_t value_size) {
    size_t needed = memtable_node_bytes(MEMTABLE_HEIGHT_MAX, key_size) + value_size + 16; /* rounded up twice */
    return m->head && (size_t)(m->free_to - m->free_from) >= needed;
}

static inline memtable_node *memtable_make_node(memtable *m, int height, const memtable_target *t) {
    memtable_node **links = (memtable_node **)arena_take(m, memtable_node_bytes(height, t->key.size));
    if (!links) return NULL;
    memtable_node *node = (memtable_node *)(links + height);
    node->prefix = t->prefix;
    node->second_prefix = t->second_prefix;
    node->trailer = t->trailer;
    node->key_size = (uint32_t)t->key.size;
    if (t->key.size) memcpy(node + 1, t->key.data, t->key.size);
    return node;
}

static inline int memtable_make_head(memtable *m) {
    memtable_target nothing = memtable_target_of(slice_of(NULL, 0), 0);
    memtable_node *head = memtable_make_node(m, MEMTABLE_HEIGHT_MAX, &nothing);
    if (!head) return -1;
    for (int level = 0; level < MEMTABLE_HEIGHT_MAX; level++) {
        *memtable_link(head, level) = NULL;
        m->tails[level] = head;
    }
    head->previous = NULL;
    __atomic_store_n(&m->head, head, __ATOMIC_RELEASE); /* a reader may look already */
    return 0;
}

/* A version that is being added: its node, and how far the search for its place has come. */
typedef struct {
    memtable_target target;
    memtable_node *node;
    int height;
    int level;
    memtable_node *at, *next, *passed;
    memtable_node *path[MEMTABLE_HEIGHT_MAX];
} memtable_insert;

/* Makes the node of a version, which nobody sees yet. With `shared_value` the value already lives in this memtable.
 * -1 when memory runs out. */
static inline int memtable_insert_begin(memtable *m, const entry *e, int shared_value, memtable_insert *i) {
    if (!m->head && memtable_make_head(m) < 0) return -1;
    const uint8_t *value = e->value.data;
    if (!shared_value && e->value.size) {
        uint8_t *copy = (uint8_t *)arena_take(m, e->value.size);
        if (!copy) return -1;
        memcpy(copy, e->value.data, e->value.size);
        value = copy;
    }
    i->target = memtable_target_of(e->key, e->trailer);
    i->height = memtable_random_height(m);
    i->node = memtable_make_node(m, i->height, &i->target);
    if (!i->node) return -1;
    i->node->value = value;
    i->node->value_size = (uint32_t)e->value.size;
    i->node->deadline = e->deadline;
    return 0;
}

/* Links the node in behind the nodes of `path`. */
static inline void memtable_insert_end(memtable *m, memtable_insert *i, memtable_node **path) {
    memtable_node *node = i->node, *behind = memtable_next(path[0], 0);
    for (int level = m->height; level < i->height; level++)
        path[level] = m->head;
    if (m->height < i->height) __atomic_store_n(&m->height, i->height, __ATOMIC_RELAXED);
    node->previous = path[0];
    for (int level = 0; level < i->height; level++) {
        memtable_node **link = memtable_link(path[level], level), *next = *link;
        *memtable_link(node, level) = next;
        __atomic_store_n(link, node, __ATOMIC_RELEASE);
        if (!next) m->tails[level] = node;
    }
    if (behind)
        __atomic_store_n(&behind->previous, node, __ATOMIC_RELEASE);
    else
        __atomic_store_n(&m->last, node, __ATOMIC_RELEASE);
    m->count++;
}

/* Links the node in where it belongs. */
static inline void memtable_insert_seek(memtable *m, memtable_insert *i) {
    if (memtable_before(m->last, &i->target)) {
        memtable_insert_end(m, i, m->tails);
        return;
    }
    memtable_seek_target(m, &i->target, i->path);
    memtable_insert_end(m, i, i->path);
}

/* Adds a version; its (key, sequence) must be new. See memtable_insert_begin; on failure nothing has changed. */
static inline int memtable_add(memtable *m, const entry *e, int shared_value) {
    memtable_insert i;
    if (memtable_insert_begin(m, e, shared_value, &i) < 0) return -1;
    memtable_insert_seek(m, &i);
    return 0;
}

#define MEMTABLE_GROUP 16 /* searches at once: what one waits for is as good as there when it is its turn again */

/* memtable_seek_target for many at once, a step of each in turn. */
static inline void memtable_seek_group(const memtable *m, memtable_insert **seeking, size_t count) {
    for (size_t at = 0; at < count; at++) {
        memtable_insert *i = seeking[at];
        i->level = m->height - 1;
        i->at = m->head;
        i->next = memtable_next(i->at, i->level);
        i->passed = NULL;
        for (int level = m->height; level < i->height; level++) /* another one may make the list higher */
            i->path[level] = m->head;
    }
    while (count) {
        for (size_t at = 0; at < count; at++) {
            memtable_insert *i = seeking[at];
            if (i->next != i->passed && memtable_before(i->next, &i->target)) {
                i->at = i->next;
            } else {
                i->passed = i->next;
                i->path[i->level] = i->at;
                if (i->level == 0) {
                    seeking[at--] = seeking[--count];
                    continue;
                }
                i->level--;
            }
            i->next = memtable_next(i->at, i->level);
            __builtin_prefetch(i->next);
        }
    }
}

/* memtable_add for up to MEMTABLE_GROUP versions, whose values are copied. */
static inline int memtable_add_group(memtable *m, const entry *entries, size_t count) {
    memtable_insert inserts[MEMTABLE_GROUP], *seeking[MEMTABLE_GROUP];
    size_t sought = 0;
    for (size_t at = 0; at < count; at++) {
        memtable_insert *i = &inserts[at];
        if (memtable_insert_begin(m, &entries[at], 0, i) < 0) return -1;
        i->at = NULL;
        if (!memtable_before(m->last, &i->target)) seeking[sought++] = i;
    }
    memtable_seek_group(m, seeking, sought);
    for (size_t at = 0; at < count; at++) {
        memtable_insert *i = &inserts[at];
        if (!i->at) {
            memtable_insert_seek(m, i);
            continue;
        }
        for (int level = 0; level < i->height && level < m->height; level++) { /* others may have come between */
            memtable_node *next, **from = &i->path[level];
            while (memtable_before(next = memtable_next(*from, level), &i->target))
                *from = next;
        }
        memtable_insert_end(m, i, i->path);
    }
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
