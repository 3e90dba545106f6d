"""repair: take out what is damaged, rebuild the manifest from the tables, keep everything else as it is.

Nothing is deleted: what is taken out goes to `quarantine/` in the directory. Order of a change: new tables
durable, a new manifest written beside the old one, everything that will go linked into the quarantine, then
the manifest replaced by one rename; only then are the files taken out. Killed in front of the rename nothing
has happened; behind it the same command goes on.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import NamedTuple

from kvclient.errors import Corruption
from storenode.engine.manifest import Manifest, State
from storenode.engine.tools.examine import Gap
from storenode.engine.tools.places import QUARANTINE, Site
from storenode.engine.tools.plan import LAST_LEVEL, Loss, Plan, plan_engine
from storenode.engine.tools.printing import Printer
from storenode.engine.tools.records import read_manifest
from storenode.engine.tools.rewrite import Numbers, write_tables
from storenode.engine.tools.verify import verify
from storenode.engine.version import TableMeta
from storenode.engine.vfs import Vfs

OK, PARTIAL, DAMAGED = 0, 10, 11

STAGING = "repair.tmp"
"""Where the new manifest is made, in the directory; what a killed repair left there is removed."""

PLAN_COLUMNS = ("partition", "action", "file", "detail")
LOST_COLUMNS = ("partition", "from_key", "until_key", "min_sequence", "max_sequence", "what")


class Whole(NamedTuple):
    """The plans of all engines, and why the manifest is written anew (None: it stays)."""

    plans: list[Plan]
    manifest_problem: str | None
    strangers: list[int]

    @property
    def is_needed(self) -> bool:
        return self.manifest_problem is not None or any(plan.is_changed for plan in self.plans)

    @property
    def is_lossy(self) -> bool:
        return bool(self.strangers) or any(plan.losses for plan in self.plans)


def repair(vfs: Vfs, site: Site, printer: Printer, *, salvage: bool, do_it: bool) -> int:
    """Print the plan and what may be lost by it, carry it out with `do_it`; the exit code."""
    whole = _plan(vfs, site, salvage=salvage)
    printer.section("plan", PLAN_COLUMNS)
    _print_plan(whole, site, printer)
    printer.section("lost", LOST_COLUMNS)
    _print_losses(whole, printer)
    if not whole.is_needed:
        return OK
    if not do_it:
        return DAMAGED
    quarantine = carry_out(vfs, site, whole)
    printer.section("quarantine", ("directory",))
    printer.row(quarantine)
    if not verify(vfs, site, printer):
        return DAMAGED
    return PARTIAL if whole.is_lossy else OK


def _plan(vfs: Vfs, site: Site, *, salvage: bool) -> Whole:
    manifest = read_manifest(vfs, site.manifest_directory)
    plans = [plan_engine(vfs, place, manifest, salvage=salvage) for place in site.places]
    problems = manifest.general_problems() if manifest.exists else []
    strangers = [number for number in manifest.engines() if site.place_of(number) is None]
    if strangers:
        problems.append(f"has records of engines without a directory: {', '.join(map(str, strangers))}")
    return Whole(plans, problems[0] if problems else None, strangers)


def _print_plan(whole: Whole, site: Site, printer: Printer) -> None:
    if whole.manifest_problem is not None:
        printer.row(None, "replace-manifest", f"{site.manifest_directory}/data.mdb", whole.manifest_problem)
    for plan in whole.plans:
        partition = plan.place.engine_id
        if plan.is_rebuilt:
            levels = dict.fromkeys((0, LAST_LEVEL), 0)
            for table in plan.tables:
                levels[table.level] = levels.get(table.level, 0) + 1
            told = ", ".join(f"{count} in level {level}" for level, count in sorted(levels.items()) if count)
            detail = f"{len(plan.tables)} tables{': ' + told if told else ''}"
            printer.row(partition, "rebuild-manifest", plan.place.directory, detail)
        if plan.unknown is not None:
            printer.row(partition, "cannot-know", plan.place.directory, plan.unknown)
        for path, why in plan.taken_out:
            printer.row(partition, "take-out", path, why)
        for rewrite in plan.rewrites:
            entries = sum(source.entries for source in rewrite.sources)
            action = "salvage" if len(rewrite.sources) == 1 else "merge"
            for source in rewrite.sources:
                printer.row(partition, action, source.path, f"{entries} entries into level {rewrite.level}")
        if plan.logs.cut is not None:
            printer.row(partition, "cut", plan.logs.cut.path, f"at {plan.logs.cut.length}")


def _print_losses(whole: Whole, printer: Printer) -> None:
    for engine_id in whole.strangers:
        printer.row(
            engine_id, None, None, None, None, f"all of partition {engine_id}: its directory is missing"
        )
    for plan in whole.plans:
        for loss in plan.losses:
            printer.row(plan.place.engine_id, *_loss_cells(loss))


def _loss_cells(loss: Loss) -> tuple[bytes | int | str | None, ...]:
    gap = loss.gap or Gap(None, None)
    low, high = loss.sequences or (None, None)
    return gap.after, gap.until, low, high, loss.what


def carry_out(vfs: Vfs, site: Site, whole: Whole) -> str:
    """Do it; the directory where everything is that was taken out."""
    staging = os.path.join(site.root, STAGING)
    shutil.rmtree(staging, ignore_errors=True)
    created: list[str] = []
    try:
        tables = {plan.place.engine_id: _write(vfs, plan, created) for plan in whole.plans}
        _stage_manifest(vfs, staging, tables)
        quarantine = _quarantine(vfs, site, whole)
    except BaseException:
        for path in created:
            vfs.unlink(path)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    data = os.path.join(site.manifest_directory, "data.mdb")
    vfs.make_directory(site.manifest_directory)
    vfs.rename(os.path.join(staging, "data.mdb"), data)  # from here on the repair counts
    vfs.sync_directory(site.manifest_directory)
    for plan in whole.plans:
        _clear(vfs, plan)
    shutil.rmtree(staging, ignore_errors=True)
    return quarantine


def _write(vfs: Vfs, plan: Plan, created: list[str]) -> tuple[State | None, list[TableMeta]]:
    """The engine's new state and tables, with those that had to be written."""
    if plan.state is None:
        return None, []
    numbers = Numbers(plan.state.next_file)
    tables = list(plan.tables)
    for rewrite in plan.rewrites:
        tables += write_tables(vfs, plan.place, rewrite, numbers, plan.logs.replay_from, created)
    if plan.rewrites:
        vfs.sync_directory(plan.place.directory)
    return plan.state._replace(next_file=numbers.following), tables


