/* Merging one SCAN result per partition into one page (docs/protocol.md section 3).
 *
 * Duties of the caller: new, add each result, run, size, write, free. The results must stay alive until write
 * is done: nothing but the final page is copied. Functions that the bytes can make fail return NULL when all
 * is well, otherwise what is wrong.
 *
 * The horizon is the smallest resume point of the partitions (reverse: the largest). Beyond it some partition
 * has not looked, so no entry beyond it may be in the page, and the page resumes there at the latest.
 */
#ifndef RINGKV_SCAN_MERGE_H
#define RINGKV_SCAN_MERGE_H

#include <stdlib.h>

#include "op_walk.h"

typedef struct {
    mp_cursor cursor;     /* behind the part's next entry */
    const uint8_t *entry; /* where that entry begins */
    op_bytes key;         /* its key */
    uint64_t behind;      /* how many entries follow it */
} scan_part;

typedef struct {
    const uint8_t *data;
    size_t size;
} scan_entry;

typedef struct {
    uint32_t limit, flags;
    uint64_t bytes_max; /* of the page's entries; one entry fits always */
    scan_part *parts;
    scan_part **heap; /* the parts that have an entry left, the next one first */
    scan_entry *page;
    size_t added, waiting; /* lengths of parts and heap */
    uint64_t count;        /* length of page; with OP_SCAN_COUNT the sum of the counts */
    uint64_t page_size;    /* bytes of the page's entries */
    int has_resume;
    op_bytes resume; /* the horizon until the page is cut */
} scan_merge;

static inline void scan_merge_free(scan_merge *merge) {
    if (merge == NULL)
        return;
    free(merge->parts);
    free(merge->heap);
    free(merge->page);
    free(merge);
}

/* NULL when memory is short. */
static scan_merge *scan_merge_new(size_t parts, uint32_t limit, uint32_t flags, uint64_t bytes_max) {
    scan_merge *merge = (scan_merge *)calloc(1, sizeof *merge);
    if (merge == NULL)
        return NULL;
    merge->limit = limit;
    merge->flags = flags;
    merge->bytes_max = bytes_max;
    merge->parts = (scan_part *)calloc(parts + 1, sizeof *merge->parts);
    merge->heap = (scan_part **)calloc(parts + 1, sizeof *merge->heap);
    merge->page = (scan_entry *)calloc((size_t)limit + 1, sizeof *merge->page);
    if (merge->parts && merge->heap && merge->page)
        return merge;
    scan_merge_free(merge);
    return NULL;
}

static inline int scan_compare(const op_bytes *a, const op_bytes *b) {
    uint32_t shorter = a->size < b->size ? a->size : b->size;
    int order = shorter ? memcmp(a->data, b->data, shorter) : 0;
    return order ? order : (a->size > b->size) - (a->size < b->size);
}

/* Whether `a` comes before `b` in the page. */
static inline int scan_before(const scan_merge *merge, const op_bytes *a, const op_bytes *b) {
    int order = scan_compare(a, b);
    return merge->flags & OP_SCAN_REVERSE ? order > 0 : order < 0;
}

/* Whether a key lies beyond the horizon: at or after it going forward, below it in reverse (a reverse resume
 * point was looked at). */
static inline int scan_beyond(const scan_merge *merge, const op_bytes *key) {
    int order = scan_compare(key, &merge->resume);
    return merge->has_resume && (merge->flags & OP_SCAN_REVERSE ? order < 0 : order >= 0);
}

static inline int scan_read_key(mp_cursor *cursor, op_bytes *key) {
    mp_value value;
    if (!mp_next(cursor, &value) || value.type != MP_BIN || value.number > OP_KEY_BYTES_MAX)
        return 0;
    key->data = value.data;
    key->size = (uint32_t)value.number;
    return 1;
}

/* Moves a part to its next entry. *more = 0 when there is none. */
static const char *scan_advance(const scan_merge *merge, scan_part *part, int first, int *more) {
    mp_value value, version;
    op_bytes last = part->key;
    *more = part->behind > 0;
    if (!*more)
        return part->cursor.at == part->cursor.end ? NULL : "a SCAN result has more entries than its count";
    part->behind -= 1;
    part->entry = part->cursor.at;
    mp_cursor *cursor = &part->cursor;
    if (!scan_read_key(cursor, &part->key) || !mp_next(cursor, &value) || !mp_next(cursor, &version))
        return "a SCAN result has a malformed entry, or fewer than its count";
    if ((value.type != MP_BIN && value.type != MP_NIL) || version.type != MP_UINT)
        return "a SCAN entry is not key, value and version";
    if (!first && !scan_before(merge, &last, &part->key))
        return "the entries of a SCAN result are out of order";
    return NULL;
}

