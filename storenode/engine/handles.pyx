"""The bound on the open files of tables, as an object (native/handles.h). Opening goes through the Vfs."""

import errno

from storenode.engine.errors import explained

from storenode.engine.native cimport handles_free, handles_make_room, handles_new, handles_reads

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


cdef class Handles:
    def __cinit__(self, vfs, size_t most):
        if most < 1:
            raise ValueError("open_files must be at least 1")
        self.vfs = vfs
        self.native = handles_new(most)
        if self.native == NULL:
            raise MemoryError

    def __dealloc__(self):
        handles_free(self.native)

    def opening(self, function, path):
        while True:
            try:
                return function(path)
            except OSError as error:
                if error.errno not in OUT_OF_DESCRIPTORS:
                    raise
                if handles_make_room(self.native) == 0:
                    raise OSError(error.errno, explained(error.errno), path) from None

    def open(self, path):
        return self.opening(self.vfs.open, path)

    def stats(self):
        reads = handles_reads(self.native)
        return {
            "open": self.native.open,
            "open_max": self.native.most,
            "reads": reads,
            "reopened": self.native.reopened,
            "evicted": self.native.evicted,
        }
