"""One operation of a disk that fails, for the crash twin's hook."""

from __future__ import annotations

import os

from tests.crash.crashvfs import CrashVfs, Step


class Fault:
    """Makes the n-th operation of a kind fail."""

    def __init__(self, kind: str, n: int, error: int) -> None:
        self.kind = kind
        self.left = n
        self.error = error
        self.path = ""

    @property
    def struck(self) -> bool:
        return bool(self.path)

    def __call__(self, vfs: CrashVfs, step: Step) -> None:
        if step.kind != self.kind or step.when != "before":
            return
        self.left -= 1
        if self.left == 0:
            self.path = step.path
            raise OSError(self.error, os.strerror(self.error), step.path)
