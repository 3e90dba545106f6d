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
        "key-in-the-next-block-missed",
        "a key that a block's separator sends one block too early is not found",
        f"{NATIVE}/table_writer.h",
        "            if (raised > next.data[i] || next.size == i + 1) continue;",
        "            if (raised > next.data[i]) continue;",
        (f"{UNIT}/test_engine_table.py", "tests/property/test_engine_metamorphic.py"),
        (JOB,),
    ),
    Fault(
        "filter-forgets-keys",
        "keys that are there are not found: the filter says no",
        f"{NATIVE}/bloom.h",
        "hashes[i];\n        for (int probe = 0;",
        "hashes[i];\n        for (int probe = 1;",
        (f"{UNIT}/test_engine_table.py",),
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
        "checksum-of-any-place",
        "a block that was written to the wrong place is answered as data",
        f"{NATIVE}/table.h",
        "crc32c(crc32c_context(t->file_id, offset), data, size + 1)",
        "crc32c(crc32c_context(0, offset), data, size + 1)",
        (f"{UNIT}/test_engine_table.py",),
        (TABLE, VIEW),
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
        (f"{UNIT}/test_engine_table.py",),
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
        "merge-forgets-the-order-of-sources",
        "of two runs whose next keys are out of order a scan answers the wrong one first",
        f"{NATIVE}/merge.h",
        "    if (m->live > 1) merge_sift(m, 0);\n",
        "    if (m->live > 2) merge_sift(m, 0);\n",
        ("tests/property/test_engine_metamorphic.py",),
        (VIEW,),
    ),
)
