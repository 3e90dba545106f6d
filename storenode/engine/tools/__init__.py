"""Offline tools for an engine's files: verify, stats, dump-table, dump-manifest, find, repair (docs/cli.md
section 7).

Library functions over a `Site` (places.py) and a `Vfs`, one file per tool, and
`python -m storenode.engine.tools`. They read the formats of docs/formats.md for themselves, past damage,
instead of opening an engine: an engine refuses damaged files, and opening one changes them. Only `repair`
writes.
"""
