"""The families of docs/monitor.md section 2 that come straight from one figure of one process: name, meaning,
labels, and where the figure stands. Data; `monitor.exporter` makes samples of it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

Path = tuple[str, ...]


class Family(NamedTuple):
    """`values`: (value of the extra label, path of names to the figure); one of them, with label "", if there
    is no extra label.
    """

    name: str
    kind: str
    meaning: str
    label: str
    values: tuple[tuple[str, Path], ...]


def _one(name: str, kind: str, meaning: str, *path: str) -> Family:
    return Family(name, kind, meaning, "", (("", path),))


def _by(name: str, meaning: str, label: str, **values: str | Path) -> Family:
    places = tuple((key, (path,) if isinstance(path, str) else path) for key, path in values.items())
    return Family(name, "counter", meaning, label, places)


PROCESS: Final = (
    _one("process_cpu_seconds", "counter", "Processor time of all threads", "cpu_s"),
    _one("process_resident_memory_bytes", "gauge", "Resident memory", "memory_bytes"),
    _one("process_open_fds", "gauge", "File descriptors in use", "open_fds"),
    _one("process_max_fds", "gauge", "The limit of file descriptors", "max_fds"),
)

ROUTER: Final = (
    _by("ops", "Single ops in the op streams taken", "op", read=("ops", "read"), write=("ops", "write")),
    _one("router_in_flight_parts", "gauge", "Parts of requests under way", "in_flight_parts"),
    _one("router_in_flight_bytes", "gauge", "Bytes of the requests under way", "in_flight_bytes"),
    _by("router_retries", "Parts sent again", "reason", refused="parts_retried", lost="parts_lost",
        unsent="parts_unsent", redirected="parts_redirected"),
    _one("router_expired", "counter", "Parts that ran into their deadline", "parts_expired"),
    _one("router_stray_answers", "counter", "Answers to attempts that had been given up", "answers_stray"),
    _one("router_bad_frames", "counter", "Frames of stores not understood", "store_frames_bad"),
    _by("router_dropped_responses", "Responses that no client took", "reason",
        gone="responses_client_gone", full="responses_client_full"),
    _one("router_defects", "counter", "Requests that met a defect", "defects"),
    _one("router_map_epoch", "gauge", "Epoch of the map that it routes by", "epoch"),
)  # fmt: skip

STORE: Final = (
    _by("store_items", "Parts of requests taken", "kind",
        read=("requests", "reads"), write=("requests", "writes")),
    _by("store_dropped_answers", "Frames that no router took", "reason",
        gone=("requests", "dropped_gone"), full=("requests", "dropped_full")),
    _by("store_faults", "Messages that one side did not understand", "direction",
        sent=("requests", "faults_sent"), received=("requests", "faults_received")),
    _one("store_defects", "counter", "Messages that met a defect", "requests", "defects"),
    _one("store_in_flight_bytes", "gauge", "Writes taken and not answered", "in_flight_bytes"),
    _one("store_keys", "gauge", "Keys of its replicas, an estimate", "keys"),
    _one("store_sessions", "gauge", "Clients whose retries it would know", "sessions"),
    _one("store_sessions_evicted", "counter", "Sessions forgotten for lack of room", "sessions_evicted"),
    _one("disk_used_bytes", "gauge", "Tables and log", "disk_bytes"),
    _one("disk_free_bytes", "gauge", "Free on the file system of the data", "disk_free_bytes"),
    _one("disk_size_bytes", "gauge", "Size of the file system of the data", "disk_size_bytes"),
    _one("engine_memtable_bytes", "gauge", "Memory of memtables", "memtable_bytes"),
    _one("engine_tables", "gauge", "Tables", "tables"),
    _one("engine_flushes", "counter", "Memtables written as tables", "flushes"),
    _one("engine_flushed_bytes", "counter", "Bytes written by flushes", "flush_bytes"),
    _one("engine_compactions", "counter", "Compactions done", "compactions"),
    _by("engine_compaction_bytes", "Bytes that compactions moved", "direction",
        read="compaction_bytes_read", written="compaction_bytes_written"),
    _one("engine_failed_jobs", "counter", "Flushes and compactions that did not get done", "jobs_failed"),
    _one("engine_compaction_debt_bytes", "gauge", "Bytes of levels over their size", "compaction_debt_bytes"),
    _one("engine_pressure", "gauge", "0 fine, 1 writes are slowed, 2 stopped", "pressure"),
    _one("engine_cache_bytes", "gauge", "Blocks in memory", "cache", "bytes"),
    _by("engine_cache_lookups", "Blocks looked up in memory", "outcome",
        hit=("cache", "hits"), miss=("cache", "misses")),
    _one("log_writes", "counter", "Writes of the replicated log", "log", "syncs"),
    _one("log_entries", "counter", "Entries written to the log", "log", "entries"),
    _one("log_written_bytes", "counter", "Bytes written to the log", "log", "bytes_written"),
    _one("log_bytes", "gauge", "Bytes that the log holds on the disk", "log", "bytes_held"),
    _one("log_disk_reads", "counter", "Entries that the cache of the log did not have", "log", "disk_reads"),
    _one("log_stuck_seconds", "gauge", "How long the write at hand is under way", "log_write_longest_s"),
    _by("bus_frames", "Frames of Raft", "direction",
        sent=("bus", "frames_sent"), received=("bus", "frames_received")),
    _by("bus_bytes", "Bytes of Raft", "direction",
        sent=("bus", "bytes_sent"), received=("bus", "bytes_received")),
    _one("bus_lost_frames", "counter", "Frames missing between two that came", "bus", "frames_lost"),
    _by("bus_refused_frames", "Frames that were not taken", "reason", bad=("bus", "frames_bad"),
        foreign=("bus", "frames_foreign"), stranger=("bus", "frames_stranger")),
    _one("bus_failed_sends", "counter", "Frames that the socket did not take", "bus", "send_failed"),
    _by("snapshots", "Replicas taken whole from another store", "outcome",
        installed=("snapshots", "installed"), failed=("snapshots", "failed")),
    _one("controller_steps", "counter", "Steps of the controller", "control", "steps"),
    _one("controller_writes", "counter", "States that the controller wrote", "control", "writes"),
    _by("controller_orders", "Commands to groups", "outcome",
        sent=("control", "orders"), refused=("control", "orders_refused")),
    _one("controller_failures", "counter", "Steps and commands that met a defect", "control", "failures"),
)  # fmt: skip
