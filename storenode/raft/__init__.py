"""Raft for one group, as a pure state machine (docs/raft.md).

One `Raft` object per group and node. It calls nobody: inputs are method calls, outputs are taken. The
caller's duties, in each turn of its loop, in this order:

1. Set `now`, then give the inputs: `tick` at a steady rate, `step` for each message of the group, `propose`,
   `propose_change`, `read_index`, `transfer`.
2. `flush()`: proposals of the turn become one APPEND, its reads one HEARTBEAT.
3. `take_unstable()`: if it returns a write, write it (entries replace all from `first_index` on; `hard`
   replaces term, vote and commit) and sync it, while the loop goes on. Until `persisted` no other write is
   returned. Call it in each turn in which the group had an input: it also lets go what waits for no write.
4. Take `messages` and clear it; send them in their order, now, not waiting for the write. They may be lost,
   doubled, delayed and reordered. A message to EVERYBODY goes to all nodes, members or not.
5. When the write is durable: `persisted(unstable)`, which adds messages and may commit. The storage must show
   the entries by then. That is an input: 2, 3 and 4 follow.
6. `take_committed(bytes_max)` and apply the entries in their order, again until it returns none. For a
   CONFIGURATION entry: `change_applied(decode_change(data))`. Then `applied(last index)`: an input, too.
7. `take_reads()`: serve each when its index is applied. `take_failed_reads()`: the client asks elsewhere.
8. `snapshot_wanted`: pull a snapshot from that node, of that index or a later one. When it is in the state
   machine and the log is durably cut at its index, call `restore`; take no write in between, and drop a
   snapshot that is not newer than what is applied by then. If the pull fails, forget it: the leader reminds.

The storage is cut by the caller, never above what is applied and flushed. A replica that starts gives the
applied index and the configuration that its state machine has. A group is born with its log cut at index 1 of
term 0: its first configuration is state, not an entry. A node that joins later, with an empty log and an
empty configuration, so cannot replay its way into the group but is sent a snapshot. A node id whose log was
lost is never used again for the group: it would break what it promised. The replica of a removed node stays
until a majority of the new configuration has applied the removal and flushed that (docs/raft.md section 3).
A node becomes a voter when it has had a snapshot as a learner: without a configuration it gives no vote.
"""

from storenode.raft.configuration import (
    ConfigurationRefused,
    apply_change,
    decode_change,
    decode_configuration,
    encode_change,
    encode_configuration,
)
from storenode.raft.contract import Dropped, NotLeader, Settings, Unstable
from storenode.raft.core import Raft
from storenode.raft.progress import Progress, ProgressState
from storenode.raft.state import Role
from storenode.raft.storage import Compacted, Storage

__all__ = [
    "Raft",
    "Role",
    "Settings",
    "Storage",
    "Unstable",
    "Progress",
    "ProgressState",
    "NotLeader",
    "Dropped",
    "Compacted",
    "ConfigurationRefused",
    "apply_change",
    "encode_change",
    "decode_change",
    "encode_configuration",
    "decode_configuration",
]
