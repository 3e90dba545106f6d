"""A file system that remembers what is durable, and makes the states that a crash may leave behind.

The files are real ones, so native code and LMDB write to them as ever. Beside them the twin keeps what was
durable at the last sync: the content of each file, the names of each directory. A `Crash` is that knowledge
frozen at one moment; `lose_power` writes down one of the states it allows, `restart` what another process
finds when only the first one died, together with the knowledge that not all of it is durable.

Rules, as harsh as POSIX lets a disk be. Every change of a name that was not synced is kept or lost on its
own. Of a file, every unit (a page of 4 KiB or a sector of 512 bytes) has the content of its last sync or of
any write since; what lies beyond that is zeros; the size is one that the file had since its sync. What a
failed sync did not write is never written by a later one that succeeds. LMDB's commit is there, or not, or
has written pages but not the header that makes them count.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from storenode.engine.vfs import File, Vfs
from tests.crash.survivor import PAGE_BYTES, Commit, survivor, survivor_of_commit

SECTOR_BYTES = 512


class Step(NamedTuple):
    """An operation that changes the disk; `when` is "before" or "after"."""

    when: str
    kind: str
    path: str


Hook = Callable[["CrashVfs", Step], None]
"""Called before and after each step, with the twin's lock held. OSError before a step makes it fail."""


class Inode:
    """A file: `versions[0]` is durable, the others were written since, in order."""

    def __init__(self, path: str, versions: list[bytes]) -> None:
        self.path = path
        self.versions = versions
        self.writers = 0
        self.sync_failed = False
        self.commit: Commit | None = None

    def look(self) -> None:
        """Take notice of what native code wrote."""
        if self.writers and os.path.exists(self.path):
            with open(self.path, "rb") as file:
                content = file.read()
            if content != self.versions[-1]:
                self.versions.append(content)

    def sync(self) -> None:
        self.look()
        if not self.sync_failed:
            self.versions = self.versions[-1:]


class Directory:
    """A directory: the names that are durable, and those that are there."""

    def __init__(self) -> None:
        self.durable: dict[str, Node] = {}
        self.current: dict[str, Node] = {}


Node = Inode | Directory
Names = dict[Directory, dict[str, Node]]


class Change(NamedTuple):
    """A change of names that is lost or kept as a whole: what each name stands for afterwards, if
    anything."""

    places: tuple[tuple[Directory, str, Node | None], ...]
    may_be_synced: list[bool]  # [False] once a sync of the directory failed


