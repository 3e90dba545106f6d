"""The node's one log on disk, for all of its Raft groups (docs/raft.md section 4).

Two threads meet here. The *log thread* calls `RaftLog.write` and nothing else: one batch, one write, one
fdatasync. The *loop thread* calls everything else, `installed` for each batch that `write` returned for, in
order; what it reads changes only there. `open` and `close` happen while no log thread runs.
"""

from storenode.raftlog.errors import LogCorrupt, LogFailed, LogRefused
from storenode.raftlog.group import GroupLog
from storenode.raftlog.log import RaftLog
from storenode.raftlog.records import Record
from storenode.raftlog.writer import Written

__all__ = ["RaftLog", "GroupLog", "Record", "Written", "LogCorrupt", "LogFailed", "LogRefused"]
