"""What every single call of an engine touches, natively."""

from storenode.engine.background import Background
from storenode.engine.tree import Tree
from storenode.engine.view import View

class Core:
    """What an engine and its log writer share; `Engine` is one. Who changes a part says so in its head."""

    tree: Tree
    background: Background
    next_sequence: int
    """The sequence that the next applied op gets: one more than the last."""
    now_ms: int
    """The engine's time: what has expired by it is absent."""
    fd: int
    """The newest log, open for writing; -1 if it must not be mapped."""
    file_id: int
    length: int
    """Bytes of the log that count."""
    synced: int
    """Bytes of the log that are durable; at most `length`. 0 until its name is, and every log before it."""
    reserved: int
    """How far zeros are written ahead of `length`; not behind it if there are none."""
    limit: int
    """The log is full at this length."""
    bytes_written: int
    """To all logs since the engine was opened."""
    ends: bool
    """The next record begins a new log."""
    writing: bool
    appending: bool
    applying: bool
    """Somebody is at it: a short put keeps out."""
    @property
    def window_bytes(self) -> int:
        """Of the log, mapped for short puts."""
    def __init__(self) -> None: ...
    def arm(self, view: View) -> None:
        """Let short puts write to this view, until it is replaced, and to the room reserved in the log."""
    def leave_window(self) -> None:
        """End short puts until `arm`: the log is about to become shorter, or another one."""
    def begin_writeback(self) -> None:
        """Have the disk begin with what is in the log and not durable, if that is much."""
    def moment(self) -> tuple[View, int]:
        """What a read begins with: the view, and the newest sequence that it may see there."""
    def get(self, key: bytes) -> bytes | None:
        """The newest value; None without one."""
    def put(self, key: bytes, value: bytes, sync: bool = False) -> None:
        """Like `write` of one PUT."""
