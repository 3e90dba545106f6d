"""Sends every record of an LMDB environment to stdout: a process of its own, which a damaged environment may
end (records.py). Run by its path: it imports nothing of ours, to start quickly.

Each record is `key_size:u32 value_size:u32 key value`. The last one has no key; its value says what went
wrong, nothing if all is well.
"""

from __future__ import annotations

import struct
import sys

import lmdb

RECORDS_BYTES_MAX = 1 << 30
"""A table's record is some hundred bytes, 10 KB at most; a damaged tree may lead round in circles."""

SIZES = struct.Struct("<II")


def send_records(directory: str) -> None:
    out = sys.stdout.buffer
    last_word, left = b"", RECORDS_BYTES_MAX
    try:
        with lmdb.open(directory, readonly=True, lock=False) as env, env.begin() as transaction:
            for key, value in transaction.cursor():
                out.write(SIZES.pack(len(key), len(value)) + key + value)
                out.flush()
                left -= len(key) + len(value)
                if left < 0:
                    last_word = b"it has more records than any engine"
                    break
    except lmdb.Error as error:
        last_word = str(error).encode()
    out.write(SIZES.pack(0, len(last_word)) + last_word)


if __name__ == "__main__":
    send_records(sys.argv[1])
