/* A flush or compaction: many sorted sources in, tables out. The caller opens the output files: job_run
 * returns when it needs one.
 *
 * Of each key only the newest version is kept: readers at older sequences hold the tables and memtables that
 * they started with, and never look at a job's output. A deletion or an expired version is left out when no
 * older version can hide in `below`; if one can, an expired version becomes a deletion (same sequence), which
 * is what it means, without its bytes. A version that a range deletion makes absent is left out at once: the
 * deletion is kept until that is true of all tables (tree.py). */
#ifndef RINGKV_JOB_H
#define RINGKV_JOB_H

#include "pass.h"
#include "table_writer.h"

enum { JOB_DONE = 0, JOB_NEEDS_FILE = 1, JOB_TABLE_FINISHED = 2, JOB_PAUSED = 3, JOB_FAILED = -1 };

#define JOB_CANCEL_INTERVAL 1024 /* entries between two looks at the flag: some hundred microseconds */

typedef struct {
    merge sources;
    reader source_reader;
    table_writer out;
    run *below; /* not owned: what is older than the output, each in key order */
    size_t *below_at;
    size_t below_count;
    range_set ranges; /* not owned */
    run overlaps; /* the level under the output: a table is ended before it overlaps too much of it */
    size_t overlaps_at;
    uint64_t overlap_bytes;
    uint64_t overlap_bytes_max;
    uint64_t table_bytes;
    uint64_t now_ms;
    uint64_t pause_bytes; /* read and written between two pauses; 0: none */
    uint64_t pause_at;
    int started;
    int open; /* a table is being written */
    buffer last_key;
    int has_last;
    uint64_t entries_in, entries_out, dropped_shadowed, dropped_absent, dropped_deleted;
} job;

static inline int job_init(job *j, size_t sources, run *below, size_t below_count) {
    memset(j, 0, sizeof *j);
    j->below = below;
    j->below_count = below_count;
    j->below_at = (size_t *)calloc(below_count + 1, sizeof *j->below_at);
    if (merge_init(&j->sources, sources, 0) < 0 || !j->below_at) return -1;
    return 0;
}

static inline void job_free(job *j) {
    merge_free(&j->sources);
    table_writer_free(&j->out);
    free(j->below_at);
    buffer_free(&j->last_key);
}

/* Whether a table of `below` has `key` in its range. Keys come in ascending order, so each level is walked
 * once. */
static inline int job_hides_below(job *j, slice key) {
    for (size_t level = 0; level < j->below_count; level++) {
        run tables = j->below[level];
        size_t *at = &j->below_at[level];
        while (*at < tables.count && slice_compare(tables.tables[*at]->largest, key) < 0)
            ++*at;
        if (*at < tables.count && slice_compare(tables.tables[*at]->smallest, key) <= 0) return 1;
    }
    return 0;
}

/* Whether the table being written should end before `key`. */
static inline int job_should_cut(job *j, slice key) {
    while (j->overlaps_at < j->overlaps.count &&
           slice_compare(j->overlaps.tables[j->overlaps_at]->largest, key) < 0) {
        if (j->open) j->overlap_bytes += j->overlaps.tables[j->overlaps_at]->size;
        j->overlaps_at++;
    }
    return table_writer_size(&j->out) >= j->table_bytes || j->overlap_bytes > j->overlap_bytes_max;
}

static inline int job_finish_table(job *j) {
    if (table_writer_finish(&j->out) < 0) return JOB_FAILED;
    j->open = 0;
    j->overlap_bytes = 0;
    return JOB_TABLE_FINISHED;
}

static inline void job_open_table(job *j, int fd, uint64_t number, uint64_t file_id, uint64_t created_ms) {
    table_writer_begin(&j->out, fd, number, file_id, created_ms);
    j->open = 1;
}

/* The version to write for the key on top; 0: none. `hiding`: the range deletion that it is left out for. */
static inline int job_keep(job *j, entry *e, const range_interval **hiding) {
    j->entries_in++;
    *hiding = NULL;
    if (j->has_last && slice_equal(buffer_slice(&j->last_key), e->key)) {
        j->dropped_shadowed++;
        return 0;
    }
    *hiding = ranges_hiding(&j->ranges, e);
    if (*hiding) {
        j->dropped_deleted++;
        return 0;
    }
    if (!entry_is_absent(e, j->now_ms)) return 1;
    if (!job_hides_below(j, e->key)) {
        j->dropped_absent++;
        return 0;
    }
    e->trailer = trailer_of(entry_sequence(e), KIND_DELETE);
    e->value.size = 0;
    return 1;
}

static inline int job_remember(job *j, slice key) {
    j->last_key.size = 0;
    buffer_append(&j->last_key, key.data, key.size);
    j->has_last = 1;
    return j->last_key.failed ? fail(&j->out.failed, FAILURE_MEMORY, 0, 0, "out of memory") : 0;
}

/* What went through the disk so far. */
static inline uint64_t job_bytes_moved(const job *j) {
    return j->source_reader.bytes + j->out.written_before + j->out.written;
}

/* Runs until it needs a file (JOB_NEEDS_FILE: call job_open_table, then go on), has ended a table
 * (JOB_TABLE_FINISHED), has moved `pause_bytes` (JOB_PAUSED), is done, or failed (out.failed or
 * source_reader.failed says why). */
static inline int job_run(job *j, const int *cancel) {
    if (!j->started) {
        if (merge_seek(&j->sources, NULL) < 0) return JOB_FAILED;
        j->started = 1;
        j->pause_at = j->pause_bytes;
    }
    unsigned until_look = 0;
    for (const entry *top; (top = merge_at(&j->sources)) != NULL;) {
        if (until_look-- == 0) {
            if (__atomic_load_n(cancel, __ATOMIC_RELAXED))
                return fail(&j->out.failed, FAILURE_CANCELLED, 0, 0, "cancelled");
            until_look = JOB_CANCEL_INTERVAL;
        }
        if (j->pause_bytes && job_bytes_moved(j) >= j->pause_at) {
            j->pause_at = job_bytes_moved(j) + j->pause_bytes;
            return JOB_PAUSED;
        }
        entry e = *top;
        const range_interval *hiding;
        if (job_keep(j, &e, &hiding)) {
            if (job_should_cut(j, e.key) && j->open) {
                j->entries_in--; /* the same version comes again */
                return job_finish_table(j);
            }
            if (!j->open) {
                j->entries_in--;
                return JOB_NEEDS_FILE;
            }
            if (table_writer_add(&j->out, &e) < 0) return JOB_FAILED;
            j->entries_out++;
        }
        if (!j->has_last || !slice_equal(buffer_slice(&j->last_key), e.key))
            if (job_remember(j, e.key) < 0) return JOB_FAILED;
        if (merge_pass(&j->sources, hiding) < 0) return JOB_FAILED;
    }
    return j->open ? job_finish_table(j) : JOB_DONE;
}

#endif
