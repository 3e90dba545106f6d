"""A flush or compaction job as an object: holds its inputs, runs natively, one table at a time.

The interpreter's lock is given up once per table.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from storenode.engine.deletions import pack_deletions
from storenode.engine.errors import failed
from storenode.engine.memtable cimport Memtable
from storenode.engine.native cimport (
    FAILURE_NONE,
    JOB_FAILED,
    failure,
    job,
    job_bytes_moved,
    job_free,
    job_init,
    job_open_table,
    job_run,
    merge_add_memory,
    merge_add_run,
    run,
    slice_of,
    table,
    table_writer_compress,
    table_writer_init,
)
from storenode.engine.ranges cimport Ranges
from storenode.engine.table cimport Table


cdef class Job:
    cdef job native
    cdef int cancelled
    cdef tuple memtables
    cdef tuple runs
    cdef tuple below
    cdef tuple overlaps
    cdef table **pointers
    cdef run *below_runs
    cdef size_t used
    cdef Ranges ranges
    cdef bytes range_deletions
    cdef str directory

    def __cinit__(self, str directory, tuple memtables, tuple runs, tuple below, tuple overlaps, *,
                  uint64_t now_ms, uint64_t table_bytes, uint64_t overlap_bytes_max, size_t block_bytes,
                  unsigned bits_per_key, unsigned restart_interval=16, int compression=0,
                  uint64_t pause_bytes=0, Ranges ranges=None):
        cdef Memtable one
        cdef size_t i
        cdef size_t tables = sum(map(len, runs)) + sum(map(len, below)) + len(overlaps)
        self.directory = directory
        self.memtables = memtables
        self.runs = runs
        self.below = below
        self.overlaps = overlaps
        self.pointers = <table **>calloc(tables + 1, sizeof(table *))
        self.below_runs = <run *>calloc(len(below) + 1, sizeof(run))
        if self.pointers == NULL or self.below_runs == NULL:
            raise MemoryError
        for i, level in enumerate(below):
            self.below_runs[i] = self.run_of(level)
        if job_init(&self.native, len(memtables) + len(runs), self.below_runs, len(below)) < 0:
            raise MemoryError
        table_writer_init(&self.native.out, block_bytes, restart_interval, bits_per_key)
        if table_writer_compress(&self.native.out, compression) < 0:
            raise MemoryError
        for one in memtables:
            merge_add_memory(&self.native.sources, one.native)
        for level in runs:
            merge_add_run(&self.native.sources, self.run_of(level), &self.native.source_reader)
        if ranges is not None:
            self.ranges = ranges
            self.native.ranges = ranges.native
            self.range_deletions = pack_deletions(ranges.deletions)
            self.native.out.range_deletions = slice_of(
                PyBytes_AS_STRING(self.range_deletions), PyBytes_GET_SIZE(self.range_deletions)
            )
        self.native.overlaps = self.run_of(overlaps)
        self.native.overlap_bytes_max = overlap_bytes_max
        self.native.table_bytes = table_bytes
        self.native.now_ms = now_ms
        self.native.pause_bytes = pause_bytes

    def __dealloc__(self):
        job_free(&self.native)
        free(self.pointers)
        free(self.below_runs)

    cdef run run_of(self, tables):
        cdef run made
        cdef Table each
        made.tables = self.pointers + self.used
        made.count = len(tables)
        for each in tables:
            self.pointers[self.used] = &each.native
            self.used += 1
        return made

    def cancel(self):
        self.cancelled = 1

    def open_table(self, int fd, uint64_t number, uint64_t file_id, uint64_t created_ms):
        job_open_table(&self.native, fd, number, file_id, created_ms)

    def step(self):
        cdef int result
        with nogil:
            result = job_run(&self.native, &self.cancelled)
        if result == JOB_FAILED:
            if self.native.source_reader.failed.code != FAILURE_NONE:
                raise self.failed(&self.native.source_reader.failed)
            raise self.failed(&self.native.out.failed)
        return result

    cdef object failed(self, failure *f):
        path = f"{self.directory}/{f.file_number:06d}.sst"
        return failed(f.code, path, f.offset, f.what.decode(), f.os_error)

    def finished(self):
        cdef job *j = &self.native
        return {
            "number": j.out.number,
            "file_id": j.out.file_id,
            "size": j.out.written,
            "entries": j.out.totals.entries,
            "deletions": j.out.totals.deletions,
            "expiring": j.out.totals.expiring,
            "min_sequence": j.out.totals.min_sequence,
            "max_sequence": j.out.totals.max_sequence,
            "raw_key_bytes": j.out.totals.raw_key_bytes,
            "raw_value_bytes": j.out.totals.raw_value_bytes,
            "created_ms": j.out.created_ms,
            "smallest": PyBytes_FromStringAndSize(<char *>j.out.smallest.data, j.out.smallest.size),
            "largest": PyBytes_FromStringAndSize(<char *>j.out.last.data, j.out.last.size),
        }

    @property
    def bytes_moved(self):
        return job_bytes_moved(&self.native)

    def counts(self):
        cdef job *j = &self.native
        return {
            "entries_in": j.entries_in,
            "entries_out": j.entries_out,
            "dropped_shadowed": j.dropped_shadowed,
            "dropped_absent": j.dropped_absent,
            "dropped_deleted": j.dropped_deleted,
            "block_bytes": j.out.block_bytes_made,
            "block_bytes_stored": j.out.block_bytes_stored,
        }
