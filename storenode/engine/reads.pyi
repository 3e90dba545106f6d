"""What lookups of single keys cost (native/table.h), those of writes with a condition too."""

class Reads:
    """`lookups` of keys; tables that a filter spared them (`filtered`), tables searched in (`searched`), of
    those in vain (`misled`); blocks searched in (`blocks_searched`). A lookup that ends in a memtable costs
    none."""

    lookups: int
    filtered: int
    searched: int
    misled: int
    blocks_searched: int
