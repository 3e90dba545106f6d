"""`kvcli dev`: a whole cluster on this machine, for development and for watching nodes fail."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import click

from kvclient.cli import devjoin, devnetwork, devrun, processes
from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.devcluster import (
    PORT_BASE_DEFAULT,
    PORT_BASE_MAX,
    ROUTERS_MAX,
    STORES_MAX,
    DevCluster,
    Member,
    Shape,
    default_directory,
    directory_option,
    find_port_base,
    require_free,
)
from kvclient.cli.devmembers import is_name
from kvclient.cli.failure import Failure
from kvclient.cli.output import Cell
from kvclient.cli.units import show_bytes, show_seconds
from kvclient.errors import Exit

_FOLLOW_SECONDS = 0.2


@click.group("dev")
def dev() -> None:
    """Run a whole cluster on this machine."""


def _directory(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--dir",
        "directory",
        type=click.Path(file_okay=False),
        callback=_resolve,
        help="Where the cluster lives. [default: $XDG_STATE_HOME/ringkv/dev]",
    )(function)


def _resolve(ctx: click.Context, param: click.Parameter, value: str | None) -> Path:
    if value == "":
        # `--dir "$UNSET"` would otherwise be the directory where the user happens to stand.
        raise click.BadParameter("is empty", ctx, param)
    return default_directory() if value is None else Path(value).absolute()


def _load(directory: Path) -> DevCluster:
    cluster = DevCluster.load(directory)
    if cluster is None:
        raise Failure(
            Exit.NOT_FOUND,
            f"there is no cluster in {directory}. Make one:  kvcli dev up{directory_option(directory)}",
            "NO_CLUSTER",
        )
    return cluster


def _power_of_two(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    if value is not None and (not 1 <= value <= 4096 or value & (value - 1)):
        raise click.BadParameter("must be a power of two from 1 to 4096", ctx, param)
    return value


@command("up")
@click.option("--stores", type=click.IntRange(1, STORES_MAX), help="Store nodes. [default: 3]")
@click.option("--routers", type=click.IntRange(1, ROUTERS_MAX), help="Routers. [default: 2]")
@click.option(
    "--partitions", type=int, callback=_power_of_two, help="Partitions, a power of two. [default: 16]"
)
@click.option(
    "--port-base",
    type=click.IntRange(0, PORT_BASE_MAX),
    help=f"First port; 0 finds a free block. [default: {PORT_BASE_DEFAULT}]",
)
@click.option("--secure", is_flag=True, help="With a key for each process: DIR/keys. Nobody else gets in.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running and return.")
@_directory
def up(
    stores: int | None,
    routers: int | None,
    partitions: int | None,
    port_base: int | None,
    secure: bool,
    detach: bool,
    directory: Path,
) -> None:
    """Start the cluster, wait until it is ready, and stay until Ctrl-C.

    In a directory that holds a cluster, starts what is not running of it.
    """
    app = current()
    # The lock covers the making of the cluster too: of two `dev up` at once the second one finds it.
    with devrun.locked(directory):
        cluster = _load_or_make(directory, stores, routers, partitions, port_base, secure)
        missing = [member for member in _present(cluster) if not devrun.is_running(member)]
        children: devrun.Children = {}
        try:
            children = devrun.start(missing)
            devrun.wait_ready(cluster, missing, children)
        except BaseException:
            devrun.stop([member for member in cluster.members if member.name in children], app.note)
            raise
    _tell(app, cluster, len(missing), detach)
    if not detach:
        _stay(app, cluster, children)


def _present(cluster: DevCluster) -> list[Member]:
    """Those that belong to the cluster."""
    removed = cluster.removed
    return [member for member in cluster.members if member.name not in removed]


def _load_or_make(
    directory: Path,
    stores: int | None,
    routers: int | None,
    partitions: int | None,
    port_base: int | None,
    secure: bool,
) -> DevCluster:
    cluster = DevCluster.load(directory)
    if cluster is None:
        counts = (stores or 3, routers or 2, partitions or 16)
        base = port_base if port_base is not None else PORT_BASE_DEFAULT
        cluster = DevCluster(directory, Shape(*counts, base or find_port_base(*counts), secure))
        # Before anything is written: a directory keeps its ports, and these would never do.
        require_free(cluster.members)
    for name, asked, there in (
        ("stores", stores, cluster.shape.stores),
        ("routers", routers, cluster.shape.routers),
        ("partitions", partitions, cluster.shape.partitions),
        ("port-base", port_base or None, cluster.shape.port_base),
    ):
        if asked is not None and asked != there:
            raise Failure(
                Exit.USAGE,
                f"the cluster in {directory} has --{name} {there}, not {asked}. "
                f"Use another --dir, or throw it away:  kvcli dev down --purge{cluster.option}",
                "USAGE",
            )
    if secure and not cluster.shape.secure:
        raise Failure(
            Exit.USAGE,
            f"the cluster in {directory} has no keys. "
            f"Use another --dir, or throw it away:  kvcli dev down --purge{cluster.option}",
            "USAGE",
        )
    cluster.save()
    return cluster


def _tell(app: App, cluster: DevCluster, started: int, detached: bool) -> None:
    shape = cluster.shape
    if app.settings.output in ("json", "jsonl"):
        app.output.document(
            {
                "url": cluster.url,
                "monitor": cluster.monitor_url,
                "directory": str(cluster.directory),
                "started": started,
            }
        )
        app.output.stdout.flush()
        return
    lines = [
        f"ready: {shape.stores} stores, {shape.routers} routers, {shape.partitions} partitions "
        f"in {cluster.directory}"
    ]
    if started == 0:
        lines[0] = "everything runs already: " + lines[0].removeprefix("ready: ")
    # The default URL names the first router only; the exported one also survives its death.
    lines += ["", f"  export RINGKV_URL={cluster.url}"] if shape.port_base != PORT_BASE_DEFAULT else [""]
    if shape.secure:
        lines.append(f"  export RINGKV_KEYS={shlex.quote(cluster.keys)}")
    lines += [
        "  kvcli put hello world",
        "  kvcli get hello",
        "  kvcli status",
        f"  kvcli dev kill store1{cluster.option}",
        "",
        f"the cluster at a glance:  {cluster.monitor_url}",
    ]
    lines.append(f"stop it with:  kvcli dev down{cluster.option}" if detached else "stop it with Ctrl-C")
    app.output.line("\n".join(lines))
    app.output.stdout.flush()


def _stay(app: App, cluster: DevCluster, children: devrun.Children) -> None:
    try:
        devrun.supervise(cluster, children, app.note)
    except KeyboardInterrupt:
        app.note("stopping")
        with devrun.locked(cluster.directory):
            devrun.stop(cluster.members, app.note)


@command("down")
@click.option("--purge", is_flag=True, help="Delete the directory with all data, too.")
@_directory
def down(purge: bool, directory: Path) -> None:
    """Stop the cluster: SIGTERM, and SIGKILL after ten seconds. The data stays unless --purge is given."""
    app = current()
    cluster = _load(directory)
    if purge:
        app.confirm(f"Delete the cluster in {cluster.directory} with all its data?")
    with devrun.locked(cluster.directory):
        count = devrun.stop(cluster.members, app.note)
        if purge:
            cluster.purge()
    app.note(f"stopped {count} processes" + (", data deleted" if purge else ""))


@command("kill")
@click.argument("names", nargs=-1, required=True, metavar="NAME...|all")
@_directory
def kill(names: tuple[str, ...], directory: Path) -> None:
    """Kill processes with SIGKILL, as a crash would.

    NAME: store1, router1, monitor, stores, routers or all.
    """
    app = current()
    cluster = _load(directory)
    with devrun.locked(cluster.directory):
        hit = devrun.kill(cluster.select(names))
    if not hit:
        raise _not_running(names, cluster)
    app.note(f"killed {', '.join(member.name for member in hit)}")


@command("stop")
@click.argument("names", nargs=-1, required=True, metavar="NAME...|all")
@_directory
def stop(names: tuple[str, ...], directory: Path) -> None:
    """Stop processes in an orderly way, as before an upgrade: SIGTERM, and SIGKILL after ten seconds.

    A store hands its leadership over first. NAME as for kill.
    """
    app = current()
    cluster = _load(directory)
    with devrun.locked(cluster.directory):
        running = [member for member in cluster.select(names) if devrun.is_running(member)]
        if running:
            devrun.stop(running, app.note)
    if not running:
        raise _not_running(names, cluster)
    app.note(f"stopped {', '.join(member.name for member in running)}")


def _not_running(names: tuple[str, ...], cluster: DevCluster) -> Failure:
    what = f"none of {', '.join(names)} is running. See: kvcli dev status{cluster.option}"
    return Failure(Exit.NOT_FOUND, what, "NOT_RUNNING")


@command("start")
@click.argument("names", nargs=-1, required=True, metavar="NAME...|all")
@_directory
def start(names: tuple[str, ...], directory: Path) -> None:
    """Start processes again, with the same configuration and data. NAME as for kill.

    A store that was removed from the cluster is started only by its own name.
    """
    app = current()
    cluster = _load(directory)
    with devrun.locked(cluster.directory):
        present = _present(cluster)
        members = [member for member in cluster.select(names) if member in present or member.name in names]
        children = devrun.start(members)
        started = [member for member in members if member.name in children]
        if all(map(devrun.is_running, present)):
            devrun.wait_ready(cluster, started, children)
        else:
            _watch_start(started, children)
    app.note(f"started {', '.join(children)}" if children else "everything asked for runs already")


def _watch_start(started: list[Any], children: devrun.Children) -> None:
    """With parts of the cluster down there may be partitions without a majority; that a process has not ended
    after a moment must do.
    """
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        for member in started:
            if devrun.ended(member, children):
                raise Failure(
                    Exit.ERROR,
                    f"{member.name} ended while starting. Its log says:\n{devrun.log_tail(member)}",
                    "START_FAILED",
                )
        time.sleep(_FOLLOW_SECONDS)


@command("add-store")
@click.argument("name", required=False)
@click.option("--zone", help="Where it stands. [default: a zone of its own]")
@_directory
def add_store(name: str | None, zone: str | None, directory: Path) -> None:
    """Start one more store, and wait until the cluster has taken it in.

    Data moves there with `kvcli rebalance start`. [default NAME: the next store]
    """
    app = current()
    for text in (name, zone):
        if text is not None and not is_name(text):
            wanted = "1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit"
            raise Failure(Exit.USAGE, f"{text!r} is no name: it must be {wanted}", "USAGE")
    cluster = _load(directory)
    with devrun.locked(cluster.directory):
        node = devjoin.join(cluster, cluster.add(name, zone))
    if app.settings.output in ("json", "jsonl"):
        app.output.document({field: node[field] for field in ("id", "name", "rpc")})
        return
    app.note(f"{node['name']} is node {node['id']} of the cluster. Give it data:  kvcli rebalance start")


@command("partition")
@click.argument("sides", nargs=-1, required=True, metavar="STORE[,STORE...]...")
@_directory
def partition(sides: tuple[str, ...], directory: Path) -> None:
    """Cut the network between stores: those of different sides neither hear nor reach each other.

    `store1 store2,store3` are two sides; `store1,store2` alone cuts these two off from each other, `store1`
    alone that one from all others. Clients and routers still reach every store. An earlier cut is undone.
    """
    app = current()
    cluster = _load(directory)
    with devrun.locked(cluster.directory):
        devnetwork.cut(cluster, devnetwork.parse_sides(cluster, sides))
    app.note(f"cut: {_cuts(cluster)}. Mend it:  kvcli dev heal{cluster.option}")


@command("heal")
@_directory
def heal(directory: Path) -> None:
    """Mend the network that `partition` has cut."""
    app = current()
    cluster = _load(directory)
    with devrun.locked(cluster.directory):
        was = bool(devnetwork.pairs_cut(cluster))
        devnetwork.cut(cluster, set())
    app.note("the network is whole again" if was else "the network was whole")


def _cuts(cluster: DevCluster) -> str:
    return ", ".join(f"{one} | {other}" for one, other in devnetwork.pairs_cut(cluster))


@command("status")
@_directory
def status(directory: Path) -> None:
    """Show the processes, and what is cut of the network. Exit code 11 when a process is down."""
    app = current()
    cluster = _load(directory)
    exact = app.output.form in ("json", "jsonl", "csv")
    figures = ("uptime_s", "memory_bytes") if exact else ("uptime", "memory")
    columns = ("name", "role", "state", "pid", "port", *figures, "log")
    degraded = False
    removed = cluster.removed
    with app.output.rows("processes", columns) as rows:
        for member in cluster.members:
            identity = processes.recorded(member.pid_file)
            usage = processes.usage(identity) if identity is not None else None
            degraded |= usage is None and member.name not in removed
            uptime: Cell = None
            memory: Cell = None
            if usage is not None:
                uptime = round(usage.uptime, 2) if exact else show_seconds(usage.uptime)
                memory = usage.resident_bytes if exact else show_bytes(usage.resident_bytes)
            rows.add(
                member.name,
                member.role,
                "removed" if member.name in removed else "down" if usage is None else "up",
                identity.pid if identity is not None else None,
                member.ports[0],
                uptime,
                memory,
                str(member.log_file),
            )
    if cuts := _cuts(cluster):
        app.note(f"the network is cut: {cuts}. Mend it:  kvcli dev heal{cluster.option}")
    if degraded:
        quit_with(Exit.DEGRADED)


@command("logs")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option(
    "-n", "--lines", type=click.IntRange(0, 100_000), default=20, show_default=True, help="Lines of each log."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@_directory
def logs(names: tuple[str, ...], lines: int, follow: bool, directory: Path) -> None:
    """Print the last lines of the logs."""
    app = current()
    cluster = _load(directory)
    members = cluster.select(names or ("all",))
    width = max(len(member.name) for member in members)
    followed: list[tuple[str, BinaryIO]] = []
    for member in members:
        if not member.log_file.exists():
            continue
        file: BinaryIO = open(member.log_file, "rb")  # noqa: SIM115 - followed until the process ends
        followed.append((f"{member.name:<{width}} | ", file))
        file.seek(_tail_offset(file, lines))
        _print_new(app, *followed[-1])
    app.output.stdout.flush()
    while follow:
        time.sleep(_FOLLOW_SECONDS)
        for prefix, source in followed:
            _print_new(app, prefix, source)
        app.output.stdout.flush()


def _tail_offset(file: BinaryIO, lines: int) -> int:
    """Where the last `lines` lines begin, reading backwards in blocks."""
    position = file.seek(0, 2)
    tail = b""
    while position > 0 and tail.count(b"\n") <= lines:
        step = min(position, 64 << 10)
        position -= step
        file.seek(position)
        tail = file.read(step) + tail
    kept = tail.splitlines(keepends=True)
    return position + len(tail) - sum(map(len, kept[len(kept) - min(lines, len(kept)) :]))


def _print_new(app: App, prefix: str, file: BinaryIO) -> None:
    for line in file.readlines():
        app.output.line(prefix + line.decode(errors="replace").rstrip("\n"))


for _command in (up, down, status, logs, kill, stop, start, add_store, partition, heal):
    dev.add_command(_command)