def _stage_manifest(vfs: Vfs, staging: str, engines: dict[int, tuple[State | None, list[TableMeta]]]) -> None:
    """A new environment with the records of all engines."""
    vfs.make_directory(staging)
    made = Manifest(staging)
    try:
        for engine_id, (state, tables) in engines.items():
            if state is not None:
                made.commit(engine_id, state, tables, ())
                if made.load(engine_id) != (state, sorted(tables, key=lambda table: table.number)):
                    raise Corruption(f"{staging}: the new manifest is not what was written")
    finally:
        made.close()


def _quarantine(vfs: Vfs, site: Site, whole: Whole) -> str:
    """A second name there for everything that will lose its own."""
    base = os.path.join(site.root, QUARANTINE, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    directory, count = base, 1
    while os.path.exists(directory):
        count += 1
        directory = f"{base}-{count}"
    vfs.make_directory(directory)
    data = os.path.join(site.manifest_directory, "data.mdb")
    if os.path.exists(data):
        vfs.link(data, os.path.join(directory, "manifest-data.mdb"))
    for plan in whole.plans:
        for path in _leaving(plan):
            name = f"{plan.place.engine_id:04}-{os.path.basename(path)}"
            vfs.link(path, os.path.join(directory, name))
    vfs.sync_directory(directory)
    return directory


def _leaving(plan: Plan) -> list[str]:
    paths = [path for path, _ in plan.taken_out]
    cut = [plan.logs.cut.path] if plan.logs.cut is not None else []
    return [path for path in dict.fromkeys([*paths, *cut]) if os.path.exists(path)]


def _clear(vfs: Vfs, plan: Plan) -> None:
    """Take out what is in the quarantine by now."""
    taken_out = {path for path, _ in plan.taken_out}
    for path in taken_out:
        vfs.unlink(path)
    cut = plan.logs.cut
    if cut is not None and cut.path not in taken_out:
        shortened = cut.path + ".repair"
        vfs.unlink(shortened)
        file = vfs.create(shortened)
        try:
            file.write_at(0, vfs.read(cut.path)[: cut.length])
            file.sync()
        finally:
            file.close()
        vfs.rename(shortened, cut.path)
    if _leaving(plan) or taken_out:
        vfs.sync_directory(plan.place.directory)
