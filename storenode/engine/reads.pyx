"""What the lookups of one engine cost, summed up over all its views. Guarded by the interpreter's lock."""


cdef class Reads:
    cdef void add(self, const reader *r) noexcept:
        self.lookups += r.lookups
        self.filtered += r.filtered
        self.searched += r.searched
        self.misled += r.misled
        self.blocks_searched += r.blocks_searched