static void scan_sift_down(scan_merge *merge, size_t at) {
    for (;;) {
        size_t least = at, child = 2 * at + 1;
        for (size_t end = child + 2; child < end && child < merge->waiting; child++)
            if (scan_before(merge, &merge->heap[child]->key, &merge->heap[least]->key))
                least = child;
        if (least == at)
            return;
        scan_part *moved = merge->heap[at];
        merge->heap[at] = merge->heap[least];
        merge->heap[least] = moved;
        at = least;
    }
}

/* Takes one whole result with status 0: [0, count, entries, resume?]. */
static const char *scan_merge_add(scan_merge *merge, const uint8_t *result, size_t size) {
    mp_cursor cursor = {result, result + size};
    mp_value array, value, count, entries;
    op_bytes resume;
    if (!mp_next(&cursor, &array) || array.type != MP_ARRAY || array.number < 3 || array.number > 4)
        return "a SCAN result is an array of 3 or 4";
    if (!mp_next(&cursor, &value) || !mp_next(&cursor, &count) || !mp_next(&cursor, &entries))
        return "a SCAN result is truncated";
    if (count.type != MP_UINT || entries.type != MP_BIN)
        return "a SCAN result holds a count and entries";
    if (array.number == 4 && !(cursor.at < cursor.end && *cursor.at == 0xc0)) {
        if (!scan_read_key(&cursor, &resume))
            return "the resume point of a SCAN result is not a key";
        if (merge->flags & OP_SCAN_COUNT)
            return "a count does not resume";
        if (!merge->has_resume || scan_before(merge, &resume, &merge->resume))
            merge->resume = resume;
        merge->has_resume = 1;
    }
    if (merge->flags & OP_SCAN_COUNT) {
        merge->count += count.number;
        return NULL;
    }
    scan_part *part = &merge->parts[merge->added++];
    part->cursor.at = entries.data;
    part->cursor.end = entries.data + entries.number;
    part->behind = count.number;
    int more;
    const char *fault = scan_advance(merge, part, 1, &more);
    if (more)
        merge->heap[merge->waiting++] = part;
    return fault;
}

/* Ends the page before the entry of `next`: there the scan goes on. */
static inline void scan_cut(scan_merge *merge, const scan_part *next, const op_bytes *last) {
    merge->has_resume = 1;
    merge->resume = merge->flags & OP_SCAN_REVERSE ? *last : next->key;
}

/* Chooses the entries of the page. */
static const char *scan_merge_run(scan_merge *merge) {
    op_bytes last = {NULL, 0};
    for (size_t at = merge->waiting / 2; at-- > 0;)
        scan_sift_down(merge, at);
    while (merge->waiting) {
        scan_part *part = merge->heap[0];
        size_t size = (size_t)(part->cursor.at - part->entry);
        if (scan_beyond(merge, &part->key))
            return NULL;
        if (merge->count == merge->limit || (merge->count && merge->page_size + size > merge->bytes_max)) {
            scan_cut(merge, part, &last);
            return NULL;
        }
        merge->page[merge->count++] = (scan_entry){part->entry, size};
        merge->page_size += size;
        last = part->key;
        int more;
        const char *fault = scan_advance(merge, part, 0, &more);
        if (fault != NULL)
            return fault;
        if (!more)
            merge->heap[0] = merge->heap[--merge->waiting];
        scan_sift_down(merge, 0);
    }
    return NULL;
}

static inline uint8_t *scan_write_head(const scan_merge *merge, uint8_t *to) {
    *to++ = merge->has_resume ? 0x94 : 0x93;
    *to++ = 0;
    to = mp_write_uint(to, merge->count);
    return mp_write_bin_header(to, (uint32_t)merge->page_size);
}

/* Bytes that scan_merge_write() will write. */
static inline size_t scan_merge_size(const scan_merge *merge) {
    uint8_t scratch[2 + 2 * MP_HEADER_MAX];
    size_t size = (size_t)(scan_write_head(merge, scratch) - scratch) + merge->page_size;
    if (merge->has_resume)
        size += (size_t)(mp_write_bin_header(scratch, merge->resume.size) - scratch) + merge->resume.size;
    return size;
}

static inline void scan_merge_write(const scan_merge *merge, uint8_t *to) {
    to = scan_write_head(merge, to);
    if (!(merge->flags & OP_SCAN_COUNT))
        for (uint64_t index = 0; index < merge->count; index++) {
            memcpy(to, merge->page[index].data, merge->page[index].size);
            to += merge->page[index].size;
        }
    if (merge->has_resume) {
        to = mp_write_bin_header(to, merge->resume.size);
        if (merge->resume.size)
            memcpy(to, merge->resume.data, merge->resume.size);
    }
}

#endif
