"""Which keys range deletions have made absent: all of them as intervals that do not overlap, in the form that
views and jobs search (native/ranges.h).

Never changed once made: whoever has a view or a job keeps its intervals.
"""

from bisect import bisect_left, bisect_right

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport calloc, free

from storenode.engine.native cimport range_interval, ranges_find, slice_of


def _start(interval):
    return interval.start


def _insert(list intervals, new):
    """Put in a deletion that is newer than all of `intervals`: what it overlaps is cut back."""
    low = bisect_right(intervals, new.start, key=_start)
    if low and (intervals[low - 1].stop is None or intervals[low - 1].stop > new.start):
        low -= 1
    high = len(intervals) if new.stop is None else bisect_left(intervals, new.stop, key=_start)
    pieces = [new]
    if low < high:
        first, last = intervals[low], intervals[high - 1]
        if first.start < new.start:
            pieces.insert(0, first._replace(stop=new.start))
        if new.stop is not None and (last.stop is None or last.stop > new.stop):
            pieces.append(last._replace(start=new.stop))
    intervals[low:high] = pieces


cdef class Ranges:
    def __init__(self, deletions=()):
        cdef list intervals = []
        self.deletions = tuple(deletions)
        for deletion in self.deletions:
            _insert(intervals, deletion)
        self.hold(intervals)

    cdef void hold(self, list intervals) except *:
        cdef Py_ssize_t i
        self.intervals = tuple(intervals)
        self.owned = <range_interval *>calloc(len(intervals) + 1, sizeof(range_interval))
        if self.owned == NULL:
            raise MemoryError
        for i, (start, stop, sequence) in enumerate(intervals):
            self.owned[i].start = slice_of(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
            if stop is not None:
                self.owned[i].has_stop = 1
                self.owned[i].stop = slice_of(PyBytes_AS_STRING(stop), PyBytes_GET_SIZE(stop))
            self.owned[i].sequence = sequence
        self.native.intervals = self.owned
        self.native.count = len(intervals)

    def __dealloc__(self):
        free(self.owned)

    def plus(self, deletion):
        cdef Ranges made = Ranges.__new__(Ranges)
        cdef list intervals = list(self.intervals)
        _insert(intervals, deletion)
        made.deletions = (*self.deletions, deletion)
        made.hold(intervals)
        return made

    def sequence_of(self, bytes key):
        cdef const range_interval *found
        found = ranges_find(&self.native, slice_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)))
        return 0 if found == NULL else found.sequence

    def overlapping(self, bytes smallest, bytes largest):
        low = bisect_right(self.intervals, smallest, key=_start)
        if low and (self.intervals[low - 1].stop is None or self.intervals[low - 1].stop > smallest):
            low -= 1
        return self.intervals[low : bisect_right(self.intervals, largest, key=_start)]

    def lowest_over(self, bytes smallest, bytes largest):
        found = self.overlapping(smallest, largest)
        if not found or found[0].start > smallest:
            return 0
        if found[len(found) - 1].stop is not None and found[len(found) - 1].stop <= largest:
            return 0
        for left, right in zip(found, found[1:]):
            if left.stop != right.start:
                return 0
        return min(interval.sequence for interval in found)
