/* The open files of tables, bounded for all engines of a process: a descriptor is opened when it is read from, and
 * over the bound the oldest is closed that was not read from since it was looked at last (second chance), never
 * one that is being read from.
 *
 * A read costs two atomic additions to the handle's own word and no lock: it counts itself in, and is sure of the
 * descriptor unless the word says that it is closed. Whoever closes says so first, which succeeds only while nobody
 * is counted in. The lock covers opening, closing and the order; it is never held while somebody waits for the
 * interpreter. */
#ifndef RINGKV_HANDLES_H
#define RINGKV_HANDLES_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define HANDLE_READERS 0xffffull         /* low bits of the word: who reads just now */
#define HANDLE_READ ((1ull << 16) | 1)   /* above them: reads since it was opened, enough for years */
#define HANDLE_CLOSED (1ull << 63)

struct handles;

typedef struct handle {
    struct handles *pool;      /* NULL: stays open */
    int (*open)(void *owner);  /* a new descriptor, or a negative errno; called without the lock */
    void *owner;
    uint64_t word;
    uint64_t seen; /* the reads when it was looked at last */
    int fd;
    struct handle *newer, *older; /* among the open ones */
} handle;

typedef struct handles {
    pthread_mutex_t lock;
    size_t open;
    size_t most;
    handle *newest, *oldest;
    uint64_t reads; /* by handles that were closed since */
    uint64_t reopened;
    uint64_t evicted;
} handles;

static inline handles *handles_new(size_t most) {
    handles *p = (handles *)calloc(1, sizeof *p);
    if (!p) return NULL;
    p->most = most;
    pthread_mutex_init(&p->lock, NULL);
    return p;
}

static inline void handles_free(handles *p) {
    if (!p) return;
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static inline uint64_t handle_reads(uint64_t word) { return (word & ~HANDLE_CLOSED) >> 16; }

static inline void handles_link(handles *p, handle *h) {
    h->newer = NULL;
    h->older = p->newest;
    if (p->newest) p->newest->newer = h;
    p->newest = h;
    if (!p->oldest) p->oldest = h;
}

static inline void handles_unlink(handles *p, handle *h) {
    if (h->newer)
        h->newer->older = h->older;
    else
        p->newest = h->older;
    if (h->older)
        h->older->newer = h->newer;
    else
        p->oldest = h->newer;
}

/* Closes until at most `keep` are open, as far as they are idle; twice round finds all that are. */
static inline void handles_shrink(handles *p, size_t keep) {
    for (size_t looks = 2 * p->open; p->open > keep && looks; looks--) {
        handle *h = p->oldest;
        uint64_t word = __atomic_load_n(&h->word, __ATOMIC_RELAXED);
        handles_unlink(p, h);
        if (handle_reads(word) != h->seen || word & HANDLE_READERS ||
            !__atomic_compare_exchange_n(&h->word, &word, HANDLE_CLOSED, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
            h->seen = handle_reads(word);
            handles_link(p, h);
            continue;
        }
        close(h->fd);
        h->fd = -1;
        p->reads += handle_reads(word);
        p->open--;
        p->evicted++;
    }
}

/* Closes an eighth of what is open, at least one, because the system has no more descriptors: how many. */
static inline size_t handles_make_room(handles *p) {
    pthread_mutex_lock(&p->lock);
    size_t before = p->open;
    handles_shrink(p, before - (before + 7) / 8);
    size_t closed = before - p->open;
    pthread_mutex_unlock(&p->lock);
    return closed;
}

/* Takes over an open descriptor. */
static inline void handle_init(handle *h, handles *pool, int fd, int (*open)(void *), void *owner) {
    h->pool = pool;
    h->open = open;
    h->owner = owner;
    h->word = h->seen = 0;
    h->fd = fd;
    if (!pool) return;
    pthread_mutex_lock(&pool->lock);
    handles_link(pool, h);
    pool->open++;
    handles_shrink(pool, pool->most);
    pthread_mutex_unlock(&pool->lock);
}

/* Nobody reads any more, or ever will. */
static inline void handle_free(handle *h) {
    if (h->pool) pthread_mutex_lock(&h->pool->lock);
    if (h->fd >= 0) {
        close(h->fd);
        if (h->pool) {
            handles_unlink(h->pool, h);
            h->pool->open--;
            h->pool->reads += handle_reads(h->word);
        }
    }
    h->fd = -1;
    if (h->pool) pthread_mutex_unlock(&h->pool->lock);
}

/* handle_acquire of one that is closed. Of several threads at once, one's descriptor is kept. */
static inline int handle_reopen(handle *h, int *os_error) {
    int fd = h->open(h->owner);
    if (fd < 0) {
        *os_error = -fd;
        return -1;
    }
    handles *p = h->pool;
    pthread_mutex_lock(&p->lock);
    __atomic_fetch_add(&h->word, HANDLE_READ, __ATOMIC_RELAXED);
    if (__atomic_load_n(&h->word, __ATOMIC_RELAXED) & HANDLE_CLOSED) {
        h->fd = fd;
        h->seen = 0;
        handles_link(p, h);
        p->open++;
        p->reopened++;
        __atomic_fetch_and(&h->word, ~HANDLE_CLOSED, __ATOMIC_RELEASE);
        handles_shrink(p, p->most);
    } else {
        close(fd);
    }
    fd = h->fd;
    pthread_mutex_unlock(&p->lock);
    return fd;
}

/* A descriptor that stays open until handle_release; -1: it could not be opened. */
static inline int handle_acquire(handle *h, int *os_error) {
    uint64_t before = __atomic_fetch_add(&h->word, HANDLE_READ, __ATOMIC_ACQUIRE);
    if (!(before & HANDLE_CLOSED)) return h->fd;
    __atomic_fetch_sub(&h->word, HANDLE_READ, __ATOMIC_RELAXED);
    return handle_reopen(h, os_error);
}

static inline void handle_release(handle *h) { __atomic_fetch_sub(&h->word, 1, __ATOMIC_RELEASE); }

/* File reads through all handles so far. */
static inline uint64_t handles_reads(handles *p) {
    pthread_mutex_lock(&p->lock);
    uint64_t reads = p->reads;
    for (const handle *h = p->newest; h; h = h->older)
        reads += handle_reads(__atomic_load_n(&h->word, __ATOMIC_RELAXED));
    pthread_mutex_unlock(&p->lock);
    return reads;
}

#endif
