/* Starting to write what is in the page cache before anybody waits for it.
 *
 * A sync of many megabytes at once keeps the disk from everybody else meanwhile, and whoever puts waits behind it
 * when a log ends. Only advice: what is durable, syncs alone decide, so a file system that does not know the call
 * loses nothing. */
#ifndef RINGKV_WRITEBACK_H
#define RINGKV_WRITEBACK_H

#include <fcntl.h>
#include <stdint.h>

/* What gathers before the disk is set to work: large enough that it writes long runs. */
#define WRITEBACK_BYTES (1u << 20)

/* Starts with the bytes [*begun, to) of the file, if they are worth it. */
static inline void writeback_begin(int fd, uint64_t *begun, uint64_t to) {
    if (to < *begun + WRITEBACK_BYTES) return;
    (void)sync_file_range(fd, (off_t)*begun, (off_t)(to - *begun), SYNC_FILE_RANGE_WRITE);
    *begun = to;
}

#endif
