"""`kvcli map`: the cluster map as the routers have it.

Owns the reading of its format (docs/protocol.md section 6) for people and for files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kvclient.cli.app import App, current
from kvclient.cli.command import command
from kvclient.cli.failure import Failure
from kvclient.cli.resume import replace_file
from kvclient.errors import Exit

# Their fields by the format's number, which comes first.
_FORMAT_2 = (
    "name", "cluster_id", "epoch", "partition_count", "replication_factor", "nodes", "replicas", "control",
)  # fmt: skip
_FORMATS = {2: _FORMAT_2, 3: (*_FORMAT_2, "bytes_per_second")}
_NODE_FIELDS = ("id", "name", "rpc", "bus", "events", "zone", "weight", "state")

Row = dict[str, Any]


@click.group("map")
def map_() -> None:
    """Show or save the cluster map: who is in the cluster, and who holds which partition."""


@command("show")
def show() -> None:
    """Show which nodes hold each partition, the preferred leader first."""
    app = current()
    known = _read(app)
    if app.output.form in ("json", "jsonl"):
        app.output.document(known)
        return
    names = {node["id"]: node["name"] for node in known["nodes"]}
    if app.output.form == "table":
        control = ",".join(names[node] for node in known["control"])
        app.output.line(
            f"cluster {known['name']} ({known['cluster_id']}) · epoch {known['epoch']} · {len(names)} nodes"
            f" · {known['partition_count']} partitions, replicas {known['replication_factor']}"
            f" · control {control}"
        )
    with app.output.rows("partitions", ("partition", "preferred", "nodes")) as rows:
        for partition, replicas in enumerate(known["replicas"]):
            held = [names[node] for node in replicas]
            rows.add(partition, held[0], ",".join(held))


@command("export")
@click.option(
    "-f",
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to; replaced at once. [default: stdout]",
)
def export(file: Path | None) -> None:
    """Write the whole map as one JSON document."""
    app = current()
    data = json.dumps({"schema": 1} | _read(app), indent=2).encode() + b"\n"
    if file is None:
        app.output.stdout.write(data)
        return
    replace_file(file, data)
    app.note(f"written to {file}")


def _read(app: App) -> Row:
    found = app.client().cluster_map()
    form = found[0] if isinstance(found, list) and found else None
    if form not in _FORMATS or len(found) != 1 + len(_FORMATS[form]):
        text = "the routers' cluster map has a format unknown to this kvcli. Use the kvcli of their version"
        raise Failure(Exit.VERSION, text, "VERSION_MISMATCH")
    known: Row = dict(zip(_FORMATS[form], found[1:], strict=True))
    known["nodes"] = [dict(zip(_NODE_FIELDS, node, strict=True)) for node in known["nodes"]]
    return known


for _command in (show, export):
    map_.add_command(_command)
