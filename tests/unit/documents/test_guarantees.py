"""The figures of docs/guarantees.md are those of the software."""

from __future__ import annotations

import pytest

import router.config
import storenode.config
from kvclient import batching, protocol, url
from shared import clustermap, ring
from storenode import founding
from storenode.replica import sessions
from tests.documents import ROOT

PAGE = (ROOT / "docs" / "guarantees.md").read_text()
MIB = 1 << 20
CONFIGURABLE = protocol.VALUE_BYTES_MAX_CONFIGURABLE
ROUTER = router.config.LimitsSection()
STORE = storenode.config.LimitsSection()


@pytest.mark.parametrize(
    "said",
    [
        f"| key | 1 to {protocol.KEY_BYTES_MAX} bytes |",
        f"| value | {protocol.VALUE_BYTES_MAX // MIB} MiB, up to {CONFIGURABLE // MIB} MiB by",
        f"| request | {protocol.REQUEST_BYTES_MAX // MIB} MiB, {protocol.OPS_MAX:,} ops |",
        f"| transaction | {protocol.TXN_PARTS_MAX} compares and ops, in one partition |",
        f"page of a scan | {protocol.SCAN_LIMIT_MAX:,} entries, {protocol.SCAN_PAGE_BYTES_MAX // MIB} MiB |",
        f"| partitions | a power of two, 1 to {ring.PARTITIONS_MAX}, fixed",
        f"| replicas of a partition | 1 to {clustermap.REPLICAS_MAX} |",
        f"| stores | {ring.NODES_MAX} in one map;",
        f"| routers in a URL | {url.ENDPOINTS_MAX} |",
        f"sent again for {protocol.RETRY_WINDOW_MS // 1000} s at most",
        f"remembers {sessions.SESSIONS_MAX} clients and {sessions.TABLE_BYTES_MAX // MIB} MiB of results",
        f"answered it within the last {founding.SETTINGS.lease_seconds:.3g} s",
        f"more than {founding.CLOCK_DRIFT:.0%} faster".replace("%", " %"),
        f"requests of up to {batching.BATCH_OPS} keys or {batching.BATCH_BYTES // MIB} MiB",
        f"{ROUTER.in_flight:,} and {ROUTER.in_flight_bytes // MIB} MiB at a router",
        f"{STORE.in_flight_bytes // MIB} MiB of writes at a store",
    ],
)
def test_the_page_says(said: str) -> None:
    assert said in PAGE
