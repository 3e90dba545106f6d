"""Faults of the engine's native code: blocks, filters, cache, merging, jobs."""

from __future__ import annotations

from tests.faults.fault import Fault

UNIT = "tests/unit/storenode/engine"
ENGINE = "storenode/engine"
NATIVE = "storenode/engine/native"

JOB = "storenode.engine.job"
TABLE = "storenode.engine.table"
VIEW = "storenode.engine.view"
CODEC = "storenode.engine.codec"

FAULTS = (
    Fault(
        "seek-lands-one-restart-late",
        "keys at the beginning of a block's restart interval are not found",
        f"{NATIVE}/block.h",
        "(c, low) < 0) return -1;\n    for (;;) {",
        "(c, low + 1 < c->restarts ? low + 1 : low) < 0) return -1;\n    for (;;) {",
        ("tests/property/test_engine_metamorphic.py", "tests/property/test_engine_model.py"),
        (VIEW,),
    ),
    Fault(
        "largest-key-of-a-table-missed",
        "the last key of each table is not found",
        f"{NATIVE}/cursor.h",
        "        if (slice_compare(tables.tables[middle]->largest, key) < 0)\n            low = middle + 1;",
        "        if (slice_compare(tables.tables[middle]->largest, key) <= 0)\n            low = middle + 1;",
        ("tests/property/test_engine_metamorphic.py", "tests/property/test_engine_model.py"),
        (VIEW,),
    ),
    Fault(
        "separator-below-its-block",
        "the last keys of a block are not found",
        f"{NATIVE}/table_writer.h",
        "        from->data[i] = raised;\n",
        "",
        ("tests/property/test_engine_metamorphic.py",),
        (JOB,),
    ),
    Fault(
        "separator-in-the-next-block",
        "reading a block's first key reads two blocks",
        f"{NATIVE}/table_writer.h",
        "            if (raised > next.data[i] || next.size == i + 1) continue;",
        "            if (raised > next.data[i]) continue;",
        (f"{UNIT}/test_engine_table_verify.py",),
        (JOB,),
    ),
    Fault(
        "order-of-keys-not-verified",
        "a table written while memory failed is called sound, and a backup of it is kept",
        f"{NATIVE}/verify.h",
        "    if (k->count && order_of(before, k->trailer, key, c->at.trailer) >= 0)",
        "    if (k->count && key.size == 0)",
        (f"{UNIT}/test_engine_table_verify.py",),
        (TABLE,),
    ),
    Fault(
        "filter-forgets-keys",
        "keys that are there are not found: the filter says no",
        f"{NATIVE}/bloom.h",
        "hashes[i];\n        for (int probe = 0;",
        "hashes[i];\n        for (int probe = 1;",
        (f"{UNIT}/test_engine_table.py::test_the_filter_knows_every_key_and_few_others",),
        (JOB,),
    ),
    Fault(
        "block-of-another-table",
        "two engines of a process answer with each other's data",
        f"{ENGINE}/table.pyx",
        "        self.native.cache_key = _opened\n",
        "        self.native.cache_key = number\n",
        (f"{UNIT}/test_engine_api.py",),
        (TABLE,),
    ),
    Fault(
        "checksum-not-checked",
        "a bit that a disk flipped is answered as data",
        f"{NATIVE}/table.h",
        "        if (block_is_sound(t, h.offset, to, h.size)) return 0;\n",
        "        return 0;\n",
        (f"{UNIT}/test_engine_table.py",),
        (TABLE, VIEW),
    ),
    Fault(
        "checksum-not-checked-by-compaction",
        "a bit that a disk flipped is compacted into a new table, under a right checksum",
        f"{NATIVE}/cursor.h",
        "    if (!block_is_sound(t, h.offset, stored, h.size))\n",
        "    if (c->ahead_size == 0)\n",
        (f"{UNIT}/test_engine_table.py",),
        (JOB,),
    ),
    Fault(
        "table-of-another-number-accepted",
        "a table that was restored under a wrong name is read as if it were the right one",
        f"{NATIVE}/table.h",
        "    if (load64(footer + 36) != t->file_id)\n",
        "    if (load64(footer + 36) == 0)\n",
        (f"{UNIT}/test_engine_table.py", "tests/crash/test_engine_recovery.py"),
        (TABLE,),
    ),
    Fault(
        "checksum-of-any-place",
        "a block that was written to the wrong place is answered as data",
        f"{NATIVE}/crc32c.h",
        "    store64(context + 8, offset);\n",
        "    store64(context + 8, 0 * offset);\n",
        (f"{UNIT}/test_engine_table.py::test_a_block_in_the_wrong_place_or_file_is_found",),
        (JOB, TABLE),
    ),
    Fault(
        "decompressed-length-not-checked",
        "a damaged block is filled up with bytes of other users' data",
        f"{NATIVE}/compress.h",
        "        return made >= 0 && (size_t)made == length ? 0 : DECOMPRESS_MALFORMED;",
        "        return made >= 0 ? 0 : DECOMPRESS_MALFORMED;",
        (f"{UNIT}/test_engine_compressed_damage.py",),
        (TABLE,),
    ),
    Fault(
        "log-record-not-checked",
        "a torn write is replayed as if it were whole",
        f"{NATIVE}/wal.h",
        "    if (wal_record_crc(file_id, offset, p, length) != load32(p)) return 0;\n",
        "",
        ("tests/crash/test_engine_recovery.py", f"{UNIT}/test_engine_codec.py"),
        (CODEC,),
    ),
    Fault(
        "deletion-dropped-too-early",
        "a deleted key comes back after a compaction",
        f"{NATIVE}/job.h",
        "    if (!job_hides_below(j, e->key)) {\n",
        "    {\n",
        (f"{UNIT}/test_engine_table.py::test_a_deletion_stays_while_something_older_can_hide_below",),
        (JOB,),
    ),
    Fault(
        "older-version-kept-beside-the-newer",
        "tables never get smaller by compaction, and a deleted key's old values stay on the disk",
        f"{NATIVE}/job.h",
        "        j->dropped_shadowed++;\n        return 0;\n",
        "        return 1;\n",
        (f"{UNIT}/test_engine_table.py",),
        (JOB,),
    ),
    Fault(
        "value-lives-a-millisecond-too-long",
        "a lock with a time to live is held by two owners",
        f"{NATIVE}/entry.h",
        "e->deadline <= now_ms",
        "e->deadline < now_ms",
        (f"{UNIT}/test_engine_api.py",),
        (VIEW,),
    ),
    Fault(
        "reverse-scan-skips-a-key-of-each-block",
        "a backward scan leaves out the last key of every block but the first",
        f"{NATIVE}/cursor.h",
        "block_first(&c->data)) < 0) return cursor_data_broken(c);\n",
        "block_first(&c->data)) < 0) return cursor_data_broken(c);\n"
        "        if (reverse && c->data.current) block_previous(&c->data);\n",
        ("tests/property/test_engine_metamorphic.py",),
        (VIEW,),
    ),
    Fault(
        "old-versions-answered-beside-the-newest",
        "a scan answers a key once for each of its versions, and deleted keys too",
        f"{NATIVE}/scan.h",
        "        if (order > 0 && entry_sequence(e) <= s->sequence) {",
        "        if (order >= 0 && entry_sequence(e) <= s->sequence) {",
        ("tests/property/test_engine_metamorphic.py",),
        (VIEW,),
    ),
)
