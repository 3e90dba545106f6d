# cython: language_level=3
# distutils: libraries = lz4 zstd
"""What the Cython modules use of the headers in `native/`. Contracts are in the headers."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "bytes.h" nogil:
    ctypedef struct slice:
        const uint8_t *data
        size_t size
    ctypedef struct buffer:
        uint8_t *data
        size_t size
        size_t capacity
        int failed
    ctypedef struct failure:
        int code
        int os_error
        uint64_t file_number
        uint64_t offset
        const char *what
    enum:
        FAILURE_NONE
        FAILURE_CORRUPT
        FAILURE_IO
        FAILURE_MEMORY
        FAILURE_CANCELLED
    slice slice_of(const void *data, size_t size)
    void buffer_free(buffer *b)
    uint8_t *buffer_reserve(buffer *b, size_t extra)
    void buffer_append(buffer *b, const void *data, size_t size)
    slice buffer_slice(const buffer *b)
    int slice_compare(slice a, slice b)
    const uint8_t *varint_get(const uint8_t *p, const uint8_t *end, uint64_t *v)


cdef extern from "compress.h" nogil:
    enum:
        BLOCK_TYPE_PLAIN
        BLOCK_TYPE_ZSTD
        DECOMPRESS_NO_MEMORY
    size_t compressed_length(slice *stored)
    int decompress(int type, slice payload, uint8_t *to, size_t length)


cdef extern from "crc32c.h" nogil:
    uint32_t crc32c(uint32_t crc, const void *data, size_t size)
    uint32_t crc32c_portable(uint32_t crc, const uint8_t *p, size_t size)
    uint32_t crc32c_mask(uint32_t crc)


cdef extern from "hash64.h" nogil:
    uint64_t hash64(const void *data, size_t size)


cdef extern from "entry.h" nogil:
    enum:
        KIND_DELETE
        KIND_PUT
        KIND_PUT_DEADLINE
    uint64_t SEQUENCE_MAX
    uint64_t TRAILER_NEWEST
    size_t KEY_BYTES_LIMIT
    ctypedef struct entry:
        slice key
        uint64_t trailer
        slice value
        uint64_t deadline
    uint64_t trailer_of(uint64_t sequence, int kind)
    int entry_kind(const entry *e)
    uint64_t entry_sequence(const entry *e)
    int entry_is_absent(const entry *e, uint64_t now_ms)


cdef extern from "ranges.h" nogil:
    ctypedef struct range_interval:
        slice start
        slice stop
        int has_stop
        uint64_t sequence
    ctypedef struct range_set:
        const range_interval *intervals
        size_t count
    const range_interval *ranges_find(const range_set *s, slice key)


cdef extern from "memtable.h" nogil:
    ctypedef struct memtable_node:
        pass
    ctypedef struct memtable:
        size_t bytes
        uint64_t count
    memtable *memtable_new()
    void memtable_free(memtable *m)
    int memtable_add(memtable *m, const entry *e, int shared_value)
    int memtable_has_room(const memtable *m, size_t key_size, size_t value_size)
    int memtable_get(const memtable *m, slice key, uint64_t sequence, entry *e)


cdef extern from "cache.h" nogil:
    ctypedef struct cache_entry:
        pass
    ctypedef struct cache:
        size_t mask
        size_t spare_bytes
        size_t entries
        size_t bytes
        size_t pinned
        size_t budget
        uint64_t hits
        uint64_t misses
        uint64_t evictions
    ctypedef struct cache_slot:
        pass
    cache *cache_new(size_t budget)
    void cache_free(cache *c)
    void cache_forget(cache *c, uint64_t table)
    slice cache_bytes(const cache_entry *e)
    void cache_release(cache_entry *e)


cdef extern from "block.h" nogil:
    ctypedef struct block_cursor:
        buffer key
        slice value
        int valid
        int corrupt
    int block_cursor_open(block_cursor *c, slice block)
    void block_cursor_free(block_cursor *c)
    int block_first(block_cursor *c)
    int block_last(block_cursor *c)
    int block_next(block_cursor *c)
    int block_previous(block_cursor *c)
    int block_seek(block_cursor *c, slice key, uint64_t trailer, int internal)
    ctypedef struct block_builder:
        unsigned interval
    void block_builder_add(block_builder *b, slice key, slice key_tail, slice value_head, slice value)
    slice block_builder_finish(block_builder *b)
    int block_builder_failed(const block_builder *b)
    void block_builder_free(block_builder *b)


cdef extern from "bloom.h" nogil:
    void bloom_build(buffer *out, const uint64_t *hashes, size_t count, unsigned bits_per_key)
    int bloom_is_sound(slice filter)
    int bloom_may_hold(slice filter, uint64_t hash)


cdef extern from "handles.h" nogil:
    ctypedef struct handle:
        pass
    ctypedef struct handles:
        size_t open
        size_t most
        uint64_t reopened
        uint64_t evicted
    handles *handles_new(size_t most)
    void handles_free(handles *p)
    size_t handles_make_room(handles *p)
    uint64_t handles_reads(handles *p)
    void handle_init(handle *h, handles *pool, int fd, int (*open_file)(void *) noexcept, void *owner)
    void handle_free(handle *h)
    int handle_acquire(handle *h, int *os_error)


cdef extern from "table.h" nogil:
    ctypedef struct block_handle:
        uint64_t offset
        uint32_t size
    ctypedef struct table:
        handle *file
        uint64_t number
        uint64_t file_id
        uint64_t cache_key
        uint64_t size
        uint64_t sequence_bits
        int compression
        block_handle index
        block_handle filter
        block_handle properties
        slice smallest
        slice largest
        uint64_t max_sequence
    ctypedef struct reader:
        cache *blocks
        void *(*pause)() noexcept
        void (*resume)(void *) noexcept
        failure failed
        uint64_t bytes
        uint64_t lookups
        uint64_t filtered
        uint64_t searched
        uint64_t misled
        uint64_t blocks_searched
    ctypedef struct lookup:
        entry found
    int table_open(reader *r, table *t)
    void table_unpin(table *t, cache *c)
    int table_may_hold(reader *r, const table *t, uint64_t hash)
    cache_entry *table_block(reader *r, const table *t, block_handle h)
    void lookup_release(lookup *l)


cdef extern from "cursor.h" nogil:
    ctypedef struct run:
        table **tables
        size_t count
    ctypedef struct cursor:
        entry at
        int valid
    void cursor_init_memory(cursor *c, const memtable *m, int reverse)
    void cursor_init_run(cursor *c, run tables, reader *r, int reverse)
    int cursor_seek(cursor *c, const slice *from_key)
    int cursor_step(cursor *c)
    void cursor_free(cursor *c)



cdef extern from "merge.h" nogil:
    ctypedef struct merge:
        pass
    void merge_free(merge *m)
    void merge_add_memory(merge *m, const memtable *memory)
    void merge_add_run(merge *m, run tables, reader *r)


cdef extern from "table_writer.h" nogil:
    ctypedef struct table_totals:
        uint64_t entries
        uint64_t deletions
        uint64_t expiring
        uint64_t min_sequence
        uint64_t max_sequence
        uint64_t raw_key_bytes
        uint64_t raw_value_bytes
    ctypedef struct table_writer:
        uint64_t number
        uint64_t file_id
        uint64_t created_ms
        uint64_t written
        uint64_t block_bytes_made
        uint64_t block_bytes_stored
        buffer smallest
        buffer last
        slice range_deletions
        table_totals totals
        failure failed
    void table_writer_init(
        table_writer *w, size_t block_bytes, unsigned restart_interval, unsigned bits_per_key
    )
    int table_writer_compress(table_writer *w, int type)
    void table_writer_free(table_writer *w)
    void table_writer_begin(table_writer *w, int fd, uint64_t number, uint64_t file_id, uint64_t created_ms)
    int table_writer_add(table_writer *w, const entry *e)
    int table_writer_finish(table_writer *w)
    void shorten_separator(buffer *from_key, slice next_key)
    void shorten_successor(buffer *from_key)


cdef extern from "verify.h" nogil:
    ctypedef struct table_check:
        table_totals totals
        buffer smallest
        buffer last
    int table_verify(reader *r, table *t, table_check *k)
    void table_check_free(table_check *k)


cdef extern from "job.h" nogil:
    enum:
        JOB_DONE
        JOB_NEEDS_FILE
        JOB_TABLE_FINISHED
        JOB_FAILED
    ctypedef struct job:
        merge sources
        reader source_reader
        table_writer out
        range_set ranges
        run overlaps
        uint64_t overlap_bytes_max
        uint64_t table_bytes
        uint64_t now_ms
        uint64_t pause_bytes
        uint64_t entries_in
        uint64_t entries_out
        uint64_t dropped_shadowed
        uint64_t dropped_absent
        uint64_t dropped_deleted
    int job_init(job *j, size_t sources, run *below, size_t below_count)
    void job_free(job *j)
    uint64_t job_bytes_moved(const job *j)
    void job_open_table(job *j, int fd, uint64_t number, uint64_t file_id, uint64_t created_ms)
    int job_run(job *j, const int *cancel)


cdef extern from "view.h" nogil:
    ctypedef struct view:
        memtable **memtables
        size_t memtable_count
        run *runs
        size_t run_count
        range_set ranges
    ctypedef struct scratch:
        pass
    void scratch_free(scratch *s)
    ctypedef struct group_key:
        slice key
        lookup at
        int found
    enum:
        GROUP_KEYS
    int view_get_group(const view *v, reader *r, scratch *s, group_key *keys, size_t count, uint64_t sequence)
    void group_release(group_key *keys, size_t count)
    int view_get(const view *v, reader *r, scratch *s, slice key, uint64_t sequence, lookup *l,
                 int *in_active)


cdef extern from "scan.h" nogil:
    enum:
        SCAN_REVERSE
    ctypedef struct scan:
        slice start
        slice stop
        int has_stop
        uint64_t limit
        unsigned flags
        uint64_t sequence
        uint64_t now_ms
        uint64_t count
        buffer entries
        int has_resume
        int goes_on
    int scan_open(scan *s, const view *v, reader *r, merge *m)
    int scan_more(scan *s, merge *m, reader *r)
    void scan_free(scan *s)


cdef extern from "operation.h" nogil:
    enum:
        OP_PUT
        OP_DELETE
    size_t VALUE_BYTES_LIMIT


cdef extern from "msgpack.h" nogil:
    const uint8_t *msgpack_bin(const uint8_t *p, const uint8_t *end, slice *s)
    const uint8_t *msgpack_uint(const uint8_t *p, const uint8_t *end, uint64_t *v)
    size_t msgpack_put_bin(uint8_t *p, slice s)


cdef extern from "operation.h" nogil:
    ctypedef struct stream_shape:
        uint64_t count
        uint64_t writes
        uint64_t scans
    int stream_check(slice ops, stream_shape *shape)


cdef extern from "execute.h" nogil:
    ctypedef struct execution:
        const view *v
        memtable *active
        reader *r
        scratch *s
        uint64_t sequence
        uint64_t now_ms
        buffer *out
        uint64_t written
        failure corruption
    int execute_streams(execution *x, const slice *streams, size_t count, size_t *ends)


cdef extern from "log_window.h" nogil:
    ctypedef struct log_window:
        uint8_t *data
        uint64_t from_ "from"
        uint64_t to
    void log_window_open(log_window *w, int fd, uint64_t from_, uint64_t to)
    void log_window_close(log_window *w)


cdef extern from "writeback.h" nogil:
    void writeback_begin(int fd, uint64_t *begun, uint64_t to)


cdef extern from "wal.h" nogil:
    size_t WAL_HEADER_BYTES
    ctypedef struct wal_record:
        uint64_t first_sequence
        uint64_t now_ms
        uint64_t synced
        slice ops
        uint64_t following
    size_t WAL_RECORD_HEAD_BYTES
    size_t wal_record_bytes(size_t length)
    void wal_seal_record(uint8_t *record, uint64_t file_id, uint64_t offset, uint64_t synced,
                         uint64_t first_sequence, uint64_t now_ms, size_t length)
    void wal_put_record(buffer *out, uint64_t file_id, uint64_t offset, uint64_t synced,
                        uint64_t first_sequence, uint64_t now_ms, slice ops)
    void wal_put_header(uint8_t *header, uint32_t engine_id, uint64_t number, uint64_t previous,
                        uint64_t previous_length)
    int wal_read_record(slice file, uint64_t file_id, uint64_t offset, wal_record *record)
    uint64_t wal_find_proof(slice file, uint64_t file_id, uint64_t bad)
