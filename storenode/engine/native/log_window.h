/* The end of the newest log, mapped: what is stored in it is in the file as if it were written, without a call.
 *
 * The bytes mapped are written zeros, never a hole: on the file systems named here storing over them takes no new
 * space, so a full disk cannot turn a store into a signal. All pages are made writable when they are mapped, where
 * a disk that fails shows as a mapping that is refused. */
#ifndef RINGKV_LOG_WINDOW_H
#define RINGKV_LOG_WINDOW_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/vfs.h>

#define LOG_WINDOW_PAGE 4096

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* Bytes [from, to) of the file; none: data NULL, to 0. */
typedef struct {
    uint8_t *data;
    uint64_t from, to;
} log_window;

static inline void log_window_close(log_window *w) {
    if (w->data) munmap(w->data, (size_t)(w->to - w->from));
    w->data = NULL;
    w->from = w->to = 0;
}

/* Whether writing over a written block of this file needs no other block. */
static inline int log_window_fits_file_system(int fd) {
    struct statfs s;
    if (fstatfs(fd, &s) < 0) return 0;
    switch ((uint32_t)s.f_type) {
    case 0xef53u:     /* ext4 */
    case 0x58465342u: /* xfs */
    case 0x01021994u: /* tmpfs */
        return 1;
    default:
        return 0;
    }
}

/* Maps what is written of [from, to); without success there is no window, and that is all. */
static inline void log_window_open(log_window *w, int fd, uint64_t from, uint64_t to) {
    log_window_close(w);
    from &= ~(uint64_t)(LOG_WINDOW_PAGE - 1);
    to &= ~(uint64_t)(LOG_WINDOW_PAGE - 1);
    if (from >= to || !log_window_fits_file_system(fd)) return;
    size_t size = (size_t)(to - from);
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)from);
    if (data == MAP_FAILED) return;
    if (madvise(data, size, MADV_POPULATE_WRITE) < 0) {
        munmap(data, size);
        return;
    }
    w->data = (uint8_t *)data;
    w->from = from;
    w->to = to;
}

#endif
