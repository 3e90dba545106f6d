"""`python -m storenode.engine.tools VERB ...`: the command line of the tools, which `kvcli engine` runs.

Exit codes are those of docs/cli.md section 2. Whatever the files hold, a failure is one line on stderr.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from storenode.engine.tools.dump_manifest import dump_manifest
from storenode.engine.tools.dump_table import dump_table
from storenode.engine.tools.find import find
from storenode.engine.tools.places import USAGE, Refused, Site, find_site, held
from storenode.engine.tools.printing import ENCODINGS, FORMATS, Printer
from storenode.engine.tools.repair import repair
from storenode.engine.tools.stats import stats
from storenode.engine.tools.storelog import OpenLog, no_log
from storenode.engine.tools.tablefile import Damage, TableFile
from storenode.engine.tools.verify import replica_states, verify
from storenode.engine.vfs import Vfs

OK, ERROR, NOT_FOUND, PARTIAL, DAMAGED, INTERRUPTED, BROKEN_PIPE = 0, 1, 3, 10, 11, 130, 141

_TABLE_NAME = re.compile(r"(\d{6,})\.sst", re.ASCII)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(USAGE, "USAGE", f"{message}. See: kvcli engine --help")


def parser() -> argparse.ArgumentParser:
    """The options of all tools."""
    root = _Parser(prog="engine", description="Look into, check and repair an engine's files at rest.")
    common = _Parser(add_help=False)
    common.add_argument("--format", choices=FORMATS, default="table" if sys.stdout.isatty() else "plain")
    common.add_argument("--encoding", choices=ENCODINGS, default="utf8")
    common.add_argument("--traceback", action="store_true")
    verbs = root.add_subparsers(dest="verb", required=True, parser_class=_Parser)

    def verb(name: str, *arguments: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, parents=[common])
        for argument in arguments:
            made.add_argument(argument)
        return made

    for name in ("verify", "stats", "dump-manifest"):
        verb(name, "directory")
    table = verb("dump-table", "path")
    table.add_argument("number", nargs="?", type=int)
    table.add_argument("--partition", type=int)
    table.add_argument("--entries", action="store_true")
    table.add_argument("--limit", type=int)
    search = verb("find", "directory")
    search.add_argument("--key", required=True)
    search.add_argument("--all", action="store_true")
    mend = verb("repair", "directory")
    mend.add_argument("--salvage", action="store_true")
    mend.add_argument("--yes", action="store_true")
    return root


def run(arguments: Sequence[str], open_log: OpenLog = no_log) -> int:
    """Run one tool; its exit code. `open_log` knows the log that the engines of a store share."""
    shows_traceback = "--traceback" in arguments
    try:
        options = parser().parse_args(arguments)
        printer = Printer(sys.stdout.buffer, options.format, options.encoding)
        try:
            return _run(options, printer, open_log)
        finally:
            printer.close()
    except Refused as error:
        _say(f"error: {error} ({error.name})")
        return error.code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(Vfs().open(os.devnull, writable=True).fd, sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"error: {where}{error.strerror or error}. (IO)")
        return ERROR
    except Exception as error:  # noqa: BLE001 - the boundary: every failure becomes a line and a code
        if shows_traceback:
            traceback.print_exc()
        _say(f"error: {type(error).__name__}: {error}. This is a defect; -vv shows the traceback. (INTERNAL)")
        return ERROR


def _run(options: argparse.Namespace, printer: Printer, open_log: OpenLog) -> int:
    vfs = Vfs()
    if options.verb == "dump-table":
        return _dump_table(vfs, options, printer)
    site = find_site(vfs, options.directory)
    if options.verb == "repair":
        with held(vfs, site, exclusive=options.yes):
            code = int(repair(vfs, site, printer, salvage=options.salvage, do_it=options.yes))
            return _judge_log(vfs, site, open_log) or code
    with held(vfs, site, exclusive=False):
        if options.verb == "find":
            key = _key(options.key, options.encoding)
            found, sound = find(vfs, site, key, printer, everywhere=options.all, log=open_log(site))
            return DAMAGED if not sound else OK if found else NOT_FOUND
        if options.verb == "verify":
            return OK if verify(vfs, site, printer, open_log(site)) else DAMAGED
        tool = {"stats": stats, "dump-manifest": dump_manifest}[options.verb]
        return OK if tool(vfs, site, printer) else DAMAGED


def _judge_log(vfs: Vfs, site: Site, open_log: OpenLog) -> int:
    """A log that its peers have as well is not repaired: a part of it taken out was acknowledged, perhaps."""
    log = open_log(site)
    if log is None:
        return OK
    problems = log.check(replica_states(vfs, site)).problems
    for _, damage in problems:
        _say(f"error: {damage}. This cannot be repaired: the store's peers have what it lost (LOG_DAMAGED)")
    return DAMAGED if problems else OK


def _dump_table(vfs: Vfs, options: argparse.Namespace, printer: Printer) -> int:
    """A table never changes once it is whole: the one tool that needs no store at rest."""
    path = options.path
    if options.number is not None:
        path = _table_path(find_site(vfs, path), options.number, options.partition)
    if os.path.isdir(path):
        what = f"{path} is a directory. Give a table's file, or the directory and the table's number"
        raise Refused(USAGE, "USAGE", what)
    name = _TABLE_NAME.fullmatch(os.path.basename(path))
    if name is None:
        raise Refused(USAGE, "NO_TABLE", f"{path} is no table: tables are named NNNNNN.sst")
    if not os.path.exists(path):
        raise Refused(USAGE, "NO_TABLE", f"{path} does not exist. See which there are: kvcli engine stats")
    with TableFile(vfs, path, int(name[1]), None) as table:
        _take_engine_id(table, path)
        sound = dump_table(table, printer, entries=options.entries, limit=options.limit)
    return OK if sound else DAMAGED


def _take_engine_id(table: TableFile, path: str) -> None:
    """With the footer gone the engine's id, which checksums cover, is the partition of the path."""
    try:
        table.footer()
    except Damage:
        folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
        if folder.isascii() and folder.isdecimal():
            table.file_id = int(folder) << 48 | table.number


def _table_path(site: Site, number: int, partition: int | None) -> str:
    places = [place for place in site.places if partition in (None, place.engine_id)]
    paths = [f"{place.directory}/{number:06d}.sst" for place in places]
    there = [path for path in paths if os.path.exists(path)]
    if len(there) > 1:
        raise Refused(USAGE, "USAGE", f"{len(there)} partitions have a table {number}: add --partition N")
    if not there:
        raise Refused(USAGE, "NO_TABLE", f"{site.root} has no table {number}. See: kvcli engine stats")
    return there[0]


def _key(argument: str, encoding: str) -> bytes:
    raw = os.fsencode(argument)
    try:
        if encoding == "hex":
            return bytes.fromhex(argument)
        return base64.b64decode(raw, validate=True) if encoding == "base64" else raw
    except (ValueError, binascii.Error):
        raise Refused(USAGE, "USAGE", f"key {argument!r} is not {encoding}") from None


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
