"""A store's disk: real files on the crash twin (tests/crash/crashvfs.py), and the thread that writes the log.

Owns what a death leaves of the files: everything when only the process died, one of the states that the twin
allows when power was lost. A death may come between two events or at any step of the disk within one; then
the rest of that event happens to nobody.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable

from storenode.raftlog import RaftLog, Record, Written
from tests.crash.crashvfs import Crash, CrashVfs, Step
from tests.simulation.machine import Machine
from tests.simulation.world import World


class SimulatedVfs(CrashVfs):
    """Names are listed in one order on every machine."""

    def listdir(self, path: str) -> list[str]:
        return sorted(super().listdir(path))


class Disk:
    """Of one store, over all of its lives."""

    def __init__(self, world: World, place: str, name: str) -> None:
        self.steps_until_death = 0
        self.log_fails = False
        self.fallen: Crash | None = None
        """What there was at the step at which power was lost."""
        self._world = world
        self._place = os.path.join(place, name)
        self._generation = 0
        os.makedirs(self._place)
        os.mkdir(self.path)
        self.vfs = SimulatedVfs(self.path)
        self.vfs.hook = self._on_step

    @property
    def path(self) -> str:
        return os.path.join(self._place, str(self._generation))

    def freeze(self) -> Crash:
        """What there is at the moment of a death; everything that has the files open must then be closed."""
        self.vfs.hook = None
        return self.fallen or self.vfs.crash(Step("after", "turn", ""))

    def survive(self, crash: Crash, power_lost: bool) -> None:
        """Makes the files that the next life finds."""
        before = self.path
        self._generation += 1
        if power_lost:
            crash.lose_power(self.path, self._world.random)
            self.vfs = SimulatedVfs(self.path)
        else:
            twin = crash.restart(self.path, self._world.random)
            twin.__class__ = SimulatedVfs
            self.vfs = twin  # type: ignore[assignment]
        shutil.rmtree(before)
        self.fallen = None
        self.steps_until_death = 0
        self.log_fails = False
        self.vfs.hook = self._on_step

    def _on_step(self, vfs: CrashVfs, step: Step) -> None:
        if self.fallen is not None:
            return
        if (
            self.log_fails
            and step.when == "before"
            and step.kind in ("write", "sync")
            and "/raft/" in step.path
        ):
            raise OSError(errno.EIO, "the disk refuses", step.path)
        if self.steps_until_death:
            self.steps_until_death -= 1
            if not self.steps_until_death:
                self.fallen = vfs.crash(step)


class SimulatedLogWriter:
    """As `storenode.logthread.LogThread`: the write happens some time after it was asked for, and the loop
    hears of it some time after that.
    """

    def __init__(self, machine: Machine, log: RaftLog, latency: Callable[[], float]) -> None:
        self._machine = machine
        self._log = log
        self._latency = latency
        self.busy = False
        self.on_submit: Callable[[list[Record]], object] = lambda records: None

    def submit(self, records: list[Record], done: Callable[[Written | Exception], object]) -> None:
        assert not self.busy, "one log write at a time"
        self.busy = True
        self.on_submit(records)
        wait = self._latency() / 2 + self._machine.clock.ahead
        self._machine.later(wait, lambda: self._write(records, done))

    def _write(self, records: list[Record], done: Callable[[Written | Exception], object]) -> None:
        outcome: Written | Exception
        try:
            outcome = self._log.write(records)
        except Exception as error:  # noqa: BLE001 - as the log thread does
            outcome = error

        def finished() -> None:
            self.busy = False
            done(outcome)

        self._machine.later(self._latency() / 2, lambda: self._machine.deliver("notified", finished))
