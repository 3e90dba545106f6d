"""A view: the memtables and tables that one reader sees, and everything that can be asked of them, natively.

A view is immutable but for its first memtable, which `apply` adds to. It holds references to all it points
to: as long as somebody has the view, nothing under it is freed, whatever is flushed, compacted or closed
meanwhile.

The interpreter's lock is given up for the whole call when the work is long, and around each read of a file
when it is short.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from kvclient.errors import InvalidRequest
from storenode.engine.errors import failed
from storenode.engine.memtable cimport Memtable
from storenode.engine.native cimport (
    FAILURE_NONE,
    KIND_PUT_DEADLINE,
    buffer,
    buffer_append,
    buffer_free,
    entry,
    entry_is_absent,
    entry_kind,
    execute_streams,
    GROUP_KEYS,
    execution,
    failure,
    group_key,
    group_release,
    lookup,
    lookup_release,
    memtable,
    reader,
    run,
    scratch,
    scratch_free,
    slice,
    slice_of,
    stream_check,
    stream_shape,
    table,
    view,
    view_get,
    view_get_group,
)
from storenode.engine.ranges cimport Ranges
from storenode.engine.reads cimport Reads
from storenode.engine.table cimport Cache, Table


cdef extern from "interpreter.h" nogil:
    void *interpreter_pause() noexcept
    void interpreter_resume(void *state) noexcept


cdef uint64_t wall_ms() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <uint64_t>now.tv_sec * 1000 + <uint64_t>now.tv_nsec // 1000000


cdef int check(slice stream, bint writing, stream_shape *shape) except -1:
    """InvalidRequest: it is no stream, or none of this kind."""
    if stream_check(stream, shape) < 0:
        raise InvalidRequest("malformed op stream")
    if shape.writes and not writing:
        raise InvalidRequest("only GET, EXISTS and SCAN can be read")
    if shape.scans and writing:
        raise InvalidRequest("SCAN cannot be applied")
    return 0


# Below this an op stream runs in some microseconds: less than other threads can make of the lock.
cdef size_t SHORT_STREAM_BYTES = 4096


# Views of one process are numbered, so that one can be remembered without being kept.
cdef uint64_t views_made = 0


cdef class View:
    def __init__(self, Cache cache, str directory, tuple memtables, tuple runs, Reads reads=None,
                 Ranges ranges=None):
        cdef size_t i, at = 0
        cdef Memtable one
        cdef Table each
        global views_made
        views_made += 1
        self.serial = views_made
        self.cache = cache
        self.reads = Reads() if reads is None else reads
        self.directory = directory
        self.memtables = memtables
        self.runs = runs
        self.active = memtables[0]
        self.ranges = ranges
        if ranges is not None:
            self.native.ranges = ranges.native
        self.native.memtable_count = len(memtables)
        self.native.run_count = len(runs)
        self.native.memtables = <memtable **>calloc(len(memtables), sizeof(memtable *))
        self.native.runs = <run *>calloc(len(runs) + 1, sizeof(run))
        self.table_pointers = <table **>calloc(sum(map(len, runs)) + 1, sizeof(table *))
        if self.native.memtables == NULL or self.native.runs == NULL or self.table_pointers == NULL:
            raise MemoryError
        for i, one in enumerate(memtables):
            self.native.memtables[i] = one.native
        for i, tables in enumerate(runs):
            self.native.runs[i].tables = self.table_pointers + at
            self.native.runs[i].count = len(tables)
            for each in tables:
                self.table_pointers[at] = &each.native
                at += 1

    def __dealloc__(self):
        free(self.native.memtables)
        free(self.native.runs)
        free(self.table_pointers)

    cdef object failed(self, failure *f):
        path = f"{self.directory}/{f.file_number:06d}.sst"
        return failed(f.code, path, f.offset, f.what.decode(), f.os_error)

    cdef void open_reader(self, reader *r, bint keeps_lock) noexcept:
        memset(r, 0, sizeof(reader))
        r.blocks = self.cache.native
        if keeps_lock:
            r.pause = interpreter_pause
            r.resume = interpreter_resume

    cdef bytes execute(self, ops, execution *x, memtable *active, stream_shape *shape):
        """Check and run a stream: its results. `x` has sequence and now_ms, and afterwards what happened."""
        cdef slice stream
        cdef const uint8_t[::1] view_of_ops
        cdef buffer out
        if PyBytes_CheckExact(ops):
            stream = slice_of(PyBytes_AS_STRING(ops), PyBytes_GET_SIZE(ops))
        else:
            view_of_ops = ops
            stream = slice_of(&view_of_ops[0] if view_of_ops.shape[0] else NULL, view_of_ops.shape[0])
        check(stream, active != NULL, shape)
        memset(&out, 0, sizeof(out))
        try:
            self.run(x, active, &stream, 1, NULL, stream.size < SHORT_STREAM_BYTES and not shape.scans, &out)
            return PyBytes_FromStringAndSize(<char *>out.data, out.size)
        finally:
            buffer_free(&out)

    cdef int run(
        self,
        execution *x,
        memtable *active,
        const slice *streams,
        size_t count,
        size_t *ends,
        bint is_short,
        buffer *out,
    ) except -1:
        """Run checked streams into `out`, each until `ends`."""
        cdef reader r
        cdef scratch s
        cdef int result
        memset(&s, 0, sizeof(s))
        self.open_reader(&r, is_short)
        x.v = &self.native
        x.active = active
        x.r = &r
        x.s = &s
        x.out = out
        if is_short:
            result = execute_streams(x, streams, count, ends)
        else:
            with nogil:
                result = execute_streams(x, streams, count, ends)
        scratch_free(&s)
        self.reads.add(&r)
        if result < 0:
            raise self.failed(&r.failed)
        return 0

    cdef object damage(self, execution *x):
        return None if x.corruption.code == FAILURE_NONE else self.failed(&x.corruption)

    def apply(self, ops, uint64_t first_sequence, uint64_t now_ms):
        cdef execution x
        cdef stream_shape shape
        memset(&x, 0, sizeof(x))
        x.sequence = first_sequence
        x.now_ms = now_ms
        results = self.execute(ops, &x, self.active.native, &shape)
        return results, shape.count, self.damage(&x)

    def apply_all(self, list streams, uint64_t first_sequence, uint64_t now_ms):
        cdef Py_ssize_t count = len(streams), i
        cdef slice *slices = <slice *>calloc(count + 1, sizeof(slice))
        cdef size_t *ends = <size_t *>calloc(count + 1, sizeof(size_t))
        cdef size_t size = 0, at = 0
        cdef execution x
        cdef stream_shape shape
        cdef buffer out
        memset(&x, 0, sizeof(x))
        memset(&out, 0, sizeof(out))
        x.sequence = first_sequence
        x.now_ms = now_ms
        try:
            if slices == NULL or ends == NULL:
                raise MemoryError
            for i in range(count):
                ops = streams[i]
                if not PyBytes_CheckExact(ops):
                    raise TypeError(f"an op stream is bytes, not {type(ops).__name__}")
                slices[i] = slice_of(PyBytes_AS_STRING(ops), PyBytes_GET_SIZE(ops))
                check(slices[i], True, &shape)
                size += slices[i].size
            self.run(&x, self.active.native, slices, count, ends, size < SHORT_STREAM_BYTES, &out)
            results = []
            for i in range(count):
                results.append(PyBytes_FromStringAndSize(<char *>out.data + at, ends[i] - at))
                at = ends[i]
            return results, x.sequence - first_sequence, self.damage(&x)
        finally:
            free(slices)
            free(ends)
            buffer_free(&out)

    def read(self, ops, uint64_t sequence, uint64_t now_ms):
        cdef execution x
        cdef stream_shape shape
        memset(&x, 0, sizeof(x))
        x.sequence = sequence
        x.now_ms = now_ms
        return self.execute(ops, &x, NULL, &shape)

    cpdef object get(self, bytes key, uint64_t sequence, uint64_t now_ms, bint by_clock=False):
        cdef reader r
        cdef scratch s
        cdef lookup found
        cdef slice wanted
        cdef int result, in_active
        memset(&s, 0, sizeof(s))
        self.open_reader(&r, True)
        wanted = slice_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        result = view_get(&self.native, &r, &s, wanted, sequence, &found, &in_active)
        try:
            self.reads.add(&r)
            if result < 0:
                raise self.failed(&r.failed)
            if result == 0:
                return None
            if by_clock and entry_kind(&found.found) == KIND_PUT_DEADLINE:
                now_ms = max(now_ms, wall_ms())
            if entry_is_absent(&found.found, now_ms):
                return None
            return PyBytes_FromStringAndSize(<char *>found.found.value.data, found.found.value.size)
        finally:
            lookup_release(&found)
            scratch_free(&s)

    def multi_get(self, keys, uint64_t sequence, uint64_t now_ms):
        cdef list wanted = list(keys)
        cdef Py_ssize_t count = len(wanted), i
        cdef slice *slices = <slice *>calloc(count + 1, sizeof(slice))
        cdef Py_ssize_t *ends = <Py_ssize_t *>calloc(count + 1, sizeof(Py_ssize_t))
        cdef reader r
        cdef scratch s
        cdef buffer out
        cdef int result = 0
        cdef Py_ssize_t at = 0
        memset(&s, 0, sizeof(s))
        memset(&out, 0, sizeof(out))
        self.open_reader(&r, False)
        try:
            if slices == NULL or ends == NULL:
                raise MemoryError
            for i in range(count):
                key = wanted[i]
                if not PyBytes_CheckExact(key):
                    raise TypeError(f"a key is bytes, not {type(key).__name__}")
                slices[i] = slice_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            with nogil:
                while at < count and result == 0:
                    i = min(count - at, <Py_ssize_t>GROUP_KEYS)
                    result = self.get_group(&r, &s, slices + at, i, sequence, now_ms, &out, ends + at)
                    at += i
            at = 0
            self.reads.add(&r)
            if result < 0:
                raise self.failed(&r.failed)
            if out.failed:
                raise MemoryError
            values = []
            for i in range(count):
                if ends[i] < 0:
                    values.append(None)
                else:
                    values.append(PyBytes_FromStringAndSize(<char *>out.data + at, ends[i] - at))
                    at = ends[i]
            return values
        finally:
            free(slices)
            free(ends)
            buffer_free(&out)
            scratch_free(&s)

    cdef int get_group(
        self,
        reader *r,
        scratch *s,
        const slice *keys,
        Py_ssize_t count,
        uint64_t sequence,
        uint64_t now_ms,
        buffer *out,
        Py_ssize_t *ends,
    ) noexcept nogil:
        """Append the values of keys, and write down where each ends, -1 for none; -1 on failure."""
        cdef group_key group[GROUP_KEYS]
        cdef Py_ssize_t i
        cdef entry *found
        cdef int result
        for i in range(count):
            group[i].key = keys[i]
        result = view_get_group(&self.native, r, s, group, count, sequence)
        if result == 0:
            for i in range(count):
                found = &group[i].at.found
                if group[i].found and not entry_is_absent(found, now_ms):
                    buffer_append(out, found.value.data, found.value.size)
                    ends[i] = out.size
                else:
                    ends[i] = -1
        group_release(group, count)
        return result
