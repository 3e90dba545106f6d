"""`kvcli keys`: the key directory, made and changed on the operator's machine. Needs no cluster.

Owns the words and columns. Formats: `kvclient.keys`; files: `keyfiles`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kvclient.cli import keyfiles
from kvclient.cli.app import current
from kvclient.cli.command import command
from kvclient.cli.failure import Failure
from kvclient.cli.units import SIZE, show_bytes
from kvclient.errors import Exit
from kvclient.keys import (
    LISTENING,
    ROLES,
    Certificate,
    Grants,
    Keys,
    Limits,
    Role,
    encode_certificate,
    is_address,
    is_name,
    load,
)

_COLUMNS = ("name", "role", "private", "addresses", "read", "write", "admin", "limits")
_directory = click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
_name = click.argument("name")


@click.group("keys")
def keys() -> None:
    """Make and show the keys of a cluster: who may connect to it, and do what.

    DIR is a key directory. Processes that run notice a change of theirs within a second.
    """


@command("init")
@_directory
def init(directory: Path) -> None:
    """Make a key directory, with a key for the operator in it."""
    app = current()
    keyfiles.init(directory)
    app.note(f"made {directory} with the key {keyfiles.ADMIN!r}. Now one for each process, such as:")
    app.note(f"  kvcli keys add {directory} store1 --role node --address 10.0.0.1")
    app.note(f"  kvcli keys add {directory} router1 --role router --address 10.0.0.9:7100")


def _prefixes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[bytes, ...]:
    try:
        return tuple(value.encode() for value in values)
    except UnicodeEncodeError:
        raise click.BadParameter("a prefix is text in UTF-8", ctx, param) from None


def _addresses(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    values = tuple(value.removeprefix("tcp://").lower() for value in values)
    for value in values:
        if not is_address(value):
            raise click.BadParameter(f"write host:port or host, not {value!r}", ctx, param)
    return values


_COUNT = click.IntRange(0, (1 << 53) - 1)


@command("add")
@_directory
@_name
@click.option("--role", type=click.Choice(ROLES), default="client", show_default=True)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    callback=_addresses,
    help="Of a router or a store: host:port where others connect, or host for all its ports.",
)
@click.option("--read", multiple=True, callback=_prefixes, help="A prefix of keys that a client may read.")
@click.option("--write", multiple=True, callback=_prefixes, help="A prefix of keys that a client may write.")
@click.option("--admin", is_flag=True, help="A client that may give operators' commands.")
@click.option("--in-flight", type=_COUNT, default=0, help="Requests that a client may have under way.")
@click.option("--ops-per-second", type=_COUNT, default=0, help="What a client may send to a router.")
@click.option("--bytes-per-second", type=SIZE, default=0, help="The same in bytes, such as 64MiB.")
@click.option("--replace", is_flag=True, help="In the place of the key that has this name.")
def add(
    directory: Path,
    name: str,
    role: Role,
    addresses: tuple[str, ...],
    read: tuple[bytes, ...],
    write: tuple[bytes, ...],
    admin: bool,
    in_flight: int,
    ops_per_second: int,
    bytes_per_second: int,
    replace: bool,
) -> None:
    """Make a key pair and its certificate.

    Without --read and --write, a client may read and write every key. With --replace and none of the other
    options, everything but the key stays as it was.
    """
    app = current()
    known = load(directory)
    old = known.certificates.get(name)
    if not is_name(name):
        raise click.UsageError("NAME is letters, digits, '-', '_' and '.', 63 at most")
    if (old is not None) != replace:
        text = (
            f"there is no key {name!r} to replace" if replace else f"there is a key {name!r}: add --replace"
        )
        raise Failure(Exit.NOT_FOUND if replace else Exit.CONFLICT, text, "NO_KEY" if replace else "EXISTS")
    limits = Limits(in_flight, ops_per_second, bytes_per_second)
    of_client = bool(read or write or admin or any(limits))
    if of_client and role != "client":
        raise click.UsageError(f"grants and limits are for clients, {name} has role {role}")
    if addresses and role not in LISTENING:
        raise click.UsageError(f"nobody connects to a {role}: --address is for routers and nodes")
    if old is not None and not (of_client or addresses or role != "client"):
        wanted = old
    else:
        everything = (b"",) if role == "client" and not (read or write) else ()
        grants = Grants(read or everything, write or everything, admin)
        wanted = Certificate(name, role, "", addresses, grants, limits)
    problem = keyfiles.clash(known, wanted) if wanted.role in LISTENING else None
    if problem is not None:
        raise Failure(Exit.CONFLICT, f"{problem}. Give {name} an --address of its own", "ADDRESS_TAKEN")
    keyfiles.add(directory, wanted)
    app.note(f"{'replaced' if replace else 'added'} {name}, role {wanted.role}. Its machine needs:")
    app.note(f"  {directory}/certificates/  {directory}/private/{name}.key")
    app.note(f"and every process {directory}/certificates/{name}.json")


@command("revoke")
@_directory
@_name
def revoke(directory: Path, name: str) -> None:
    """Delete a certificate and its private key: who has the key gets in nowhere any more.

    It takes effect where the certificate is gone: delete it from the directory of every process.
    """
    app = current()
    _found(load(directory), name)
    app.confirm(f"Revoke the key {name} for good?")
    keyfiles.revoke(directory, name)
    app.note(f"revoked {name}. Delete certificates/{name}.json from the directory of every process, too")


@command("ls")
@_directory
def list_keys(directory: Path) -> None:
    """Show all keys: whose private half is here, where processes listen, what clients may do."""
    app = current()
    known = load(directory)
    private = set(known.private_names())
    with app.output.rows("keys", _COLUMNS) as rows:
        for one in known.certificates.values():
            reads, writes = map(_shown, (one.grants.read, one.grants.write))
            here = "yes" if one.name in private else "no"
            of_client = (reads, writes, "yes" if one.grants.admin else "no", _limits(one.limits))
            cells = of_client if one.role == "client" else (None, None, None, None)
            rows.add(one.name, one.role, here, ",".join(one.addresses) or None, *cells)


def _shown(prefixes: tuple[bytes, ...]) -> str | None:
    return ",".join(prefix.decode() or "(all)" for prefix in prefixes) or None


def _limits(limits: Limits) -> str | None:
    parts = [
        f"{limits.in_flight} in flight" if limits.in_flight else "",
        f"{limits.ops_per_second} ops/s" if limits.ops_per_second else "",
        f"{show_bytes(limits.bytes_per_second)}/s" if limits.bytes_per_second else "",
    ]
    return ", ".join(filter(None, parts)) or None


@command("show")
@_directory
@_name
def show(directory: Path, name: str) -> None:
    """Show a certificate. Private keys are never shown."""
    app = current()
    one = _found(load(directory), name)
    fields: dict[str, Any] = {"name": name} | json.loads(encode_certificate(one))
    del fields["version"]
    if app.output.form in ("json", "jsonl"):
        app.output.document(fields)
        return
    for field, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        app.output.line(f"{field:<12} {text}")


def _found(known: Keys, name: str) -> Certificate:
    one = known.certificates.get(name)
    if one is None:
        there = ", ".join(known.certificates) or "none"
        raise Failure(Exit.NOT_FOUND, f"there is no key {name!r}. There are: {there}", "NO_KEY")
    return one


for _command in (init, add, revoke, list_keys, show):
    keys.add_command(_command)