def set_name(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def move(node: Node, path: str) -> None:
    if isinstance(node, Inode):
        node.path = path
        return
    for name, entry in node.current.items():
        move(entry, os.path.join(path, name))


class Crash:
    """What a crash at one moment may leave behind. To be used when the engine that ran then is closed."""

    def __init__(self, root: Directory, pending: list[Change], step: Step) -> None:
        self.step = step
        self.root = root
        self.pending = tuple(pending)
        self.durable: Names = {}
        self.current: Names = {}
        self.versions: dict[Inode, list[bytes]] = {}
        self.commits: dict[Inode, Commit] = {}
        self._freeze(root)
        for change in pending:
            for _, _, node in change.places:
                if node is not None:
                    self._freeze(node)

    def lose_power(self, path: str, dice: random.Random, kept: float | None = None) -> None:
        """Write one legal state into the new directory `path`. `kept`: how likely something is that was not
        synced."""
        if kept is None:
            kept = dice.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        unit = dice.choice((SECTOR_BYTES, PAGE_BYTES))
        names = {directory: dict(entries) for directory, entries in self.durable.items()}
        for change in self.pending:
            if dice.random() < kept:
                for directory, name, node in change.places:
                    set_name(names.setdefault(directory, {}), name, node)

        def content(inode: Inode) -> bytes:
            if inode in self.commits:
                return survivor_of_commit(self.commits[inode], dice)
            return survivor(self.versions[inode], kept, unit, dice)

        write_tree(path, self.root, names, content)

    def restart(self, path: str, dice: random.Random) -> CrashVfs:
        """Write what is there into the new directory `path`; its twin knows what of it is durable."""
        committed: dict[Inode, bytes] = {}

        def content(inode: Inode) -> bytes:
            commit = self.commits.get(inode)
            if commit is None:
                return self.versions[inode][-1]
            assert commit.after is not None
            committed[inode] = dice.choice((commit.before, commit.after))
            return committed[inode]

        write_tree(path, self.root, self.current, content)
        return self._twin_of(path, committed)

    def _twin_of(self, path: str, committed: dict[Inode, bytes]) -> CrashVfs:
        copies: dict[Node, Node] = {}

        def copy(node: Node, at: str) -> Node:
            if node in copies:
                return copies[node]
            if isinstance(node, Inode):
                versions = list(self.versions[node])
                new_file = copies[node] = Inode(at, versions)
                if node in committed:  # its pages are durable before its header is: no mixture is legal
                    before = self.commits[node].before
                    new_file.versions = [before]
                    new_file.commit = Commit(before, committed[node])
                return new_file
            new = copies[node] = Directory()
            for source, target in ((self.current, new.current), (self.durable, new.durable)):
                for name, entry in source.get(node, {}).items():
                    target[name] = copy(entry, os.path.join(at, name))
            return new

        twin = CrashVfs(path)
        root = copy(self.root, path)
        assert isinstance(root, Directory)
        twin.root = root
        twin.pending = [
            Change(
                tuple(
                    (copies.get(directory, Directory()), name, node and copy(node, name))  # type: ignore[misc]
                    for directory, name, node in change.places
                ),
                list(change.may_be_synced),
            )
            for change in self.pending
        ]
        return twin

    def _freeze(self, node: Node) -> None:
        if isinstance(node, Inode):
            if node not in self.versions:
                node.look()
                self.versions[node] = list(node.versions)
                if node.commit is not None:
                    self.commits[node] = node.commit
            return
        if node in self.durable:
            return
        self.durable[node] = dict(node.durable)
        self.current[node] = dict(node.current)
        for entry in (*node.durable.values(), *node.current.values()):
            self._freeze(entry)


def write_tree(path: str, root: Directory, names: Names, content: Callable[[Inode], bytes]) -> None:
    os.mkdir(path)
    written: dict[Inode, str] = {}
    for name, node in names.get(root, {}).items():
        at = os.path.join(path, name)
        if isinstance(node, Directory):
            write_tree(at, node, names, content)
        elif node in written:
            os.link(written[node], at)
        else:
            with open(at, "xb") as file:
                file.write(content(node))
            written[node] = at


class CrashFile(File):
    """A file opened for writing."""

    def __init__(self, vfs: CrashVfs, inode: Inode, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self._vfs = vfs
        self._inode = inode
        inode.writers += 1

    def write_at(self, offset: int, data: bytes) -> None:
        with self._vfs.lock_all:
            try:
                self._vfs.tell("before", "write", self.path)
            except OSError:
                super().write_at(offset, data[: len(data) // 2])
                self._inode.look()
                raise
            super().write_at(offset, data)
            self._inode.look()
            self._vfs.tell("after", "write", self.path)

    @property
    def mappable(self) -> bool:
        """What native code wrote is seen when the twin looks, but its writes cannot be made to fail."""
        return self._vfs.native_writes

    def truncate(self, size: int) -> None:
        with self._vfs.step("truncate", self.path):
            super().truncate(size)
            self._inode.look()

    def sync(self) -> None:
        """Durable for the twin; the machine's own disk need not be bothered."""
        with self._vfs.lock_all:
            try:
                self._vfs.tell("before", "sync", self.path)
            except OSError:
                self._inode.look()
                self._inode.sync_failed = True
                raise
            self._inode.sync()
            self._vfs.tell("after", "sync", self.path)

    def close(self) -> None:
        if self.fd >= 0:
            with self._vfs.lock_all:
                self._inode.look()
                self._inode.writers -= 1
        super().close()


class CrashVfs(Vfs):
    """The twin of what lies under `path`, all of which is durable now."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.root = Directory()
        self.pending: list[Change] = []
        self.lock_all = threading.RLock()
        self.hook: Hook | None = None
        self.native_writes = True  # to logs
        self._adopt(self.root, self.path)

    def crash(self, step: Step) -> Crash:
        """Freeze this moment."""
        with self.lock_all:
            return Crash(self.root, self.pending, step)

    def tell(self, when: str, kind: str, path: str) -> None:
        if self.hook is not None:
            self.hook(self, Step(when, kind, path))

    @contextlib.contextmanager
    def step(self, kind: str, path: str) -> Iterator[None]:
        with self.lock_all:
            self.tell("before", kind, path)
            yield
            self.tell("after", kind, path)

    def create(self, path: str) -> File:
        with self.step("create", path):
            file = super().create(path)
            inode = Inode(path, [b""])
            self._change((path, inode))
            return CrashFile(self, inode, path, file.fd)

    def open(self, path: str, *, writable: bool = False) -> File:
        file = super().open(path, writable=writable)
        if not writable:
            return file
        with self.lock_all:
            inode = self._find(path)
            assert isinstance(inode, Inode)
            return CrashFile(self, inode, path, file.fd)

    def rename(self, source: str, target: str) -> None:
        with self.step("rename", source):
            super().rename(source, target)
            node = self._find(source)
            assert node is not None, source
            move(node, target)
            self._change((source, None), (target, node))

    def link(self, source: str, target: str) -> None:
        with self.step("link", target):
            super().link(source, target)
            self._change((target, self._find(source)))

    def sync(self, path: str) -> None:
        with contextlib.closing(self.open(path, writable=True)) as file:
            file.sync()

    def unlink(self, path: str) -> None:
        with self.step("unlink", path):
            inode = self._find(path)
            if inode is not None:
                assert isinstance(inode, Inode)
                inode.look()
                self._change((path, None))
            super().unlink(path)

    def mkdir(self, path: str) -> None:
        with self.step("mkdir", path):
            super().mkdir(path)
            self._change((path, Directory()))

    def rmdir(self, path: str) -> None:
        with self.step("rmdir", path):
            super().rmdir(path)
            self._change((path, None))

    def sync_directory(self, path: str) -> None:
        with self.lock_all:
            directory = self._directory(path)
            if directory is None:
                return  # above the twin
            mine = [one for one in self.pending if any(at is directory for at, _, _ in one.places)]
            try:
                self.tell("before", "sync directory", path)
            except OSError:
                for change in mine:
                    change.may_be_synced[0] = False
                raise
            for change in mine:
                if change.may_be_synced[0]:
                    for at, name, node in change.places:
                        set_name(at.durable, name, node)
                    self.pending.remove(change)
            self.tell("after", "sync directory", path)

    @contextlib.contextmanager
    def transaction(self, path: str) -> Iterator[None]:
        with self.lock_all:
            self.tell("before", "commit", path)
            inode = self._find(path)
            if inode is None:
                inode = Inode(path, [b""])
                self._change((path, inode))
            assert isinstance(inode, Inode)
            commit = inode.commit = Commit(inode.versions[0])
            self.tell("during", "commit", path)
        try:
            yield
        finally:
            with self.lock_all:
                commit.after = self.read(path) if os.path.exists(path) else b""
                inode.versions = [commit.after]
                inode.commit = None
                self.tell("after", "commit", path)

    def _change(self, *places: tuple[str, Node | None]) -> None:
        located = []
        for path, node in places:
            directory, name = self._directory(os.path.dirname(path)), os.path.basename(path)
            assert directory is not None, path
            set_name(directory.current, name, node)
            located.append((directory, name, node))
        self.pending.append(Change(tuple(located), [True]))

    def _directory(self, path: str) -> Directory | None:
        if not (os.path.abspath(path) + os.sep).startswith(self.path + os.sep):
            return None
        node = self._find(path)
        assert isinstance(node, Directory), path
        return node

    def _find(self, path: str) -> Node | None:
        node: Node | None = self.root
        relative = os.path.relpath(os.path.abspath(path), self.path)
        for name in [] if relative == "." else relative.split(os.sep):
            if not isinstance(node, Directory):
                return None
            node = node.current.get(name)
        return node

    def _adopt(self, directory: Directory, path: str) -> None:
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):  # else chance has a say in seeds
            node: Node
            if entry.is_dir():
                node = Directory()
                self._adopt(node, entry.path)
            else:
                with open(entry.path, "rb") as file:
                    node = Inode(entry.path, [file.read()])
            directory.durable[entry.name] = directory.current[entry.name] = node
